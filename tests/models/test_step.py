"""What surrounds a training step: gradients in buffers that stay, LoRA factors cast once."""

import gc

import pytest
import torch

from workbench.models.quantized.weights import Casts, cast
from workbench.train.fast import step_graph
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
