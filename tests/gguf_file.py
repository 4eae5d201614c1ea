"""A reader of GGUF files for the tests, after the format's description (version 3); the package's own takes seconds for
a vocabulary."""

import struct
from pathlib import Path

import numpy as np
import torch

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32


class _Bytes:
    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def numbers(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def string(self) -> str:
        (length,) = self.numbers("Q")
        self.place += length
        return self.data[self.place - length : self.place].decode()

    def value(self, kind: int):
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.numbers("IQ")
            if kind in _NUMBERS:
                return list(self.numbers(f"{count}{_NUMBERS[kind]}"))
            return [self.value(kind) for _ in range(count)]
        return self.numbers(_NUMBERS[kind])[0]


def read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Fields, and tensors as float32 with torch's order of sizes. Tensors in other forms than F32, F16, Q8_0 are left
    out."""
    source = _Bytes(path.read_bytes())
    magic, version, tensors, fields = source.numbers("4sIQQ")
    assert (magic, version) == (b"GGUF", 3)
    values = {}
    for _ in range(fields):
        name, (kind,) = source.string(), source.numbers("I")
        values[name] = source.value(kind)
    entries = []
    for _ in range(tensors):
        name, (count,) = source.string(), source.numbers("I")
        entries.append((name, source.numbers(f"{count}Q")[::-1], *source.numbers("IQ")))
    begin = -(-source.place // _ALIGNMENT) * _ALIGNMENT
    return values, {
        name: _tensor(source.data, begin + offset, shape, kind)
        for name, shape, kind, offset in entries
        if kind in (0, 1, 8)
    }


def _tensor(data: bytes, place: int, shape: tuple[int, ...], kind: int) -> torch.Tensor:
    assert place % _ALIGNMENT == 0
    count = int(np.prod(shape))
    if kind == 8:  # blocks of one f16 scale and 32 whole numbers
        blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("values", "i1", 32)]), count // 32, place)
        numbers = blocks["scale"].astype(np.float32)[:, None] * blocks["values"].astype(np.float32)
    else:
        numbers = np.frombuffer(data, {0: "<f4", 1: "<f2"}[kind], count, place).astype(np.float32)
    return torch.from_numpy(numbers.reshape(shape).copy())
