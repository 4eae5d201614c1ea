"""Weights that stream from host memory: on the CPU everything must come out as with weights that stay."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.trained import losses, ready
from workbench.models.host_weights import host_weights_of

STEPS = 6
LLAMA = {"num_hidden_layers": 7, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
DEEPSEEK = {
    "num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 192, "moe_intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": None, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
    "first_k_dense_replace": 1, "topk_method": "greedy", "norm_topk_prob": False,
}  # fmt: skip
KINDS = {"llama": LLAMA, "deepseek_v2": DEEPSEEK}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Models of more layers than there are slots, by their kind."""
    made = {}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    special = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 512}
    for kind, sizes in KINDS.items():
        made[kind] = folder = tmp_path_factory.mktemp("host") / kind
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **sizes)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return made


def run_of(values, workspace, folder, **more):
    torch.manual_seed(0)
    options = {"model_name_or_path": str(folder), "max_steps": STEPS, "quantization_bit": 4, "lora_rank": 4}
    trainer, _, run = ready(values, workspace, **(options | {"lora_target": "all"} | more))
    return trainer, run


def trained(values, workspace, folder, **more):
    """`(losses of the steps, gradients' norms, adapters at the end, trainer)`."""
    trainer, _ = run_of(values, workspace, folder, **more)
    trainer.train()
    norms = torch.tensor([row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row])
    adapters = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return losses(trainer), norms, adapters, trainer


def same(ours, theirs) -> bool:
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]) and all(
        torch.equal(ours[2][name], theirs[2][name]) for name in theirs[2]
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [True, False], ids=["computed again", "kept"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_same_bit_for_bit(kind, checkpointing, values, workspace, folders):
    more = {"disable_gradient_checkpointing": not checkpointing}
    ours = trained(values, workspace, folders[kind], weights_on="host", **more)
    theirs = trained(values, workspace, folders[kind], weights_on="card", **more)
    made = host_weights_of(ours[3].model)
    assert same(ours, theirs) and len(ours[0]) == STEPS and ours[0][-1] < ours[0][0]
    assert made.slots == 3 < len(made.layers) and made.copied > STEPS * len(made.layers)
    if kind == "deepseek_v2":
        assert any("experts" in name for name in ours[2])
