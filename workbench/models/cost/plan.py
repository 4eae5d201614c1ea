"""What a compiled run keeps for the backward pass: the decisions of `train/fast/memory_plan.py`, repeated from
estimates of what it measures."""

from dataclasses import dataclass

from workbench.models.cost.constants import GIB

RECORDED = 1.2  # of a step's memory that recordings are reckoned with
# Seconds that compiling takes, and that it saves for a token of a model, by its layers and hidden size: measured on an
# H100 with 27 layers of 2,048 (69 us a token recorded but not compiled, 33 compiled).
_COMPILE_SECONDS, _COMPILE_AGAIN_SECONDS = 60, 10
_SAVED = 6e-10


def worth_compiling(tokens: float, layers: int, hidden: int, again: bool = False) -> bool:
    """Whether compiled layers save more than compiling takes, in a run of so many tokens; a rough estimate.

    Args:
        again: an earlier run compiled the same.
    """
    return tokens * layers * hidden * _SAVED > (_COMPILE_AGAIN_SECONDS if again else _COMPILE_SECONDS)


@dataclass(frozen=True)
class Need:
    """Bytes of a step whose layers are computed again: `step` at its peak, `stored` by its layers, `kept` by a layer
    that keeps what it computes."""

    step: int
    stored: int
    kept: int


@dataclass(frozen=True)
class Plan:
    """`on_host`: stored tensors go to the host. `kept_layers`: layers that keep what they compute. `unpacked_layers`:
    layers whose experts stay unpacked. `more`: bytes that this takes beyond `Need.step`, `unpacked` of them for
    experts."""

    on_host: bool
    kept_layers: int
    unpacked_layers: int
    more: int
    unpacked: int


def usable(memory: float) -> float:
    """Of so much memory, what a run plans with: a margin stays for fragments."""
    return memory - max(0.4 * GIB, 0.04 * memory)


def lacking(need: Need, before: int, memory: float) -> float:
    """The share of a step's memory, recorded, that is not there; 0 if it fits. `before`: bytes there before a step."""
    recorded = max(1.0, need.step * RECORDED)
    return max(0.0, (recorded - need.step - (usable(memory) - before - need.step)) / recorded)


def plan(need: Need, before: int, memory: float, layers: int, experts: list[int], *, least: bool) -> Plan:
    """What is kept.

    Args:
        before: bytes that are there before a step, the optimizer's to come included.
        experts: bytes of the unpacked experts of each layer that has some.
        least: `activation_memory: least`.
    """
    spare = usable(memory) - before - need.step
    if least or spare < need.stored:
        return Plan(True, 1, 0, 0, 0)
    spare -= need.stored
    more = max(1.0, need.kept - need.stored / max(1, layers - 1))
    count = min(layers, 1 + int(max(0.0, spare) / more))
    spare -= (count - 1) * more
    unpacked = number = 0
    for size in experts if count == layers else ():
        if size > spare:
            break
        spare -= size
        unpacked += size
        number += 1
    return Plan(False, count, number, int(need.stored + (count - 1) * more) + unpacked, unpacked)
