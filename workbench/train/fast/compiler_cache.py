"""What earlier runs left for later ones with the same shapes: compiled code, and how much memory a step needs.

Both hold for one version of this project's code only: the compiler keys its results by the operators that a layer calls
and not by what these do, and the way back of our operators is part of the compiled code.
"""

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.storage.files import write_atomically
from workbench.storage.workspace import Workspace

_UNUSED_SECONDS = 14 * 24 * 3600
_PACKAGE = Path(__file__).parents[2]


def use_compiler_cache(workspace: Workspace) -> None:
    """Let torch, which is not imported yet, keep compiled code in the workspace, or below the folder that
    `TORCHINDUCTOR_CACHE_DIR` names. Of the workspace's folders those of other versions go when they were not used for
    two weeks."""
    own = workspace.cache / "compiled"
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or own) / _version()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    for other in own.glob("*"):
        if other != folder and time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _version() -> str:
    digest = hashlib.sha256()
    for folder in ("models", "train/fast"):
        for file in sorted((_PACKAGE / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory that a step takes whose layers are computed again.

    Attributes:
        standing: what the first step leaves behind, for all others.
        step: at its peak, beyond what is there before it.
        stored: what its layers store.
        kept: what a layer stores that keeps what it computes.
    """

    standing: int
    step: int
    stored: int
    kept: int


class Needs:
    """What was measured by earlier runs, by a key of everything that it depends on."""

    def __init__(self):
        self._file = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ".")) / "needs.json"

    def get(self, key: str) -> Need | None:
        """What was measured, if it was and can be read."""
        try:
            return Need(**{name: int(value) for name, value in self._read()[key].items()})
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def put(self, key: str, need: Need) -> None:
        """Keep it for later runs; a folder that cannot be written is no failure of the run."""
        try:
            write_atomically(self._file, json.dumps(self._read() | {key: asdict(need)}))
        except OSError:
            return

    def _read(self) -> dict:
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


def shape_key(model, *parts) -> str:
    """A key of the model's parameters, its config, and `parts`, which JSON or `repr` can show."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        digest.update(repr((name, tuple(parameter.shape), parameter.dtype, parameter.requires_grad)).encode())
        digest.update(repr((tuple(state.shape), state.dtype) if state is not None else ()).encode())
    config = getattr(model, "config", None)
    known = config.to_dict() if hasattr(config, "to_dict") else {}
    known.pop("_name_or_path", None)
    digest.update(json.dumps(known, sort_keys=True, default=repr).encode())
    digest.update(repr((torch.__version__, torch.cuda.get_device_name(), parts)).encode())
    return digest.hexdigest()
