"""Tensors of safetensors files, some rows at a time, in float32.

The files are read, not mapped: pages of a mapped file count as the process's memory, and a checkpoint is larger than
what an export should take.
"""

import json
import os
from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

_MAX_HEADER = 256 << 20  # bytes
_AGAIN = Message("weights_again")


class Tensors:
    """All tensors of some safetensors files, by name."""

    def __init__(self, paths: list[Path]):
        """Read the headers.

        Raises:
            UserError: a header that cannot be read, or weights in a form that is no plain number (4-bit, FP8 …).
        """
        import torch

        self._dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
        self._places: dict[str, tuple[Path, int, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            for name, entry in _header(path).items():
                if entry["dtype"] not in self._dtypes:
                    raise UserError("gguf_dtype", name=name, dtype=entry["dtype"])
                self._places[name] = path, entry["begin"], entry["dtype"]
                self.shapes[name] = tuple(entry["shape"])

    def rows(self, name: str, start: int = 0, stop: int | None = None):
        """Rows `start` to `stop` of a tensor as float32 (of a vector: elements). Raises UserError: the file is cut."""
        import torch

        path, begin, dtype = self._places[name]
        shape = self.shapes[name]
        stop = shape[0] if stop is None else stop
        row = 1
        for size in shape[1:]:
            row *= size
        width = row * self._dtypes[dtype].itemsize
        data = bytearray((stop - start) * width)
        view, place = memoryview(data), begin + start * width
        with open(path, "rb", buffering=0) as file:
            file.seek(place)
            while view and (count := file.readinto(view)):
                view = view[count:]
            os.posix_fadvise(file.fileno(), place, len(data), os.POSIX_FADV_DONTNEED)  # it is read once
        if view:
            raise UserError("gguf_file_cut", file=path, name=name)
        if not data:
            return torch.empty((stop - start, *shape[1:]))
        return torch.frombuffer(data, dtype=self._dtypes[dtype]).float().reshape(stop - start, *shape[1:])


def _header(path: Path) -> dict[str, dict]:
    """Name -> dtype, shape and the place of the first byte, of a safetensors file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise ValueError(length)
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        end, size = max((entry["data_offsets"][1] for entry in entries.values()), default=0), path.stat().st_size
        if 8 + length + end > size:
            raise UserError("gguf_shard_short", file=path, size=size, wanted=8 + length + end, advice=_AGAIN)
        return {
            name: {"dtype": entry["dtype"], "shape": entry["shape"], "begin": 8 + length + entry["data_offsets"][0]}
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError("gguf_weights_unreadable", file=path, problem=str(error)[:200]) from None


def checkpoint_files(folder: Path) -> list[Path]:
    """The weight files of a model folder. Raises UserError: there are none, or some are missing."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(files.read_object(index)["weight_map"].values()))
            if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise UserError("weight_file_name")
        except (UserError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError("index_broken", file=index, problem=error, advice=_AGAIN) from None
    elif not (folder / names[0]).is_file():
        raise UserError("gguf_no_weights", folder=folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            "shards_missing", folder=folder, count=len(missing), total=len(names), names=missing[:3], advice=_AGAIN
        )
    return [folder / name for name in names]
