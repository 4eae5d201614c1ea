"""Tensors of safetensors files, some rows at a time, in float32.

The files are read, not mapped: pages of a mapped file count as the process's memory, and a checkpoint is larger than
what an export should take.
"""

import os
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.models.anatomy.folder import tensors_of


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
            for name, (dtype, shape, begin) in tensors_of(path).items():
                if dtype not in self._dtypes:
                    raise UserError("gguf_dtype", name=name, dtype=dtype)
                self._places[name] = path, begin, dtype
                self.shapes[name] = tuple(shape)

    def place(self, name: str) -> tuple[Path, int, Any]:
        """The file that holds a tensor, where in it its first byte is, and its dtype."""
        path, begin, dtype = self._places[name]
        return path, begin, self._dtypes[dtype]

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
