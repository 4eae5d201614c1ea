"""Where the weights of a model's layers are: on the card, in host memory, from where they stream, or divided among the
devices that train together (`weights_on`).

What comes and goes is what `models/host_weights.py` lays out: the matrices of the layers but for routers. On the card
stay the rest, a few slots of the size of the largest layer, and this device's share of what is divided.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

from workbench.errors import UserError
from workbench.models.anatomy.shapes import Weight
from workbench.models.anatomy.units import memory
from workbench.models.cost.weights import Loaded

SLOTS = 3  # layers on the card: one is computed, the others are on their way
SHARED_SLOTS = 2  # the same where they come from other cards, which is quick
LINK = 25e9  # bytes a second to a card, assumed where none was measured: PCIe 4.0 with 16 lanes
BESIDE = 6 << 30  # bytes of host memory beside the weights: the process, tokens, files that are read


@dataclass(frozen=True)
class Streamed:
    """Bytes: `host` of all streamed weights, `slots` of what is on the card for them, `stays` of the other weights,
    `share` of the streamed ones that this card keeps."""

    host: int
    slots: int
    stays: int
    share: int = 0

    @property
    def here(self) -> int:
        """On the card."""
        return self.stays + self.slots + self.share


def streams(weight: Weight) -> bool:
    """Whether this weight of a layer is streamed."""
    return weight.linear and len(weight.shape) >= 2 and weight.component != "router"


def streamed(loaded: Loaded, devices: int = 0, ends: bool = False) -> Streamed:
    """How a model's weights are divided.

    Args:
        devices: that share them; 0 if they are in host memory.
        ends: embedding and output head are divided, too, and gathered over the slots.
    """
    anatomy, host, largest = loaded.anatomy, 0, 0
    for layer in anatomy.layers:
        own = sum(loaded.of(weight) for weight in layer.weights if streams(weight))
        host += own * len(layer.numbers)
        largest = max(largest, own)
    stays = loaded.bytes.total - host
    slots = SHARED_SLOTS if devices else SLOTS
    taken = largest * min(slots, anatomy.sizes.layers)
    share = -(-host // devices) if devices else 0
    if devices and ends:
        tables = [loaded.of(weight) for weight in anatomy.outside if weight.component in ("embedding", "head")]
        more, part = max(0, max(tables) - taken), -(-sum(tables) // devices)
        if more + part <= sum(tables):  # else they stay whole (`models/shared_weights.py`)
            taken, stays, share = taken + more, stays - sum(tables), share + part
    return Streamed(host, taken, stays, share)


def divides_ends(config) -> bool:
    """Whether a run that divides its weights divides embedding and output head as well: nothing trains them."""
    return config.weights_on == "shared" and not (config.additional_target or config.new_tokens)


def free_host() -> int:
    """Bytes of host memory that this process may still take; files in the page cache count as free."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, taken = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if limit.isdigit():
            free = min(free, int(limit) - taken + int(kept.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    return max(0, free)


def packing_bytes(loaded: Loaded) -> int:
    """Bytes of host memory while the largest weight is put together, in 16 bits, of the parts that are in the files."""
    streaming = (w for layer in loaded.anatomy.layers for w in layer.weights if streams(w) and loaded.packed(w))
    return 2 * max((2 * weight.count for weight in streaming), default=0)


def check_host(need: int, packing: int = 0, free: int | None = None) -> None:
    """Raise UserError where the host has no room for so many bytes of weights, and for what else a process takes.

    Args:
        packing: bytes that are there for a while in loading.
        free: bytes; as many as are free now if not given.
    """
    free = free_host() if free is None else free
    need += min(need, max(BESIDE, packing))
    if need > free:
        raise UserError("host_memory_small", need=memory(need), free=memory(free))
