"""The conversations of an optimizer step, laid end to end and cut into micro-batches of few sizes.

The rows of a step are known before it starts, and its loss is the sum over trained tokens divided by their number. So
its micro-batches may be cut by tokens instead of by rows: no conversation is split, none sees another
(`models/attention.py`), and its positions are counted from 0. The gradients of a step are those of padded rows.

A recorded step has fixed shapes. So micro-batches come in a few sizes, chosen beforehand such that steps of the
dataset's lengths need little padding.
"""

import functools
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
_GRAIN = 128  # sizes are multiples of this
_STEPS = 400  # drawn to choose sizes from
_PIECES = 4  # micro-batches that are chosen together; of longer steps the first ones are of the largest size


@dataclass(frozen=True)
class Conversation:
    """Token ids and labels [n]; the first label is never trained. `share` of a step's conversation-wise losses.

    Of preferences: `reference`, the log-probability of its answer under the reference model, and whether that is
    `wanted`.
    """

    ids: np.ndarray
    labels: np.ndarray
    share: float
    reference: float = 0.0
    wanted: bool = True

    def __len__(self) -> int:
        return len(self.ids)


class RowBatch:
    """What the collator makes of the rows of one batch; a class of its own, so that accelerate moves it nowhere."""

    def __init__(self, examples: Sequence[dict]):
        self.rows = len(examples)
        self.parts = [part for example in examples for part in _conversations_of(example) if len(part)]
        self.trained = sum(int((part.labels != IGNORE).sum()) for part in self.parts)
        self.tokens = sum(len(part) for part in self.parts)


def _conversations_of(example: dict) -> list[Conversation]:
    """The conversations of a row; a packed one and one of a preference have several."""
    ids, labels = (np.asarray(example[name], dtype=np.int64) for name in ("input_ids", "labels"))
    ends = np.cumsum(example.get("seq_lengths") or [len(ids)])
    references = example.get("references") or [0.0] * len(ends)
    parts = []
    for start, end, reference in zip([0, *ends[:-1]], ends, references, strict=True):
        trained = labels[start:end].copy()
        trained[:1] = IGNORE
        parts.append(Conversation(ids[start:end], trained, 0.0, reference, example.get("wanted", True)))
    return parts


def collate(examples: Sequence[dict]) -> dict:
    """A collator for `torch.utils.data.DataLoader`: the rows as they are, on the CPU."""
    return {"rows": RowBatch(examples)}


def conversations(batches: Sequence[RowBatch]) -> list[Conversation]:
    """Those of a step. Micro-batches count alike in its conversation-wise losses, as with padded rows."""
    return [replace(part, share=1 / (len(batches) * len(batch.parts))) for batch in batches for part in batch.parts]


def shared_out(step: Sequence[Conversation], processes: int, together: int = 1) -> list[list[Conversation]]:
    """The conversations of a step for each process: units of `together` conversations go, the longest first, to the
    process that has the fewest tokens yet. A process may get none."""
    units = [step[at : at + together] for at in range(0, len(step), together)]
    tokens = [sum(map(len, unit)) for unit in units]
    given: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for unit in sorted(range(len(units)), key=lambda i: -tokens[i]):
        least = loads.index(min(loads))
        given[least].append(unit)
        loads[least] += tokens[unit]
    return [[part for unit in sorted(own) for part in units[unit]] for own in given]


@dataclass(frozen=True)
class Shapes:
    """The shapes that micro-batches may have.

    Attributes:
        sizes: tokens of a micro-batch, ascending; the largest is the budget. With `exact`, a micro-batch has as many
            tokens as its conversations and none for padding.
        most: conversations in one at the most.
        longest: tokens of a conversation, or of a piece of padding, at the most.
        overhead: what a micro-batch costs beside its tokens, in tokens.
        together: conversations that must be in one micro-batch, since their loss is a joint one.
    """

    sizes: tuple[int, ...]
    most: int
    longest: int
    overhead: int = 0
    exact: bool = False
    together: int = 1

    @property
    def slots(self) -> int:
        """Conversations and pieces of padding that the bounds have room for."""
        return self.most + math.ceil(self.sizes[-1] / self.longest)

    def cut(self, lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
        """`(size, places in lengths)` of each micro-batch; lengths of conversations, or of those that stay together.

        Raises:
            ValueError: one is longer than the largest size.
        """
        most = self.most // self.together
        if max(lengths, default=0) > self.sizes[-1]:
            raise ValueError(f"A row of {max(lengths)} tokens is longer than the budget of {self.sizes[-1]} tokens.")
        rest = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        done = []
        while rest:
            total = sum(lengths[i] for i in rest)
            if total <= self.sizes[-1] * (_PIECES - 1):
                for sizes in _combinations(self.sizes, self.overhead):
                    if sum(sizes) >= total and (bins := _fitted(rest, lengths, sizes, most)) is not None:
                        pairs = zip(sizes, bins, strict=True)
                        return done + [(size, sorted(places)) for size, places in pairs if places]
            first, rest = _filled(rest, lengths, self.sizes[-1], most)
            size = next(size for size in self.sizes if size >= sum(lengths[i] for i in first))
            done.append((size, sorted(first)))
        return done

    def micro_batches(self, step: Sequence[Conversation], sized: int = 0) -> list[dict[str, Tensor]]:
        """Tensors on the CPU: `input_ids`, `labels`, `position_ids` [1, size], `bounds` [slots + 1] int32; for
        conversation-wise losses `segments` [size], the number of each token's conversation, `most` for padding, and
        `shares` [most]; for preferences `references` [most] and `wanted` [most].

        Args:
            sized: the size of all, if not as few tokens as possible.
        """
        made = []
        units = [step[at : at + self.together] for at in range(0, len(step), self.together)]
        for size, places in self.cut([sum(map(len, unit)) for unit in units]):
            made.append(self.joined([part for place in places for part in units[place]], sized or size))
        return made

    def joined(self, parts: Sequence[Conversation], size: int) -> dict[str, Tensor]:
        """One micro-batch of these conversations."""
        lengths = [len(part) for part in parts]
        total = sum(lengths)
        size, most, slots = (total, len(parts), len(parts)) if self.exact else (size, self.most, self.slots)
        padding = size - total
        pieces = [min(self.longest, padding - at) for at in range(0, padding, self.longest)]
        ids, labels = np.zeros(size, np.int64), np.full(size, IGNORE, np.int64)
        segments, shares = np.full(size, most, np.int64), np.zeros(most, np.float32)
        np.concatenate([part.ids for part in parts] or [ids[:0]], out=ids[:total])
        np.concatenate([part.labels for part in parts] or [labels[:0]], out=labels[:total])
        segments[:total] = np.repeat(np.arange(len(parts)), lengths)
        shares[: len(parts)] = [part.share for part in parts]
        places = np.concatenate([np.arange(length) for length in [*lengths, *pieces]])
        bounds = np.full(slots + 1, size, np.int32)
        bounds[: len(lengths) + len(pieces) + 1] = [0, *itertools.accumulate([*lengths, *pieces])]
        answers = {}
        if self.together > 1:
            references, wanted = np.zeros(most, np.float32), np.zeros(most, np.float32)
            references[: len(parts)] = [part.reference for part in parts]
            wanted[: len(parts)] = [part.wanted for part in parts]
            answers = {"references": torch.from_numpy(references), "wanted": torch.from_numpy(wanted)}
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "labels": torch.from_numpy(labels)[None],
            "position_ids": torch.from_numpy(places)[None],
            "bounds": torch.from_numpy(bounds),
            "segments": torch.from_numpy(segments),
            "shares": torch.from_numpy(shares),
            **answers,
        }


@functools.cache
def _combinations(sizes: tuple[int, ...], overhead: int) -> list[tuple[int, ...]]:
    """Every choice of up to `_PIECES` sizes, descending in itself, the cheapest first."""
    found = [
        chosen
        for count in range(1, _PIECES + 1)
        for chosen in itertools.combinations_with_replacement(sizes[::-1], count)
    ]
    return sorted(found, key=lambda chosen: (sum(chosen) + overhead * len(chosen), len(chosen)))


def _fitted(places: list[int], lengths: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]] | None:
    """`places` (longest first), each in the first bin with room; None if one has none."""
    room, bins = list(sizes), [[] for _ in sizes]
    for place in places:
        for i, left in enumerate(room):
            if left >= lengths[place] and len(bins[i]) < most:
                bins[i].append(place)
                room[i] -= lengths[place]
                break
        else:
            return None
    return bins


def _filled(places: list[int], lengths: Sequence[int], size: int, most: int) -> tuple[list[int], list[int]]:
    """`(taken, left)`: a bin of this size filled with the longest that still fit."""
    taken, left = [], []
    for place in places:
        if lengths[place] <= size and len(taken) < most:
            taken.append(place)
            size -= lengths[place]
        else:
            left.append(place)
    return taken, left


def exact_shapes(lengths: Sequence[int], budget: int, together: int = 1) -> Shapes:
    """Micro-batches of up to `budget` tokens without padding; lengths of all conversations, or of those that stay
    together."""
    longest = max(lengths)
    most = max(budget, longest) * together
    return Shapes((max(budget, longest),), most=most, longest=longest, exact=True, together=together)


def chosen_shapes(
    lengths: Sequence[int],
    per_step: int,
    budget: int,
    overhead: int,
    count: int = 6,
    seed: int = 0,
    together: int = 1,
) -> Shapes:
    """Up to `count` sizes for which steps of `per_step` conversations drawn from `lengths` cost the least.

    Args:
        lengths: tokens of the dataset's conversations, or of those that stay together (`per_step` counts the same).
        budget: tokens of a micro-batch at the most; a single conversation may be longer.
        overhead: what a micro-batch costs beside its tokens, in tokens.
    """
    longest = _rounded(max(lengths))
    generator = random.Random(seed)
    per_step = max(1, per_step)
    totals = [sum(generator.choices(lengths, k=per_step)) for _ in range(_STEPS)]
    bound = sum(sorted(lengths, reverse=True)[:per_step]) if len(lengths) > per_step else sum(lengths)
    largest = _rounded(max(longest, min(max(budget, max(lengths)), bound)))
    grain = max(_GRAIN, _rounded(largest // 32))
    candidates = sorted({_rounded(size) for size in range(grain, largest, grain)})
    sizes = (largest,)
    cost = _mean_cost(totals, sizes, overhead)
    while len(sizes) < count and candidates:
        tried = [(_mean_cost(totals, tuple(sorted((*sizes, size))), overhead), size) for size in candidates]
        best, size = min(tried)
        if best > 0.994 * cost:
            break
        sizes, cost = tuple(sorted((*sizes, size))), best
        candidates.remove(size)
    mean = max(1, sum(lengths) // len(lengths))
    most = min(per_step, 2 * math.ceil(largest / mean) + 8) * together
    return Shapes(sizes, most=most, longest=longest, overhead=overhead, together=together)


def _rounded(size: int) -> int:
    return -(-int(size) // _GRAIN) * _GRAIN


def _mean_cost(totals: Sequence[int], sizes: tuple[int, ...], overhead: int) -> float:
    """Tokens that steps of these totals cost, padding and overhead included, if conversations could be split."""
    top = -(-max(totals) // _GRAIN)
    units = [(size // _GRAIN, size + overhead) for size in sizes]
    least = np.zeros(top + 1)
    for at in range(1, top + 1):
        least[at] = min(least[max(0, at - unit)] + cost for unit, cost in units)
    return float(np.mean([least[-(-total // _GRAIN)] for total in totals]))
