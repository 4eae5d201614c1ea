"""What surrounds a training step: gradients in buffers that stay, LoRA factors cast once."""

import gc

import pytest
import torch

from workbench.config.options import RunConfig
from workbench.models.quantized.weights import Casts, cast
from workbench.train.fast import step_graph
from workbench.train.fast.rows import RowBatch
from workbench.train.fast.step import FastStep
from workbench.train.fast.step_graph import StepGraphs


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["at once", "one by one"])
def test_gradients_add_up_in_their_buffers(limit, monkeypatch):
    monkeypatch.setattr(step_graph, "_AT_ONCE", limit)
    torch.manual_seed(0)
    used, unused = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2))

    def step(inputs):
        loss = (used * inputs["x"]).sum()
        loss.backward()
        return loss.detach()

    graphs = StepGraphs([used, unused], step)
    graphs.enabled = False
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    graphs.run({"x": first})
    buffer = used.grad
    graphs.run({"x": second})
    assert used.grad is buffer and torch.equal(buffer, first + second) and torch.equal(unused.grad, torch.zeros(2))
    used.grad = unused.grad = None  # what zero_grad does
    graphs.run({"x": second})
    assert used.grad is buffer and torch.equal(buffer, second)


def test_factors_are_cast_once_and_forgotten_with_their_owner():
    parameter = torch.nn.Parameter(torch.randn(4, 8))
    casts = Casts([parameter], torch.bfloat16)
    casts.refresh()
    first = cast(parameter, torch.bfloat16)
    assert cast(parameter.detach(), torch.bfloat16) is first and torch.equal(first, parameter.detach().bfloat16())
    with torch.no_grad():
        parameter.mul_(2)
    casts.refresh()
    assert torch.equal(cast(parameter, torch.bfloat16), parameter.detach().bfloat16())
    assert cast(parameter, torch.float32) is parameter
    del casts, first
    gc.collect()
    with torch.no_grad():
        parameter.zero_()
    assert torch.equal(cast(parameter, torch.bfloat16), torch.zeros(4, 8, dtype=torch.bfloat16))


class _Graphs:
    """Stands in for recordings on a GPU that holds so many tokens of them at a time."""

    def __init__(self, room: int):
        self.room, self.recorded, self.ran = room, [], []
        self.enabled, self.problem, self.out_of_memory = True, "", False

    def record(self, size: int) -> None:
        if size > self.room:
            self.enabled, self.problem, self.out_of_memory = False, "CUDA out of memory.", True
        elif self.enabled:
            self.recorded.append(size)

    def run(self, size: int) -> None:
        self.ran.append(size)

    def forget(self) -> None:
        self.recorded, self.problem, self.out_of_memory = [], "", False

    def clear_gradients(self) -> None:
        pass


@pytest.fixture
def fast_step(monkeypatch):
    """A FastStep without a GPU, of rows of up to 2,000 tokens; `(step, what it reported)`."""
    said: list[str] = []
    step = FastStep.__new__(FastStep)
    step._config = RunConfig(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    step._together = 1
    step._lengths = [[n] for n in (2000, 300, 500, 900, 1200, 700, 100, 1500)]
    step.shapes = step._shapes(step._lengths, 8000)
    step._unrecorded = list(step.shapes.sizes[::-1])
    step._report = lambda message: said.append(str(message))
    monkeypatch.setattr(FastStep, "_made_up", lambda self, trainer, size: size)

    class Trainer:
        balance = None

    step.trainer, step.said = Trainer(), said
    return step


def _rows(lengths) -> list[RowBatch]:
    return [RowBatch([{"input_ids": [1] * n, "labels": [1] * n} for [n] in lengths])]


def test_sizes_are_recorded_when_steps_need_them(fast_step):
    fast_step._graphs = graphs = _Graphs(room=10_000)
    fast_step._record_largest(fast_step.trainer)
    assert graphs.recorded == [fast_step.shapes.sizes[-1]]
    for _ in range(6):
        parts = fast_step.arrange(fast_step.trainer, _rows(fast_step._lengths))
        assert {part["input_ids"].shape[1] for part in parts} <= set(graphs.recorded)
    assert sorted(graphs.recorded) == list(fast_step.shapes.sizes) and not graphs.ran


def test_recordings_without_room_make_micro_batches_smaller(fast_step):
    fast_step._graphs = graphs = _Graphs(room=4000)
    largest = fast_step.shapes.sizes[-1]
    assert largest > 4000
    fast_step._record_largest(fast_step.trainer)
    parts = fast_step.arrange(fast_step.trainer, _rows(fast_step._lengths))
    assert sum(int((part["labels"] != -100).sum()) for part in parts) == sum(n - 1 for [n] in fast_step._lengths)
    assert 2000 <= fast_step.shapes.sizes[-1] <= 4000 and graphs.enabled and not fast_step.said
    assert {part["input_ids"].shape[1] for part in parts} <= set(graphs.recorded)


def test_row_that_leaves_no_room_for_recordings_runs_from_python_and_says_so(fast_step):
    fast_step._graphs = graphs = _Graphs(room=1000)
    fast_step._record_largest(fast_step.trainer)
    assert not graphs.enabled and not graphs.recorded and len(fast_step.said) == 1
    assert "out of memory" in fast_step.said[0]
    assert fast_step.arrange(fast_step.trainer, _rows(fast_step._lengths))


def test_cudnn_attention_is_for_rows_of_few_lengths():
    """It plans every length anew."""
    from types import SimpleNamespace

    from workbench.train.fast.strategy import PlainStep
    from workbench.train.trainer import few_lengths

    joined = SimpleNamespace(shapes=object(), pads=True)  # evaluations have padded rows of any length
    padded, from_python = SimpleNamespace(shapes=None, pads=True), SimpleNamespace(shapes=None, pads=False)
    assert [few_lengths(one) for one in (PlainStep(), joined, from_python, padded)] == [False, False, False, True]
