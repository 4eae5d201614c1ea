"""A model from a hub into the workspace: Hugging Face, a mirror of it (`HF_ENDPOINT`), or ModelScope. No torch here.

What is there already is not fetched again, so a download that was stopped goes on where it was. The folder has a
`.source` until all is there: the repository that it is from.
"""

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.anatomy.folder import look
from workbench.models.anatomy.units import memory
from workbench.storage import files, hub
from workbench.storage.workspace import Workspace

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SOURCE = ".source"
_ROOM = 1.02  # of the files' size: what a file system needs beside
# other forms of the same weights, which are not loaded here
_OTHER_FORMS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.ot", "original/*", "onnx/*")
Progress = Callable[[str, float], None]


def check_name(name: str) -> str:
    """`name` without space around it. Raises UserError: it is no `owner/model` of a hub."""
    name = name.strip()
    if not HUB_ID.fullmatch(name) or ".." in name:
        raise UserError("download_name", name=name[:100])
    return name


def download(name: str, revision: str, workspace: Workspace, progress: Progress) -> Path:
    """Fetch a model into the workspace's models; returns its folder.

    Raises:
        UserError: no such model, or not for this user; the hub cannot be reached; too little room on the disk; another
            model has that name; what came is not whole.
    """
    target = workspace.models / check_name(name).split("/")[-1]
    source = target / SOURCE
    if target.exists() and (target.is_symlink() or not source.is_file() or source.read_text().strip() != name):
        raise UserError("download_there", name=target.name)
    progress(Message("download_asking"), 0.0)
    wanted = {} if hub.use_modelscope() else _listed(name, revision)
    missing = sum(wanted.values()) - (_bytes(target) if target.is_dir() else 0)
    free = shutil.disk_usage(workspace.models).free
    if missing * _ROOM > free:
        raise UserError("download_no_room", name=name, need=memory(missing), free=memory(free))
    target.mkdir(exist_ok=True)
    files.write_atomically(source, name + "\n")
    with _Watched(target, sum(wanted.values()), progress):
        _fetch(name, revision, target)
    found = look(target)
    if found.problems:
        raise UserError(found.problems[0])
    if not (target / "config.json").is_file():
        raise UserError("anatomy_no_config", folder=target)
    shutil.rmtree(target / ".cache", ignore_errors=True)
    source.unlink()
    return target


def _listed(name: str, revision: str) -> dict[str, int]:
    """The files that are fetched and their sizes in bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    hub.wait_for_no_hub()
    try:
        tree = HfApi(endpoint=hub.endpoint()).list_repo_tree(name, revision=revision, recursive=True)
        sizes = {item.path: int(getattr(item, "size", 0) or 0) for item in tree}
    except Exception as error:  # the hub's client raises many kinds
        raise _failed(name, error) from None
    return {path: sizes[path] for path in filter_repo_objects(sizes, ignore_patterns=list(_OTHER_FORMS))}


def _fetch(name: str, revision: str, target: Path) -> None:
    try:
        if hub.use_modelscope():
            fetch = hub.modelscope_attribute("snapshot_download")
            fetch(name, revision="master" if revision == "main" else revision, local_dir=str(target))
            return
        from huggingface_hub import snapshot_download

        snapshot_download(
            name,
            revision=revision,
            local_dir=target,
            endpoint=hub.endpoint(),
            ignore_patterns=list(_OTHER_FORMS),
            max_workers=4,
        )
    except UserError:
        raise
    except Exception as error:  # the hubs' clients raise many kinds
        raise _failed(name, error) from None


def _failed(name: str, error: Exception) -> UserError:
    if hub.missing(error):
        return UserError("hub_model_missing", place=hub.endpoint(), name=name)
    return UserError("download_failed", name=name, reason=hub.first_line(error), advice=hub.by_hand(name))


def _bytes(folder: Path) -> int:
    """Of all files in a folder, also those that are not finished."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # it got its name meanwhile
            continue
    return total


class _Watched:
    """While it is open, how much of a folder is there is told once a second. `total` 0: unknown."""

    def __init__(self, folder: Path, total: int, progress: Progress):
        self.folder, self.total, self.progress = folder, total, progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watched":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            here = _bytes(self.folder)
            if self.total:
                words = Message("download_so_far", here=memory(min(here, self.total)), total=memory(self.total))
            else:
                words = Message("download_so_far_unknown", here=memory(here))
            self.progress(words, min(1.0, here / self.total) if self.total else 0.0)
            if self._over.wait(1.0):
                return
