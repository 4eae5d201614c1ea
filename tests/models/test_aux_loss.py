"""The load-balancing loss against its definition, with autograd doing the derivative."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.test_experts import MODELS, SMALL, relative
from workbench.errors import UserError
from workbench.models.aux_loss import Balance, balance_routers


def definition(logits, index, segments, experts) -> torch.Tensor:
    """Mean over the segments (lists of rows) of Σ f P, written as in the paper."""
    scores, losses = logits.softmax(-1), []
    for rows in segments:
        total = 0.0
        for i in range(experts):
            chose = sum(int(i in index[t].tolist()) for t in rows)
            f = experts / (index.shape[1] * len(rows)) * chose
            total = total + f * scores[rows, i].sum() / len(rows)
        losses.append(total)
    return sum(losses) / len(losses)


CASES = {
    "sequences": (True, None, [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10, 11]][:2]),
    "whole batch": (False, None, [[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]]),
    "packed": (True, [0, 3, 6, 8], [[0, 1, 2], [3, 4], [6, 7], [8, 9, 10, 11]]),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_and_value_equal_the_definition(case):
    by_sequence, starts, segments = CASES[case]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 8, generator=generator, dtype=torch.float64).requires_grad_()
    index = logits.detach().topk(3).indices
    counted = torch.ones(2, 6, dtype=torch.long)
    counted[0, 5] = 0  # padding
    state = Balance(0.25, by_sequence)
    places = None if starts is None else torch.zeros(12, dtype=torch.bool)
    if places is not None:
        places[starts] = True
        places = places.view(2, 6)
    state.begin(counted, 0.5, places)
    ours = state.gradient(logits.detach(), index)
    loss = definition(logits, index, segments, 8)
    (0.25 * 0.5 * loss).backward()
    assert relative(ours, logits.grad) < 1e-6
    total, count = state.take()
    assert abs(total / count - loss.item()) < 1e-5
    assert state.take() == (0, 0)


def test_equal_use_of_all_experts_gives_one():
    state = Balance(1.0, True)
    state.begin(torch.ones(1, 4), 1.0)
    assert state.gradient(torch.zeros(4, 4), torch.arange(4)[:, None]).abs().max() < 1e-7
    total, count = state.take()
    assert total / count == pytest.approx(1.0)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_reaches_what_is_trained(compiled):
    """Gradients of a model's parameters with the loss equal those without it plus those of its definition."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("deepseek_v2", **(SMALL | MODELS["deepseek_v2"]))
    ids = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    segments = [list(range(9)), list(range(9, 15))]

    def gradients(balanced: bool, defined: bool) -> dict:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        if balanced:
            balance_routers(model, 0.7).begin(mask, 2.0)
        if compiled and balanced:
            from workbench.train.fast.compiled import compile_layers

            compile_layers(model)
        seen = []
        for module in model.modules():
            if defined and type(module).__name__ == "DeepseekV2TopkRouter":
                module.register_forward_hook(lambda m, i, out: seen.append(out))
        loss = model(input_ids=ids, attention_mask=mask).logits.square().mean()
        for logits, _, index in seen:
            loss = loss + 2.0 * 0.7 * definition(logits, index, segments, 8)
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, ours, theirs = gradients(False, False), gradients(True, False), gradients(False, True)
    assert ours.keys() == theirs.keys()
    routers = [name for name in ours if name.endswith("gate.weight")]
    assert routers and all(relative(plain[name], theirs[name]) > 0.1 for name in routers)
    for name in ours:
        assert relative(ours[name], theirs[name]) < 1e-4, name


def test_a_model_without_routers_says_so():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    with pytest.raises(UserError, match="moe_aux_loss_coef: this model \\(llama\\) has no routers"):
        balance_routers(model, 0.1)
