"""The parts of an estimate, in the order in which they are shown."""

from dataclasses import dataclass, field

PARTS = (
    "weights",
    "constants",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "layer",
    "workspace",
    "logits",
    "unpacked",
    "cache",
    "recordings",
    "context",
)


@dataclass
class Estimate:
    """Bytes at the moment of the largest need.

    Attributes:
        parts: part -> bytes; they add up to `total`.
        allocated: the largest sum of tensors at once: what a run reports as its peak.
        phase: `loading`, `head`, `layers` or `evaluation`: when that is.
        facts: what was decided on the way (tokens of a micro-batch, layers that keep ...), for people and for tests.
        notes: codes of sentences on what is not modelled or assumed, with their values.
    """

    parts: dict[str, int] = field(default_factory=dict)
    allocated: int = 0
    phase: str = ""
    facts: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.parts.values())
