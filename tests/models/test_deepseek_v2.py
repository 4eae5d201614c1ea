"""DeepSeek-V2 against a plain implementation in float64, written from the papers' equations.

Latent attention, experts and their routing: DeepSeek-V2, arXiv 2405.04434. Long contexts: YaRN, arXiv 2309.00071, with
the ramp over dimensions and the two temperatures of DeepSeek's release. The reference uses names of the original
checkpoints.
"""

import itertools
import math

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DeepseekV2Config, DeepseekV2ForCausalLM
from transformers.models.deepseek_v2 import modeling_deepseek_v2

from workbench.models import rotary
from workbench.models.quantized import loader

# Sizes that all differ, so that nothing can be mistaken for something else; an epsilon that matters.
SMALL = {
    "vocab_size": 120, "hidden_size": 48, "intermediate_size": 72, "moe_intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 28, "qk_rope_head_dim": 16, "qk_nope_head_dim": 12,
    "v_head_dim": 20, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": False, "rms_norm_eps": 1e-3, "rope_theta": 10000,
    "max_position_embeddings": 2560, "attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
LATENT_QUERY, PLAIN_QUERY = {"q_lora_rank": 24}, {"q_lora_rank": None}
GREEDY = {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
ROPE = {"rope_scaling": None}
YARN = {
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 64,
    }
}
TWO_SCALES = {
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 3,
        "beta_slow": 0.3,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "original_max_position_embeddings": 64,
    }
}
CASES = {
    "lite": PLAIN_QUERY | GREEDY | YARN,  # as DeepSeek-V2-Lite
    "full": LATENT_QUERY | GROUPS | YARN,  # as DeepSeek-V2
    "latent query": LATENT_QUERY | GREEDY | ROPE,
    "groups": PLAIN_QUERY | GROUPS | ROPE | {"routed_scaling_factor": 1.0},
    "two scales": PLAIN_QUERY | GROUPS | TWO_SCALES,
    "two scales, scaled experts": LATENT_QUERY | GREEDY | TWO_SCALES | {"routed_scaling_factor": 2.5},
}
LENGTH = 70  # beyond the 64 positions that YaRN extends
# float32 against float64: at most 2e-6 and 5e-6 seen. Of that, 1e-6 and 3e-6 stay in a model in float64, since
# transformers computes norms, routing and rotation in float32. The closest decision between two experts or groups is
# 3e-5 wide.
LOGITS, GRADIENTS = 1e-5, 2e-5


def inverse_frequencies(c: dict) -> torch.Tensor:
    """One angle per position for each pair of the rotated dimensions; with YaRN, slow pairs are slowed further."""
    size, base, yarn = c["qk_rope_head_dim"], float(c["rope_theta"]), c["rope_scaling"]
    plain = [base ** (-2 * pair / size) for pair in range(size // 2)]
    if yarn is None:
        return torch.tensor(plain, dtype=torch.float64)

    def pair_that_turns(times):  # so often within the original context: length · base^(-2i / size) = 2π · times
        return size * math.log(yarn["original_max_position_embeddings"] / (2 * math.pi * times)) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(yarn["beta_fast"])), 0)
    last = min(math.ceil(pair_that_turns(yarn["beta_slow"])), size - 1)
    result = []
    for pair, frequency in enumerate(plain):
        slowed = min(max((pair - first) / (last - first), 0), 1)
        result.append((1 - slowed) * frequency + slowed * frequency / yarn["factor"])
    return torch.tensor(result, dtype=torch.float64)


def temperatures(c: dict) -> tuple[float, float]:
    """`(factor of cos and sin, factor of the attention scores)`."""
    yarn = c["rope_scaling"]
    if yarn is None:
        return 1.0, 1.0
    of_rotation, of_all = (0.1 * yarn[n] * math.log(yarn["factor"]) + 1 for n in ("mscale", "mscale_all_dim"))
    return of_rotation / of_all, of_all**2


def chosen_experts(scores: list, c: dict) -> list[int]:
    """Indices of the experts of one token, best first; of the best groups only, where routing is limited to groups."""
    allowed = list(range(c["n_routed_experts"]))
    if c["topk_method"] == "group_limited_greedy":
        size = c["n_routed_experts"] // c["n_group"]
        groups = [range(start, start + size) for start in range(0, c["n_routed_experts"], size)]
        groups.sort(key=lambda group: -max(scores[e] for e in group))
        allowed = [e for group in groups[: c["topk_group"]] for e in group]
    return sorted(allowed, key=lambda e: -scores[e])[: c["num_experts_per_tok"]]


def plain_logits(w: dict, c: dict, x: torch.Tensor) -> torch.Tensor:
    """[length, hidden] embeddings to [length, vocabulary] logits, one position, one head and one expert at a time."""
    w = {n: t.double() for n, t in w.items()}
    length, heads, rank = len(x), c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, v_size = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    rotation_factor, score_factor = temperatures(c)
    angles = torch.arange(length).double()[:, None] * inverse_frequencies(c)
    cos, sin = angles.cos() * rotation_factor, angles.sin() * rotation_factor

    def linear(x, name):
        return x @ w[f"{name}.weight"].T

    def norm(x, name, eps):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * w[f"{name}.weight"]

    def ffn(x, name):
        gate = linear(x, f"{name}.gate_proj")
        return linear(gate / (1 + torch.exp(-gate)) * linear(x, f"{name}.up_proj"), f"{name}.down_proj")

    def rotate(x, t):  # the vector of one position, neighboring pairs
        pairs = []
        for i in range(rope // 2):
            a, b = x[2 * i], x[2 * i + 1]
            pairs += [a * cos[t, i] - b * sin[t, i], a * sin[t, i] + b * cos[t, i]]
        return torch.stack(pairs)

    def attention(x, name):
        if c["q_lora_rank"] is None:
            queries = linear(x, f"{name}.q_proj")
        else:
            queries = linear(norm(linear(x, f"{name}.q_a_proj"), f"{name}.q_a_layernorm", 1e-6), f"{name}.q_b_proj")
        queries = queries.view(length, heads, nope + rope)
        compressed = linear(x, f"{name}.kv_a_proj_with_mqa")
        latents = norm(compressed[:, :rank], f"{name}.kv_a_layernorm", 1e-6)
        shared = torch.stack([rotate(compressed[t, rank:], t) for t in range(length)])  # of all heads
        expand = w[f"{name}.kv_b_proj.weight"].view(heads, nope + v_size, rank)
        mixed = []
        for t in range(length):
            for head in range(heads):
                keys, values = latents[: t + 1] @ expand[head, :nope].T, latents[: t + 1] @ expand[head, nope:].T
                scores = keys @ queries[t, head, :nope] + shared[: t + 1] @ rotate(queries[t, head, nope:], t)
                mixed.append((scores * score_factor / math.sqrt(nope + rope)).softmax(0) @ values)
        return linear(torch.stack(mixed).view(length, heads * v_size), f"{name}.o_proj")

    def experts(x, name):
        rows = []
        for t in range(length):
            scores = linear(x[t], f"{name}.gate").softmax(0)
            row = ffn(x[t], f"{name}.shared_experts")
            for e in chosen_experts(scores.tolist(), c):
                row = row + c["routed_scaling_factor"] * scores[e] * ffn(x[t], f"{name}.experts.{e}")
            rows.append(row)
        return torch.stack(rows)

    eps = c["rms_norm_eps"]
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        x = x + attention(norm(x, f"{name}.input_layernorm", eps), f"{name}.self_attn")
        y = norm(x, f"{name}.post_attention_layernorm", eps)
        x = x + (ffn if layer < c["first_k_dense_replace"] else experts)(y, f"{name}.mlp")
    return linear(norm(x, "model.norm", eps), "lm_head")


def embedded(w: dict, ids: torch.Tensor) -> torch.Tensor:
    return w["model.embed_tokens.weight"].double()[ids]


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def original_names(state: dict) -> dict:
    """transformers' state: a layer's experts are one tensor, gates before ups; in the original's names: three each."""
    result = {}
    for name, tensor in state.items():
        prefix, _, leaf = name.rpartition(".")
        for e in range(len(tensor)) if prefix.endswith(".experts") else ():
            if leaf == "gate_up_proj":
                result[f"{prefix}.{e}.gate_proj.weight"], result[f"{prefix}.{e}.up_proj.weight"] = tensor[e].chunk(2)
            else:
                result[f"{prefix}.{e}.{leaf}.weight"] = tensor[e]
        if not prefix.endswith(".experts"):
            result[name] = tensor
    return result


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs).norm() / theirs.norm()).item()


def random_model(c: dict, seed: int = 0) -> DeepseekV2ForCausalLM:
    """float32, on the usual attention; weights large enough for every part to matter."""
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**c)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if parameter.dim() == 1 else 0.2 * noise
    return model


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """`(model, its configuration, token ids, the reference's logits and gradient of the embeddings)`."""
    c = SMALL | CASES[request.param]
    model, ids = random_model(c), random_ids(2, LENGTH)
    w = original_names(model.state_dict())
    x = embedded(w, ids).requires_grad_()
    logits = torch.stack([plain_logits(w, c, row) for row in x])
    next_token_loss(logits, ids).backward()
    return model, c, ids, logits.detach(), x.grad


@pytest.fixture(params=["complex", "real"])
def rotation(request, monkeypatch):
    """transformers' own rotation, or this project's; what was there before comes back."""
    monkeypatch.setattr(modeling_deepseek_v2.DeepseekV2RotaryEmbedding, "forward", rotary._complex_forward)
    monkeypatch.setattr(modeling_deepseek_v2, "apply_rotary_emb", rotary.complex_rotation)
    if request.param == "real":
        rotary.install()
        assert modeling_deepseek_v2.apply_rotary_emb is rotary.rotate_pairs
    return request.param


def test_logits_and_gradients_equal_the_papers_equations(case, rotation):
    model, _, ids, theirs, their_gradient = case
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=x, use_cache=False).logits
    (gradient,) = torch.autograd.grad(next_token_loss(logits, ids), x)
    assert relative(logits.detach(), theirs) < LOGITS
    assert relative(gradient, their_gradient) < GRADIENTS


@pytest.mark.parametrize("case", ["lite", "full"], indirect=True)
def test_decoding_from_the_latent_cache_equals_one_pass(case, rotation):
    model, c, ids, theirs, _ = case
    cache, rows = None, []
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for t in range(LENGTH):
            out = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits)
    assert relative(torch.cat(rows, 1), theirs) < LOGITS
    assert relative(torch.cat(rows, 1), whole.double()) < LOGITS
    assert len(cache.layers) == c["num_hidden_layers"]
    for layer in cache.layers:
        assert layer.keys.shape == (2, 1, LENGTH, c["kv_lora_rank"])
        assert layer.values.shape == (2, 1, LENGTH, c["qk_rope_head_dim"])
        kept = sum(t.numel() for t in vars(layer).values() if isinstance(t, torch.Tensor))
        assert kept == 2 * LENGTH * (c["kv_lora_rank"] + c["qk_rope_head_dim"])


@pytest.mark.parametrize("experts, groups, kept, k", [(8, 4, 2, 3), (16, 4, 2, 6), (12, 3, 1, 4), (16, 8, 3, 4)])
def test_experts_come_from_the_best_groups_only(experts, groups, kept, k):
    """Against all choices of groups and all choices of experts within them."""
    changes = {"n_routed_experts": experts, "n_group": groups, "topk_group": kept, "num_experts_per_tok": k}
    c = SMALL | PLAIN_QUERY | GROUPS | ROPE | changes
    router = modeling_deepseek_v2.DeepseekV2TopkRouter(DeepseekV2Config(**c))
    generator = torch.Generator().manual_seed(2)
    router.weight.data = 0.2 * torch.randn(router.weight.shape, generator=generator)
    hidden = torch.randn(60, c["hidden_size"], generator=generator)
    with torch.no_grad():
        _, weights, indices = router(hidden)
    scores = (hidden.double() @ router.weight.detach().double().T).softmax(-1)
    size, limited = experts // groups, 0
    for s, row, weight in zip(scores.tolist(), indices.tolist(), weights.double(), strict=True):
        assert len(set(row)) == k and len({e // size for e in row}) <= kept
        best_groups = max(
            itertools.combinations(range(groups), kept),
            key=lambda some, s=s: sum(max(s[g * size : (g + 1) * size]) for g in some),
        )
        allowed = [e for e in range(experts) if e // size in best_groups]
        best = max(itertools.combinations(allowed, k), key=lambda some, s=s: sum(s[e] for e in some))
        assert set(row) == set(best) == set(chosen_experts(s, c))
        expected = torch.tensor([2.5 * s[e] for e in row], dtype=torch.float64)  # not normalized over the chosen
        assert torch.allclose(weight, expected, rtol=1e-5, atol=0)
        limited += set(best) != set(chosen_experts(s, c | GREEDY))
    assert limited > 10  # the limit decides for these


# Blocks of NF4 have 64 weights.
PACKED = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}
PACKED_CASES = {
    "lite": SMALL | PACKED | CASES["lite"],
    "full": SMALL | PACKED | CASES["full"] | {"q_lora_rank": 64},
}
NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)


@pytest.mark.parametrize("kind", PACKED_CASES)
def test_in_4_bits_equals_the_equations_with_the_weights_dequantized(kind, rotation, tmp_path):
    c = PACKED_CASES[kind]
    loader.install()
    random_model(c).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=NF4).eval()
    state, packed = {}, 0
    for name, parameter in model.named_parameters():
        state[name] = parameter.detach()
        if isinstance(parameter, bnb.nn.Params4bit):
            state[name] = bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state)
            packed += 1
    attention = 4 if c["q_lora_rank"] is None else 5
    assert packed == 3 * attention + 3 + 2 * (3 + 2)  # dense layer; shared experts and the two tensors of all others

    w, saved = original_names(state), load_file(tmp_path / "model.safetensors")
    assert w.keys() == saved.keys()  # the checkpoint has the original's names
    assert all(relative(w[n], t.double()) < 0.12 for n, t in saved.items())  # NF4 of normal numbers: 0.09

    ids = random_ids(2, 44)
    x = embedded(w, ids).requires_grad_()
    theirs = torch.stack([plain_logits(w, c, row) for row in x])
    ours_x = model.get_input_embeddings()(ids).detach().requires_grad_()
    ours = model(inputs_embeds=ours_x, use_cache=False).logits
    assert relative(ours.detach(), theirs.detach()) < LOGITS
    gradients = [torch.autograd.grad(next_token_loss(logits, ids), e)[0] for logits, e in ((ours, ours_x), (theirs, x))]
    assert relative(*gradients) < GRADIENTS
    with torch.no_grad():  # as in inference: other operators
        assert relative(model(ids).logits, theirs.detach()) < LOGITS


def test_a_checkpoint_in_the_original_names_loads_as_it_is_written(tmp_path):
    c = SMALL | CASES["full"]
    random_model(c).save_pretrained(tmp_path)
    saved, ids = load_file(tmp_path / "model.safetensors"), random_ids(44)
    assert "model.layers.2.mlp.experts.7.up_proj.weight" in saved
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert relative(model(ids[None]).logits[0], plain_logits(saved, c, embedded(saved, ids))) < LOGITS
