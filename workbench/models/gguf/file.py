"""Writing a GGUF: the header at once, then tensor by tensor, in pieces of some megabytes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.messages.message import Message
from workbench.models.demo import Progress
from workbench.models.gguf.architectures import Target, permuted
from workbench.models.gguf.encoding import BLOCK, bytes_of, encode

_PIECE = 16 << 20  # numbers that are worked on at a time
Rows = Callable[..., Any]  # (name, start, stop) -> float32 rows


def kind_of(target: Target, wanted: str) -> str:
    """`F32`, `F16` or `Q8_0` for a tensor of a file that is to be `wanted`: vectors and routers stay exact, and rows
    that are no whole number of blocks stay f16."""
    if not target.wide:
        return "F32"
    return "F16" if wanted == "Q8_0" and target.shape[-1] % BLOCK else wanted


def plan(targets: list[Target], wanted: str) -> list[tuple[Target, str]]:
    return [(target, kind_of(target, wanted)) for target in targets]


def size_of(planned: list[tuple[Target, str]]) -> int:
    """Bytes of the tensors."""
    return sum(bytes_of(target.shape, kind) for target, kind in planned)


def write(writer: Any, path: Path, planned: list[tuple[Target, str]], rows: Rows, progress: Progress) -> None:
    """Write what has been told to a GGUFWriter and then the tensors.

    Raises:
        OSError: of the disk.
        UserError: a number that the format cannot hold.
    """
    import gguf
    import numpy as np

    for target, kind in planned:
        number = gguf.GGMLQuantizationType[kind]
        count = bytes_of(target.shape, kind)
        writer.add_tensor_info(target.name, target.shape, np.dtype(np.float32), count, raw_dtype=number)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        writer.write_padding(file, file.tell())
        done, total, phase = 0, max(1, size_of(planned)), Message("gguf_writing")
        for target, kind in planned:
            count = 0
            for piece in pieces(target, rows):
                encoded = encode(piece, kind, target.name)
                file.write(memoryview(encoded))
                count += encoded.nbytes
                progress(phase, (done + count) / total)
            assert count == bytes_of(target.shape, kind), target.name
            writer.write_padding(file, count)
            done += count
        file.flush()
    finally:
        writer.close()


def pieces(target: Target, rows: Rows) -> Iterator[Any]:
    """The numbers of a tensor in their order, float32, a part at a time."""
    if target.form == "rows" and not target.sources:
        yield rows(target.name)
    elif target.form == "rows":
        width = 1
        for size in target.shape[1:]:
            width *= size
        step = max(1, _PIECE // width)
        for start in range(0, target.shape[0], step):
            yield rows(target.sources[0], start, min(start + step, target.shape[0]))
    elif target.form == "permuted":
        yield permuted(rows(target.sources[0]), target.heads)
    elif target.form == "experts":
        for source in target.sources:
            yield rows(source)
    else:  # halves of the latent's up-projection
        whole = rows(target.sources[0])
        by_head = whole.reshape(target.heads, -1, whole.shape[-1])
        keys = target.shape[2] if target.form == "keys" else by_head.shape[1] - target.shape[1]
        yield by_head[:, :keys].transpose(1, 2) if target.form == "keys" else by_head[:, keys:]
