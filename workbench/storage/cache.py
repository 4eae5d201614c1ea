"""What the workspace's cache holds and how much of the disk it takes: all of it can be made again."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from workbench.storage.workspace import Workspace


@dataclass(frozen=True)
class Part:
    """A folder of the cache: its name, bytes on the disk, and how many things it holds."""

    name: str
    bytes: int
    count: int


def parts(workspace: Workspace) -> list[Part]:
    """The largest first."""
    folders = [path for path in _entries(workspace.cache) if path.is_dir() and not path.is_symlink()]
    made = [Part(folder.name, _size(folder), len(_entries(folder))) for folder in folders]
    return sorted(made, key=lambda part: -part.bytes)


def clear(workspace: Workspace, name: str) -> int:
    """Delete what a part holds; returns the bytes that became free.

    Raises:
        KeyError: there is no such part.
    """
    part = next((part for part in parts(workspace) if part.name == name), None)
    if part is None:
        raise KeyError(name)
    folder = workspace.cache / name
    shutil.rmtree(folder, ignore_errors=True)
    return part.bytes - (_size(folder) if folder.exists() else 0)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size(folder: Path) -> int:
    """Bytes of the files below it, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total
