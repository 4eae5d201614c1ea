"""Which rows go through the model together. No torch here.

Rows of one pass are filled up to the longest, in cache and attention. That costs little beside reading the weights as
long as lengths are alike; a long conversation beside short ones gets a pass of its own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What a pass moves: `weights`, bytes read once by every pass, and `token`, bytes moved for each place of the
    rectangle of rows by their longest (a token's keys and values are read, written in order, and read again)."""

    weights: float
    token: float


def by_length(lengths: Sequence[int], costs: Costs) -> list[list[int]]:
    """Cut rows into passes so that the least is moved. Returns indices, the longest rows first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first n rows: what is moved, where the last pass begins
    for end in range(1, len(order) + 1):
        best.append(
            min(
                (best[begin][0] + costs.weights + (end - begin) * lengths[order[begin]] * costs.token, begin)
                for begin in range(end)
            )
        )
    groups, end = [], len(order)
    while end:
        begin = best[end][1]
        groups.append(order[begin:end])
        end = begin
    return groups[::-1]


def together(keys: Sequence[Hashable]) -> list[list[int]]:
    """Indices with equal keys, in the order in which the keys come first."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def reading(left: Sequence[int], keys: Sequence[Hashable], budget: int) -> list[tuple[int, int]]:
    """Whose prompts are read in the next pass, and how many tokens of each: `(index, tokens)`. The first row, and those
    behind it that may go with it (equal keys), as long as the filled-up rectangle stays within `budget` tokens."""
    if not left:
        return []
    chosen, widest = [(0, min(left[0], budget))], min(left[0], budget)
    for index in range(1, len(left)):
        if keys[index] != keys[0]:
            continue
        wide = max(widest, min(left[index], budget))
        if wide * (len(chosen) + 1) > budget:
            continue
        chosen.append((index, min(left[index], budget)))
        widest = wide
    return chosen
