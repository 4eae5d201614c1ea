"""Writing a GGUF: the header at once, then tensor by tensor, in pieces of some megabytes.

Pieces are read in order, converted by a few threads, and written in order. torch's own threads are left out meanwhile:
they wait for each other busily, which costs most of the time where other programs use the cores, too.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from workbench.messages.message import Message
from workbench.models.demo import Progress
from workbench.models.gguf.architectures import Target, permuted
from workbench.models.gguf.encoding import BLOCK, bytes_of, encode

_PIECE = 4 << 20  # numbers that are worked on at a time
_THREADS = min(4, os.cpu_count() or 1)
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
        with _one_thread_each(), ThreadPoolExecutor(_THREADS) as pool:
            for encoded, last in _in_order(planned, rows, pool):
                data = encoded.result()
                file.write(memoryview(data))
                done += data.nbytes
                progress(phase, done / total)
                if last:
                    writer.write_padding(file, bytes_of(*last))
        assert done == size_of(planned)
        file.flush()
    finally:
        writer.close()


def _in_order(planned, rows: Rows, pool: ThreadPoolExecutor) -> Iterator[tuple[Future, tuple | None]]:
    """The pieces of all tensors as bytes to come, a few ahead; with a tensor's last, its shape and kind."""
    ahead: deque[tuple[Future, tuple | None]] = deque()
    for target, kind in planned:
        parts = pieces(target, rows)
        part = next(parts)
        while part is not None:
            following = next(parts, None)
            last = None if following is not None else (target.shape, kind)
            ahead.append((pool.submit(encode, part, kind, target.name), last))
            part = following
            if len(ahead) > _THREADS:
                yield ahead.popleft()
    yield from ahead


@contextlib.contextmanager
def _one_thread_each():
    """torch computes on the thread that asks, inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
