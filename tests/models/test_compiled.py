"""Compiled layers share code only where they are alike."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.test_experts import MODELS, SMALL, relative
from tests.models.test_host_weights import DEEPSEEK, Late
from workbench.models.host_weights import stream_weights
from workbench.train.fast.compiled import compile_layers, keep_layers

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


@pytest.mark.parametrize("only_inputs", [True, False], ids=["inputs are stored", "what is dear is stored"])
def test_layers_whose_weights_come_when_they_are_needed(only_inputs):
    """Copies are made no sooner than somebody waits for them, and what lay in a slot is gone at once."""
    config = AutoConfig.for_model("deepseek_v2", vocab_size=300, **DEEPSEEK)
    ids = torch.randint(1, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    results = []
    for streamed in (False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
        if streamed:
            weights = stream_weights(model, torch.device("cpu"))
            weights.copies = Late()
        lora = LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora).train()
        if streamed:
            compile_layers(model.get_base_model(), only_inputs=only_inputs)
            keep_layers(model.get_base_model(), 1)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        with torch.no_grad():
            again = model(input_ids=ids, labels=ids, use_cache=False).loss
        results.append([loss.detach(), again, *[p.grad for p in model.parameters() if p.grad is not None]])
    assert len(results[0]) == len(results[1]) == 2 + 2 * 2 * DEEPSEEK["num_hidden_layers"]
    assert all(relative(ours, theirs) < 1e-4 for theirs, ours in zip(*results, strict=True))
