"""Compiled layers share code only where they are alike."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.test_experts import MODELS, SMALL, relative
from workbench.train.fast.compiled import compile_layers

ALTERNATING = {
    "qwen3_moe, every second layer dense": ("qwen3_moe", SMALL | MODELS["qwen3_moe"] | {"decoder_sparse_step": 2}),
    "gemma2, every second layer a sliding window": (
        "gemma2",
        SMALL | {"head_dim": 16, "sliding_window": 4, "num_key_value_heads": 2},
    ),
}


@pytest.mark.parametrize("case", ALTERNATING)
def test_layers_of_two_kinds_in_one_model(case):
    """All parameters trainable, so that every layer's inputs look the same to the compiler."""
    kind, values = ALTERNATING[case]
    config = AutoConfig.for_model(kind, **values | {"num_hidden_layers": 4})
    ids = torch.randint(1, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        if compiled:
            compile_layers(model)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        results.append([loss.detach(), *[p.grad for p in model.parameters() if p.grad is not None]])
    assert all(relative(ours, theirs) < 1e-4 for theirs, ours in zip(*results, strict=True))
