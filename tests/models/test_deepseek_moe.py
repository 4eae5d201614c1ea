"""DeepSeek-MoE against a plain implementation in float64, written from the paper's equations (arXiv 2401.06066)."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from workbench.models import deepseek_moe
from workbench.models.quantized import loader

CONFIG = {  # the original checkpoint's fields, small
    "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 2,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": False,
    "scoring_func": "softmax", "aux_loss_alpha": 0.001, "seq_aux": True, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "rope_scaling": None, "max_position_embeddings": 128, "vocab_size": 200, "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2, "attention_bias": False, "pretraining_tp": 1, "ep_size": 1,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekConfig", "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in the original's names: one matrix per expert."""
    folder = tmp_path_factory.mktemp("deepseek")
    h, i, m = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["moe_intermediate_size"]
    shapes = {"model.embed_tokens.weight": (200, h), "lm_head.weight": (200, h), "model.norm.weight": (h,)}

    def mlp(prefix, size):
        return {
            f"{prefix}.gate_proj.weight": (size, h),
            f"{prefix}.up_proj.weight": (size, h),
            f"{prefix}.down_proj.weight": (h, size),
        }

    for layer in range(3):
        p = f"model.layers.{layer}"
        shapes |= {f"{p}.self_attn.{n}_proj.weight": (h, h) for n in "qkvo"}
        shapes |= {f"{p}.input_layernorm.weight": (h,), f"{p}.post_attention_layernorm.weight": (h,)}
        if layer == 0:
            shapes |= mlp(f"{p}.mlp", i)
        else:
            shapes |= {f"{p}.mlp.gate.weight": (8, h)} | mlp(f"{p}.mlp.shared_experts", 2 * m)
            for expert in range(8):
                shapes |= mlp(f"{p}.mlp.experts.{expert}", m)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        n: 1 + 0.1 * torch.randn(s, generator=generator) if "norm" in n else 0.15 * torch.randn(s, generator=generator)
        for n, s in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def plain_logits(w: dict, ids: torch.Tensor) -> torch.Tensor:
    """[length] token ids to [length, vocabulary] logits, in float64, one position and one expert at a time."""
    w = {n: t.double() for n, t in w.items()}
    length, heads, size = len(ids), 4, 16

    def norm(x, name):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w[name]

    def ffn(x, prefix):
        gate, up = x @ w[f"{prefix}.gate_proj.weight"].T, x @ w[f"{prefix}.up_proj.weight"].T
        return (gate * torch.sigmoid(gate) * up) @ w[f"{prefix}.down_proj.weight"].T

    angles = torch.arange(length).double()[:, None] / 10000 ** (torch.arange(0, size, 2).double() / size)

    def rotate(x):  # [length, heads, size], halves
        first, second = x[..., : size // 2], x[..., size // 2 :]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(3):
        p = f"model.layers.{layer}"
        y = norm(x, f"{p}.input_layernorm.weight")
        q, k, v = ((y @ w[f"{p}.self_attn.{n}_proj.weight"].T).view(length, heads, size) for n in "qkv")
        q, k = rotate(q), rotate(k)
        mixed = torch.zeros_like(q)
        for t in range(length):
            for head in range(heads):
                score = (k[: t + 1, head] @ q[t, head] / size**0.5).softmax(0)
                mixed[t, head] = score @ v[: t + 1, head]
        x = x + mixed.reshape(length, -1) @ w[f"{p}.self_attn.o_proj.weight"].T
        y = norm(x, f"{p}.post_attention_layernorm.weight")
        if layer == 0:
            x = x + ffn(y, f"{p}.mlp")
            continue
        out = ffn(y, f"{p}.mlp.shared_experts")
        for t in range(length):
            gate = (y[t] @ w[f"{p}.mlp.gate.weight"].T).softmax(0)
            for expert in gate.topk(3).indices.tolist():
                out[t] += gate[expert] * ffn(y[t], f"{p}.mlp.experts.{expert}")
        x = x + out
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def test_logits_equal_the_papers_equations(folder):
    deepseek_moe.install()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(model) is deepseek_moe.DeepseekMoeForCausalLM
    ids = torch.randint(0, 200, (11,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(ids[None]).logits[0].double()
    theirs = plain_logits(load_file(folder / "model.safetensors"), ids)
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


def test_generation_with_a_cache_equals_without(folder):
    deepseek_moe.install()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_loads_in_4_bits_with_packed_experts(folder):
    deepseek_moe.install()
    loader.install()
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=nf4)
    packed = [m for m in model.modules() if loader.is_fused_experts(m)]
    assert len(packed) == 2 and all(loader.is_packed(m.gate_up_proj) for m in packed)
    loss = model(input_ids=torch.arange(3, 20)[None], labels=torch.arange(3, 20)[None]).loss
    assert torch.isfinite(loss)
