"""A merged model without loading it: the base's files are copied as they are, and the tensors that adapters change are
written over, some rows at a time.

Names, shards and precision stay the base's; what no adapter touches stays to the bit. It takes as much memory as a few
rows of one tensor.
"""

from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress
from workbench.models.export.source import read_json
from workbench.models.export.target import check_room
from workbench.models.gguf.adapters import Adapter, Merged
from workbench.models.gguf.tensors import Tensors
from workbench.models.integrity import check_shards

_PIECE = 8 << 20  # numbers that are worked on at a time
_COPIED = 16 << 20  # bytes
# of adapters and files that only the libraries themselves can merge
_BEYOND = ("gguf_adapter_kind", "gguf_adapter_part", "gguf_dtype")


class InPlace:
    """A merge that is known to work out: `write` does it."""

    def __init__(self, files: list[Path], base: Tensors, merged: Merged):
        self.files, self.base, self.merged = files, base, merged
        self.changed = [n for n in base.shapes if any(adapter.changes(n) for adapter in merged.adapters)]

    @classmethod
    def plan(cls, source: Path, adapters: dict[Path, float]) -> "InPlace | None":
        """How to merge adapters of these folders and weights; None where the model has to be loaded for that: adapters
        of other kinds than LoRA, or a checkpoint whose tensors are named otherwise than the model's.

        Raises:
            UserError: an adapter does not fit, or they cannot be added up; the base's files are not whole.
        """
        files = check_shards(source)
        if not files:
            return None
        try:
            base = Tensors(files)
            found = [Adapter(folder, weight, base.shapes, _experts(source)) for folder, weight in adapters.items()]
        except UserError as error:
            unnamed = error.message.code == "adapter_unfit" and str(error.message.values["problem"]).endswith("–")
            if error.message.code in _BEYOND or unnamed:
                return None
            raise
        return cls(files, base, Merged(base, found))

    def write(self, folder: Path, progress: Progress) -> None:
        """Write the weights into a folder.

        Raises:
            OSError: of the disk.
            UserError: it has no room, or a merged tensor has numbers that its precision cannot hold.
        """
        size = sum(file.stat().st_size for file in self.files)
        check_room(size, folder)
        numbers = {name: _count(self.base.shapes[name]) for name in self.changed}
        done, total, phase = 0, size + 4 * sum(numbers.values()), Message("export_writing")
        for file in self.files:
            with open(file, "rb") as read, open(folder / file.name, "wb") as written:
                while part := read.read(_COPIED):
                    written.write(part)
                    done += len(part)
                    progress(phase, done / total)
        for name in self.changed:
            path, begin, dtype = self.base.place(name)
            rows, width = self.base.shapes[name][0], numbers[name] // max(1, self.base.shapes[name][0])
            step = max(1, _PIECE // max(1, width))
            with open(folder / path.name, "r+b") as opened:
                opened.seek(begin)
                for start in range(0, rows, step):
                    piece = self.merged.rows(name, start, min(rows, start + step)).to(dtype)
                    if not piece.isfinite().all():
                        raise UserError("export_not_finite", name=name)
                    opened.write(_bytes(piece))
                    done += 4 * piece.numel()
                    progress(phase, done / total)


def _experts(source: Path) -> int:
    """Routed experts of a layer, by the names that configs have for them."""
    config = read_json(source / "config.json")
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _bytes(tensor) -> bytes:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
