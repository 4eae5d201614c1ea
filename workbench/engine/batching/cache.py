"""The keys and values of all sequences, in pages, as a cache of transformers.

A model's attention calls `update` with the keys and values of its new tokens and gets those of the whole sequences
back, whatever they are: heads of keys and values, or latents (multi-head latent attention). Where to write and what to
read comes as tensors of fixed shapes (`View`), so that a step of the same shape can be a recording.
"""

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from transformers import Cache


@dataclass
class View:
    """What the next forward pass writes and reads.

    `write` [rows · length]: the place (page · size + offset) of every new token. `table` [rows, pages]: the pages of
    each row, filled up with the blank one. `run`: the first page where a single row's pages follow one another, so
    that nothing has to be gathered; else None. `tokens`: of such a row, how many to read (0: all of its pages).
    `in_place`: attention reads the pools themselves, so `update` gives these.
    """

    write: Tensor
    table: Tensor
    run: int | None = None
    tokens: int = 0
    in_place: bool = False


class PagedCache(Cache):
    """Pools of pages, one pair a layer, made as the layers ask for them.

    On a GPU the pools of `alike` layers lie in one tensor, so that a new page is cleared at once in all of them."""

    def __init__(self, pages: int, size: int, alike: int = 0):
        super().__init__(layers=[])
        self.pages, self.size, self.alike = pages, size, alike
        self._stacks: list[Tensor] = []  # of keys and of values, [layers, heads, pages, size, d]
        self.view: View | None = None
        self._pools: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: dict[torch.device, tuple[View, Tensor, Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Of all layers that were used so far."""
        return sum(pool.nbytes for pair in self._pools.values() for pool in pair) // (self.pages * self.size)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [rows, heads, length, d] of the new tokens; returns those of the rows' pages, [rows,
        heads, pages · size, d]."""
        if layer_idx not in self._pools:
            self._pools[layer_idx] = self._pool(key_states, 0), self._pool(value_states, 1)
        view, write, table = self._on(key_states.device)
        found = []
        for pool, new in zip(self._pools[layer_idx], (key_states, value_states), strict=True):
            heads, width = pool.shape[0], pool.shape[-1]
            flat = pool.view(heads, -1, width)
            flat.index_copy_(1, write, new.transpose(0, 1).reshape(heads, -1, width))
            if view.in_place:
                found.append(pool)
                continue
            rows, pages = table.shape
            if view.run is not None:
                first = view.run * self.size
                read = flat[None, :, first : first + (view.tokens or pages * self.size)]
            else:
                read = pool.index_select(1, table.flatten()).view(heads, rows, pages * self.size, width).transpose(0, 1)
            found.append(read)
        return found[0], found[1]

    def pools(self, layer_idx: int) -> tuple[Tensor, Tensor] | None:
        """A layer's pools [heads, pages, size, d], None before its first use."""
        return self._pools.get(layer_idx)

    def clear(self, pages: list[int]) -> None:
        """Zeros, so that what an earlier sequence left (infinities of 16 bits among it) cannot reach a later one."""
        for pools in self._stacks or [pool for pair in self._pools.values() for pool in pair]:
            if len(pages) == 1:
                pools[..., pages[0], :, :] = 0
            else:
                pools[..., torch.tensor(pages, device=pools.device), :, :] = 0

    def copy(self, source: int, target: int) -> None:
        """One page to another."""
        for pools in self._stacks or [pool for pair in self._pools.values() for pool in pair]:
            pools[..., target, :, :] = pools[..., source, :, :]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # rows differ: positions are always given

    def grow(self, pages: int) -> None:
        """Have `pages` pages from now on; what is in the others stays. Addresses change.

        Raises:
            torch.OutOfMemoryError: there is no room for more; nothing has changed then.
        """
        larger: list[Tensor] = []
        for old in self._stacks or [pool for pair in self._pools.values() for pool in pair]:
            new = old.new_zeros((*old.shape[:-3], pages, *old.shape[-2:]))
            new[..., : self.pages, :, :] = old
            larger.append(new)
        if self._stacks:
            self._stacks = larger
            numbers = {layer: number for number, layer in enumerate(self._pools)}
            self._pools = {layer: (larger[0][n], larger[1][n]) for layer, n in numbers.items()}
        else:
            self._pools = {layer: (larger[2 * n], larger[2 * n + 1]) for n, layer in enumerate(self._pools)}
        self.pages = pages

    @property
    def same(self) -> int:
        """How many layers have pools, if all have the same; else 0."""
        kinds = {tuple((p.shape, p.dtype, p.device) for p in pair) for pair in self._pools.values()}
        return len(self._pools) if len(kinds) == 1 else 0

    def _pool(self, like: Tensor, kind: int) -> Tensor:
        shape = like.shape[1], self.pages, self.size, like.shape[-1]
        if like.device.type == "cpu" and like.dtype is torch.float32:
            return torch.from_numpy(numpy.zeros(shape, numpy.float32))  # takes memory when it is written
        if like.device.type == "cuda" and len(self._pools) < self.alike:
            if len(self._stacks) == kind:
                self._stacks.append(torch.zeros((self.alike, *shape), dtype=like.dtype, device=like.device))
            return self._stacks[kind][len(self._pools)]
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def _on(self, device: torch.device) -> tuple[View, Tensor, Tensor]:
        """The view with its tensors on this device: layers may be on several."""
        known = self._places.get(device)
        if known is None or known[0] is not self.view:
            known = self._places[device] = self.view, self.view.write.to(device), self.view.table.to(device)
        return known
