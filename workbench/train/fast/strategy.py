"""How a trainer makes its steps. The plain strategy leaves them to transformers; `step.py` has the fast one of a single
GPU."""

from typing import Protocol

import torch


class StepStrategy(Protocol):
    """What a trainer asks about its steps.

    Attributes:
        compiled: decoder layers are compiled, and take care of what gradient checkpointing is for.
        mixed: something computes under autocast.
        static_shapes: shapes may not depend on the content of a batch.
        counts_on_cpu: the number of trained tokens stays on the CPU.
    """

    compiled: bool
    mixed: bool
    static_shapes: bool
    counts_on_cpu: bool

    def takes(self, inputs: dict) -> bool:
        """Whether `step` can do this batch."""

    def begin(self) -> None:
        """Called before every forward pass."""

    def step(self, trainer, inputs: dict, num_items_in_batch) -> torch.Tensor:
        """One forward and backward pass over a batch that is on its device; the detached loss."""


class PlainStep:
    """Every step is transformers' own."""

    compiled = False
    mixed = True
    static_shapes = False
    counts_on_cpu = False

    def takes(self, inputs: dict) -> bool:
        return False

    def begin(self) -> None:
        pass

    def step(self, trainer, inputs: dict, num_items_in_batch) -> torch.Tensor:
        raise NotImplementedError
