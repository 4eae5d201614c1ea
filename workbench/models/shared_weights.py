"""Weights of the decoder layers divided among the processes of a training, as fully sharded data parallel has them.

Of each layer's frozen matrices every process keeps its share of the bytes on its device. Before a layer is computed,
all processes gather it into a slot (`host_weights.py`, from which it differs only in where the bytes come from). Frozen
weights have no gradients, so that nothing goes back. torch's own FSDP2 shards parameters of floating dtypes only, and
accelerate leaves packed 4-bit weights out of it.

All processes must gather the same layers in the same order: they make as many passes as each other, also where one has
nothing left to compute.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench.models.cost.placement import SHARED_SLOTS
from workbench.models.host_weights import HostWeights, Part

_PATIENCE = timedelta(hours=12)  # as that of the processes' other groups: a dead one is noticed by the supervisor


class SharedWeights(HostWeights):
    """The weights of one model of which this process has a share. `bytes` and `bandwidth` are of whole layers;
    `own_bytes`: what this process keeps of them."""

    shared = True
    at_once = SHARED_SLOTS

    def __init__(self, layers: list[nn.Module], device: torch.device, slots: int = 0, laid_out=None):
        # of its own, so that gathers do not wait behind sums of gradients
        self._group = dist.new_group(timeout=_PATIENCE)
        self._number, self._count = dist.get_rank(), dist.get_world_size()
        super().__init__(layers, device, slots, laid_out)

    @property
    def own_bytes(self) -> int:
        return self.bytes // self._count

    def _rounded(self, size: int) -> int:
        return super()._rounded(-(-size // self._count)) * self._count

    def _fill(self, target: Tensor, source: Tensor) -> None:
        dist.all_gather_into_tensor(target, source, group=self._group)

    def _kept(self, parts: list[Part], size: int) -> Tensor:
        whole, own = torch.zeros(size, dtype=torch.uint8), size // self._count
        for part in parts:
            part.take_into(whole)
        return whole[self._number * own : (self._number + 1) * own].to(self.device, copy=True)
