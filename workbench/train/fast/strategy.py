"""How a trainer makes its steps: as transformers does, or cut by tokens (`rows.py`). `step.py` has the fast one of a
single GPU."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from workbench.config.options import RunConfig
from workbench.data.training_set import conversation_lengths, together_in, unit_lengths
from workbench.messages.message import Message
from workbench.models.attention import use_bounds
from workbench.models.aux_loss import has_own_balance_loss
from workbench.train import ranks
from workbench.train.fast.rows import IGNORE, Conversation, RowBatch, Shapes, conversations, exact_shapes, shared_out


class StepStrategy(Protocol):
    """What a trainer asks about its steps.

    Attributes:
        compiled: decoder layers are compiled, and take care of what gradient checkpointing is for.
        mixed: something computes under autocast.
        static_shapes: shapes may not depend on the content of a batch.
        counts_on_cpu: the number of trained tokens stays on the CPU.
        replays: steps are recorded, so that they may not ask for the state of random numbers.
        shapes: of micro-batches that are cut by tokens; None where batches are padded rows.
    """

    compiled: bool
    mixed: bool
    static_shapes: bool
    counts_on_cpu: bool
    replays: bool
    shapes: Shapes | None

    def takes(self, inputs: dict) -> bool:
        """Whether `step` can do this batch of padded rows."""

    def begin(self) -> None:
        """Called before every forward pass."""

    def arrange(self, trainer, batches: list[RowBatch]) -> list[dict]:
        """The micro-batches of one optimizer step, on the CPU."""

    def step(self, trainer, inputs: dict, num_items_in_batch) -> torch.Tensor:
        """One forward and backward pass over a micro-batch; the detached loss."""


class PlainStep:
    """Every step is transformers' own."""

    compiled = False
    mixed = True
    static_shapes = False
    counts_on_cpu = False
    replays = False
    shapes: Shapes | None = None

    def takes(self, inputs: dict) -> bool:
        return False

    def begin(self) -> None:
        pass

    def arrange(self, trainer, batches: list[RowBatch]) -> list[dict]:
        raise NotImplementedError

    def step(self, trainer, inputs: dict, num_items_in_batch) -> torch.Tensor:
        raise NotImplementedError


class RowStep(PlainStep):
    """Micro-batches of whole conversations without any padding, of up to as many tokens as a padded batch could have.
    The way of CPUs."""

    counts_on_cpu = True

    def __init__(self, config: RunConfig, rows):
        lengths, together = conversation_lengths(rows), together_in(rows)
        budget = max(map(sum, lengths)) * rows_at_once(config)
        self.shapes: Shapes = exact_shapes(unit_lengths(lengths, together), budget, together)
        self._even = config.weights_on == "shared"

    def arrange(self, trainer, batches: list[RowBatch]) -> list[dict]:
        return own_micro_batches(self.shapes, conversations(batches), self._even)

    def step(self, trainer, inputs: dict, num_items_in_batch) -> torch.Tensor:
        inputs = scaled(inputs, num_items_in_batch)
        loss = trainer.loss_of({name: value.to(trainer.args.device) for name, value in inputs.items()})
        trainer.accelerator.backward(loss)
        return loss.detach()


def own_micro_batches(shapes: Shapes, step: list[Conversation], even: bool) -> list[dict[str, torch.Tensor]]:
    """What this process computes of a step; all of it if it trains alone.

    Args:
        even: all processes make as many micro-batches; those without anything to train are of the shortest row.
    """
    if ranks.count() == 1:
        return shapes.micro_batches(step)
    shares = shared_out(step, ranks.count(), shapes.together)
    own = shapes.micro_batches(shares[ranks.rank()])
    if even and step:
        most = max(len(shapes.cut([sum(map(len, unit)) for unit in _units(share, shapes)])) for share in shares)
        shortest = min(_units(step, shapes), key=lambda unit: sum(map(len, unit)))
        idle = [replace(part, labels=np.full_like(part.labels, IGNORE), share=0.0) for part in shortest]
        own += [one for _ in range(most - len(own)) for one in shapes.micro_batches(idle)]
    return own


def _units(step: list[Conversation], shapes: Shapes) -> list[list[Conversation]]:
    return [step[at : at + shapes.together] for at in range(0, len(step), shapes.together)]


def rows_at_once(config: RunConfig) -> int:
    """Rows of a micro-batch, at their longest; with weights from host memory as many as a step has: each micro-batch
    has all layers copied twice."""
    size = config.per_device_train_batch_size
    return size * config.gradient_accumulation_steps if config.weights_on == "host" else size


def scaled(inputs: dict, num_items_in_batch) -> dict:
    """With `scale`, a scalar: what the summed loss of a micro-batch is multiplied by."""
    return inputs | {"scale": torch.full((), 1 / max(1, int(num_items_in_batch)))}


def why_padded(config: RunConfig, causal) -> str:
    """Why the rows of this run must be padded, one by one in their batches, instead of laid end to end; or nothing.
    From then on, `causal` attends between bounds."""
    if config.neftune_noise_alpha:
        return Message("padded_neftune")
    if config.moe_aux_loss_coef and has_own_balance_loss(causal.config):
        return Message("padded_aux_loss")
    return use_bounds(causal)
