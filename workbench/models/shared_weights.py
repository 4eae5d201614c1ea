"""Weights of the decoder layers divided among the processes of a training, as fully sharded data parallel has them.

Of each layer's frozen matrices every process keeps its share of the bytes on its device. Before a layer is computed,
all processes gather it into a slot (`host_weights.py`, from which it differs only in where the bytes come from). Frozen
weights have no gradients, so that nothing goes back. torch's own FSDP2 shards parameters of floating dtypes only, and
accelerate leaves packed 4-bit weights out of it.

The embedding and the output head, its ends, are needed once in a pass, before all layers and after them: they are
gathered over the slots of layers, which lie one after the other.

All processes must gather the same in the same order: they make as many passes as each other, also where one has nothing
left to compute.
"""

import functools
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench.models.cost.placement import SHARED_SLOTS
from workbench.models.host_weights import HostWeights, Part
from workbench.models.quantized.experts import experts_in_halves
from workbench.models.quantized.weights import is_packed

_PATIENCE = timedelta(hours=12)  # as that of the processes' other groups: a dead one is noticed by the supervisor


class SharedWeights(HostWeights):
    """The weights of one model of which this process has a share. `bytes` and `bandwidth` are of whole layers;
    `own_bytes`: what this process keeps of them and of the ends.

    Args:
        ends: modules with one frozen matrix, `weight`, two may share one: embedding and output head. They stay whole
            where that takes less memory than slots as large as they are.
    """

    shared = True
    at_once = SHARED_SLOTS

    def __init__(self, layers: list[nn.Module], device: torch.device, slots: int = 0, laid_out=None, ends=()):
        # of its own, so that gathers do not wait behind sums of gradients
        self._group = dist.new_group(timeout=_PATIENCE)
        self._number, self._count = dist.get_rank(), dist.get_world_size()
        self._ends: list[tuple[Tensor, int]] = []  # of each what is kept here, and bytes when it is whole
        self._end: int | None = None  # which is there
        self._matrices = list({id(module.weight): module.weight for module in ends}.values())
        super().__init__(layers, device, slots, laid_out)
        for layer in layers:
            experts_in_halves(layer)
        for number, weight in enumerate(self._matrices):
            part = Part(weight.data, 0, lambda view, weight=weight: setattr(weight, "data", view))
            size = self._rounded(part.size)
            self._ends.append((self._kept([part], size), size))
            part.put(part.view(self._stretch))
            for module in (one for one in ends if one.weight is weight):
                module.bring = functools.partial(self._bring, number)
                module.register_forward_pre_hook(lambda module, args: module.bring())
        self._matrices = []

    @property
    def own_bytes(self) -> int:
        return (self.bytes + sum(size for _, size in self._ends)) // self._count

    def _slots_memory(self) -> list[Tensor]:
        whole = [self._rounded(weight.numel() * weight.element_size()) for weight in self._matrices]
        size = self.slots * self.slot_bytes
        if max([size, *whole]) - size + sum(whole) / self._count > sum(whole):
            self._matrices, whole = [], []
        self._stretch = torch.empty(max([size, *whole]), dtype=torch.uint8, device=self.device)
        return list(self._stretch[:size].split(self.slot_bytes))

    def _fetch(self, number: int) -> None:
        self._end = None
        super()._fetch(number)

    def _bring(self, number: int) -> None:
        """The computation that follows finds this end where layers were."""
        if self._end != number:
            own, size = self._ends[number]
            self.copies.start(0, self._stretch[:size], own)
            self._holds, self._end = [None] * self.slots, number
        self.copies.wait(0)

    def _rounded(self, size: int) -> int:
        return super()._rounded(-(-size // self._count)) * self._count

    def _fill(self, target: Tensor, source: Tensor) -> None:
        dist.all_gather_into_tensor(target, source, group=self._group)

    def _kept(self, parts: list[Part], size: int) -> Tensor:
        whole, own = torch.zeros(size, dtype=torch.uint8), size // self._count
        for part in parts:
            part.take_into(whole)
        return whole[self._number * own : (self._number + 1) * own].to(self.device, copy=True)


def ends_of(model: nn.Module) -> list[nn.Module]:
    """Embedding and output head, where each is one matrix."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return [end for end in ends if isinstance(end, nn.Embedding | nn.Linear) and not is_packed(end.weight)]
