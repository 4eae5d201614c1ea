"""A model's 4-bit weights, kept in the workspace's cache: a later load reads a quarter of the bytes and packs nothing.

Large models from a folder of 16-bit weights are kept once a run or a chat has loaded them, if the disk has room. A copy
belongs to the files as they were (names, sizes, times), to the options of quantization and to the code that packs.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from workbench.config.options import ModelOptions
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress
from workbench.models.memory import loaded_gib, weights_gib
from workbench.storage import files
from workbench.storage.workspace import Workspace, slug

_LEAST_GIB = 2.0  # of the model's files; smaller ones load quickly anyway
_COPIES = 3  # kept at a time; the one that was not used for the longest goes
_FREE_GIB = 20.0  # that stay free on the disk
_GIB = 2**30


def packed_copy(source: str, options: ModelOptions, dtype, workspace: Workspace) -> Path | None:
    """The folder in which the 4-bit form of `source` is or would be kept; None where none is kept for it."""
    folder = Path(source)
    if options.quantization_bit != 4 or not options.keep_quantized or options.trust_remote_code:
        return None
    if not folder.is_dir() or weights_gib(folder) < _LEAST_GIB:
        return None
    try:
        if files.read_object(folder / "config.json").get("quantization_config"):
            return None  # what it holds is packed already
    except (OSError, UserError):
        return None
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()) if f.is_file()]
    versions = [importlib.metadata.version(name) for name in ("transformers", "bitsandbytes")]
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))]
    parts = [str(folder.resolve()), stats, str(dtype), options.quantization_type, options.double_quantization, versions]
    key = hashlib.sha256(json.dumps(parts).encode() + b"".join(code)).hexdigest()[:12]
    return workspace.cache / "quantized" / f"{slug(folder.name)}-{key}"


def is_kept(copy: Path | None) -> bool:
    """Whether this copy is there and whole; it then counts as used now. A broken one is deleted."""
    if copy is None or not copy.is_dir():
        return False
    from workbench.models.integrity import check_shards  # which needs torch: this module is loaded for tokenizers, too

    try:
        check_shards(copy)
        quantization_config(copy)
        os.utime(copy)
        return True
    except (OSError, UserError, KeyError):
        shutil.rmtree(copy, ignore_errors=True)
        return False


def quantization_config(copy: Path) -> dict:
    """How the weights of a copy are packed, as its config says.

    Raises:
        UserError, OSError, KeyError: the config cannot be read or does not say it.
    """
    return files.read_object(copy / "config.json")["quantization_config"]


def keep(model, source: str, copy: Path, progress: Progress, log: Callable[[str], None]) -> None:
    """Write the packed weights of `model`, which was loaded from `source`, if the disk has room. The copy appears
    whole or not at all; a failure is no failure of the load."""
    need = loaded_gib(Path(source), 4, on_gpu=True)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        _drop_oldest(copy.parent, _COPIES - 1)
        free = shutil.disk_usage(copy.parent).free / _GIB
        if free < need + _FREE_GIB:
            log(f"The 4-bit weights are not kept for later loads: {free:.0f} GiB of disk are free.")
            return
        progress(Message("keeping_packed"), 0.0)
        began = time.monotonic()
        partial = copy.with_name(f".{copy.name}.{os.getpid()}.partial")
        try:
            model.save_pretrained(partial, max_shard_size="2GB")
            partial.rename(copy)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        log(
            f"Kept the 4-bit weights ({weights_gib(copy):.1f} GiB) for later loads in {copy},"
            f" which took {time.monotonic() - began:.0f} s."
        )
    except (OSError, RuntimeError, ValueError) as error:
        log(f"The 4-bit weights could not be kept for later loads: {' '.join(str(error).split())[:200]}")


def _drop_oldest(root: Path, count: int) -> None:
    """Leave the `count` copies that were used last, and nothing half-written by a process that is gone."""
    for partial in root.glob(".*.partial"):
        pid = partial.name.split(".")[-2]
        if not pid.isdigit() or not psutil.pid_exists(int(pid)):
            shutil.rmtree(partial, ignore_errors=True)
    copies = sorted((f for f in root.iterdir() if not f.name.startswith(".")), key=lambda f: -f.stat().st_mtime)
    for old in copies[count:]:
        shutil.rmtree(old, ignore_errors=True)
