"""Each RoPE scaling does what its paper says, and long prompts, chunks and adapters go with it."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.engine.backend import Job, Sampling
from workbench.engine.transformers_backend import TransformersDecoder
from workbench.models.rope import set_rope_scaling

DIM, ORIGINAL, BASE = 64, 128, 10000.0


def config():
    return LlamaConfig(
        hidden_size=DIM,
        num_attention_heads=1,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
    )


def angles(kind: str, factor: float, length: int) -> tuple[torch.Tensor, float]:
    """Rotation per position of each pair, after a text of `length` tokens; and what cos and sin are multiplied with."""
    changed = config()
    set_rope_scaling(changed, kind, factor)
    rotary = LlamaRotaryEmbedding(changed)
    cos, sin = rotary(torch.zeros(1, length, DIM), torch.arange(length)[None])
    scale = float((cos[0, 1] ** 2 + sin[0, 1] ** 2).sqrt().mean())
    return torch.atan2(sin[0, 1, : DIM // 2], cos[0, 1, : DIM // 2]), scale


PLAIN = BASE ** (-torch.arange(0, DIM, 2) / DIM)


def test_linear_divides_positions():
    for length in (16, 500):
        found, scale = angles("linear", 4.0, length)
        assert torch.allclose(found, PLAIN / 4, atol=1e-5) and scale == pytest.approx(1)


def test_dynamic_changes_nothing_within_the_original_context_and_raises_the_base_beyond():
    short, _ = angles("dynamic", 4.0, ORIGINAL)
    assert torch.allclose(short, PLAIN, atol=1e-5)
    length = 4 * ORIGINAL
    base = BASE * (4.0 * length / ORIGINAL - 3.0) ** (DIM / (DIM - 2))
    long, _ = angles("dynamic", 4.0, length)
    assert torch.allclose(long, base ** (-torch.arange(0, DIM, 2) / DIM), atol=1e-5)


def test_yarn_leaves_fast_pairs_divides_slow_ones_and_sharpens_attention():
    found, scale = angles("yarn", 4.0, 16)
    turns = ORIGINAL * PLAIN / (2 * math.pi)  # of each pair within the original context
    fast, slow = turns > 40, turns < 0.8
    assert torch.allclose(found[fast], PLAIN[fast], atol=1e-5) and torch.allclose(
        found[slow], PLAIN[slow] / 4, atol=1e-5
    )
    between = ~fast & ~slow
    assert bool(((found <= PLAIN + 1e-6) & (found >= PLAIN / 4 - 1e-6))[between].all())
    assert scale == pytest.approx(0.1 * math.log(4) + 1, rel=1e-4)


def test_llama3_leaves_short_waves_divides_long_ones():
    found, scale = angles("llama3", 4.0, 16)
    wave = 2 * math.pi / PLAIN
    short, long = wave < ORIGINAL / 4, wave > ORIGINAL
    assert torch.allclose(found[short], PLAIN[short], atol=1e-5) and torch.allclose(
        found[long], PLAIN[long] / 4, atol=1e-5
    )
    assert scale == pytest.approx(1)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_way_to_load_reads_prompts_beyond_the_original_context(tiny_model, workspace, kind, bits, attention):
    """Every quantization with every attention and scaling, on a prompt of 600 tokens where the model has 512
    positions."""
    said = []
    values = {
        "model_name_or_path": str(tiny_model),
        "rope_scaling": kind,
        "quantization_bit": bits,
        "flash_attn": attention,
    }
    decoder = TransformersDecoder(validated(values, EngineConfig), workspace, lambda phase, share: None, said.append)
    assert decoder.context == 1024 and f"RoPE scaling {kind} × 2: the context becomes 1,024 tokens" in said[0]
    job = Job(None, [], Sampling(max_tokens=4, temperature=0), prompt="x" * 600)
    assert sum(bool(t) for t in decoder.open(job)) >= 1 and job.prompt_tokens == 600


def test_a_prompt_read_in_pieces_gives_the_same_answer(tiny_model, workspace):
    decoder = TransformersDecoder(
        validated({"model_name_or_path": str(tiny_model)}, EngineConfig), workspace, lambda *a: None, print
    )

    def answer():
        tokens = list(decoder.open(Job(None, [], Sampling(max_tokens=8, temperature=0, logprobs=1), prompt="abc" * 40)))
        return sum(t.pause for t in tokens), [i.logprob for t in tokens for i in t.infos]

    (none, whole), decoder._chunk = answer(), 16
    pauses, pieces = answer()
    assert none == 0 and pauses >= 5 and pieces == pytest.approx(whole, abs=1e-5)


def test_replacing_a_models_own_scaling_is_said(tiny_moe):
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(tiny_moe)
    own.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40,
        "original_max_position_embeddings": 4096,
    }
    own.max_position_embeddings = 163840
    said = set_rope_scaling(own, "linear", 2.0)
    assert "replaces the model's own yarn scaling (163,840 tokens)" in said and "8,192" in said
