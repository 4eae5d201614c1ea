"""Where an export goes, which adapters go with it, and how a folder appears whole or not at all. No torch here."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from workbench.errors import UserError
from workbench.models.anatomy.units import memory
from workbench.models.locate import check_folder, locate_adapter
from workbench.models.reward import check_answers
from workbench.storage.workspace import Workspace, slug

ROOM = 1 << 20  # bytes for what is written beside the weights


def check_name(name: str) -> str:
    """The folder's name for an export. Raises UserError: it is empty or a path."""
    name = name.strip()
    if not name or any(letter in name for letter in "/\\\0\n") or name.startswith((".", "~")):
        raise UserError("export_name", name=name[:80])
    return slug(name)


def export_target(name: str, adapters: Iterable[str], workspace: Workspace) -> tuple[Path, dict[str, Path]]:
    """The folder that an export will be, and those of its adapters.

    Raises:
        UserError: the name is taken or a path, or an adapter is not there or a reward model's.
    """
    workspace.check_writable()
    target = workspace.models / check_name(name)
    if target.exists():
        raise UserError("model_name_taken", name=target.name)
    folders = {adapter: locate_adapter(adapter, workspace) for adapter in adapters}
    for folder in folders.values():
        check_folder(folder)
        check_answers(folder)
    return target, folders


def check_room(need: int, folder: Path) -> None:
    """Raise UserError where the disk has no room for `need` bytes, before half an hour of writing."""
    free = shutil.disk_usage(folder).free
    if need + ROOM > free:
        raise UserError("export_no_room", need=memory(need + ROOM), free=memory(free))


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """An empty folder to write to, which becomes `target` at the end, or is gone.

    Raises:
        UserError: the disk is full, or another process wrote `target` meanwhile.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    _clear(target.parent)
    try:
        partial.mkdir()
        yield partial
        partial.rename(target)
    except OSError as error:
        raise UserError("model_not_written", reason=error.strerror or error) from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # the library's word for what the disk said
            raise
        raise UserError("model_not_written", reason=str(error)[:200]) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove what an export that was killed has left."""
    for partial in folder.glob(".*.partial"):
        pid = partial.name.split(".")[-2]
        if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(partial, ignore_errors=True)
