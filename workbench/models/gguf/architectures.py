"""What llama.cpp calls a model's tensors and how it wants them laid out, by architecture, and the sizes it asks for.

llama: rows of q and k in the order of rotation by neighbors instead of halves. deepseek2: the up-projection of the
latent apart for keys (transposed) and values, so that attention works on latents; the experts of a layer as one
tensor. Facts are from llama.cpp's `conversion/` and `gguf`'s tables of names; `benchmarks/gguf_exports.py` compares
what llama.cpp computes.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from workbench.errors import UserError

NAMES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "deepseek_v2": "deepseek2"}
_BIASED = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj"),
}
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(\w+)\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Target:
    """One tensor of the GGUF: its name, its shape (rows last but one, as in torch) and what it is made of."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    form: str = "rows"  # or `permuted`, `keys`, `values`, `experts`
    heads: int = 0

    @property
    def wide(self) -> bool:
        """Whether it is a matrix that may be kept in fewer than 32 bits: no vector, and no router."""
        return len(self.shape) > 1 and not self.name.endswith("ffn_gate_inp.weight")


def check(config: Any) -> str:
    """llama.cpp's name for a config's architecture.

    Raises:
        UserError: an architecture, or a setting of it, that is not exported.
    """
    kind = config.model_type
    if kind not in NAMES:
        raise UserError("gguf_architecture", model=kind, names=list(NAMES))
    rope = dict(getattr(config, "rope_parameters", None) or {})
    found = [
        ("quantization_config", getattr(config, "quantization_config", None), None),
        ("hidden_act", config.hidden_act, "silu"),
        ("use_sliding_window", getattr(config, "use_sliding_window", False), False),
        ("partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, 1.0),
        ("rope attention_factor", rope.get("attention_factor"), None),
        ("rope truncate", rope.get("truncate", True), True),
        ("rope_type", rope.get("rope_type", "default"), ("default", "linear", "yarn", "llama3")),
    ]
    if kind == "deepseek_v2":
        scaled = rope.get("rope_type") == "yarn"
        # llama.cpp tells by these numbers whether queries have a latent
        lite = config.num_hidden_layers in (26, 27) or (config.num_hidden_layers, config.vocab_size) == (48, 128256)
        found += [
            ("topk_method", config.topk_method, "greedy"),
            ("n_group", config.n_group or 1, 1),
            ("norm_topk_prob", config.norm_topk_prob, False),
            ("moe_layer_freq", getattr(config, "moe_layer_freq", 1), 1),
            (f"num_hidden_layers {config.num_hidden_layers} and q_lora_rank", config.q_lora_rank, None)
            if lite
            else ("q_lora_rank", config.q_lora_rank or "none", config.q_lora_rank),
            ("attention_bias", config.attention_bias, False),
            ("rope_type", rope.get("rope_type", "default"), ("default", "yarn")),
            ("rope mscale", rope.get("mscale") if scaled else None, rope.get("mscale_all_dim") if scaled else None),
            ("rope mscale_all_dim", bool(rope.get("mscale_all_dim")), scaled),
        ]
    elif rope.get("mscale") or rope.get("mscale_all_dim"):
        found.append(("rope mscale", rope.get("mscale") or rope.get("mscale_all_dim"), None))
    for name, value, wanted in found:
        if value not in wanted if isinstance(wanted, tuple) else value != wanted:
            shown = "…" if name == "quantization_config" else value
            raise UserError("gguf_setting", model=kind, name=name, value=str(shown))
    return NAMES[kind]


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def targets(config: Any, shapes: dict[str, tuple[int, ...]]) -> list[Target]:
    """The GGUF's tensors, in the order of the model.

    Raises:
        UserError: a tensor of the checkpoint that GGUF has no place for, or one that is missing.
    """
    import gguf

    kind, architecture = config.model_type, check(config)
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found, experts, unknown = [], {}, []
    for name in sorted(shapes, key=_order):
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        module, _, leaf = name.rpartition(".")
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = name
        elif kind == "deepseek_v2" and name.endswith(".self_attn.kv_b_proj.weight"):
            found += _latent(config, name, shapes[name], names)
        elif (leaf == "weight" or _has_bias(kind, name)) and (new := names.get_name(module)):
            heads = 0
            if kind == "llama" and module.endswith(("self_attn.q_proj", "self_attn.k_proj")):
                heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            form = "permuted" if heads else "rows"
            found.append(Target(f"{new}.{leaf}", shapes[name], (name,), form, heads))
        else:
            unknown.append(name)
    for module, parts in experts.items():
        shape, new = shapes[parts[0]] if 0 in parts else (), names.get_name(module)
        whole = set(parts) == set(range(getattr(config, "n_routed_experts", 0) or 0))
        if not new or not whole or any(shapes[name] != shape for name in parts.values()):
            unknown.append(module)
        else:
            sources = tuple(parts[key] for key in range(len(parts)))
            found.append(Target(f"{new}.weight", (len(parts), *shape), sources, "experts"))
    if unknown:
        raise UserError("gguf_tensors_unknown", model=kind, names=unknown[:3], count=len(unknown))
    if missing := _missing(config, shapes):
        raise UserError("gguf_tensors_missing", names=missing[:3])
    return found


def _missing(config: Any, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Names of weights that are not there: outside the layers, or in a layer and not in all others of its kind."""
    wanted = {"model.embed_tokens.weight", "model.norm.weight"}
    wanted |= set() if config.tie_word_embeddings else {"lm_head.weight"}
    layers: dict[int, set[str]] = {number: set() for number in range(config.num_hidden_layers)}
    for name in shapes:
        if match := _LAYER.match(name):
            layers.setdefault(int(match[1]), set()).add(name[match.end() :])
    dense = getattr(config, "first_k_dense_replace", 0) or 0
    for kind in (range(dense), range(dense, config.num_hidden_layers)):
        every = set().union(*(layers[number] for number in kind if number in layers)) or {"*"}
        wanted |= {f"model.layers.{number}.{name}" for number in kind for name in every - {"rotary_emb.inv_freq"}}
    return sorted(wanted - shapes.keys())


def _order(name: str) -> tuple:
    layer = _LAYER.match(name)
    return (1, int(layer[1]), name) if layer else (0 if "embed" in name else 2, 0, name)


def _has_bias(kind: str, name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return leaf == "bias" and module.rpartition(".")[2] in _BIASED.get(kind, ())


def _latent(config: Any, name: str, shape: tuple[int, ...], names) -> list[Target]:
    """Keys [head, latent, size] and values [head, size, latent] of the up-projection [heads · sizes, latent]."""
    heads, keys, values = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    if shape != (heads * (keys + values), config.kv_lora_rank):
        raise UserError("gguf_tensors_unknown", model=config.model_type, names=[name], count=1)
    module = name.removesuffix(".kv_b_proj.weight")
    return [
        Target(f"{names.get_name(f'{module}.k_b_proj')}.weight", (heads, shape[1], keys), (name,), "keys", heads),
        Target(f"{names.get_name(f'{module}.v_b_proj')}.weight", (heads, values, shape[1]), (name,), "values", heads),
    ]


def permuted(rows, heads: int):
    """Rows of q or k so that rotation pairs neighbors: transformers pairs the halves of a head."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def rope_factors(config: Any):
    """llama3's divisors of the frequencies, float32 [head size / 2], or None for other kinds of RoPE."""
    import torch

    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    frequencies = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def describe(config: Any, writer, context: int) -> None:
    """Write the sizes and RoPE's settings into a GGUFWriter."""
    import gguf

    rope = config.rope_parameters
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if config.model_type == "deepseek_v2":
        _describe_deepseek(config, writer)
    else:
        size = head_size(config)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(size)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def _describe_deepseek(config: Any, writer) -> None:
    import gguf

    latent, rotary = config.kv_lora_rank, config.qk_rope_head_dim
    writer.add_head_count_kv(1)  # attention on latents: all heads share one
    writer.add_key_length(latent + rotary)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config.qk_nope_head_dim + rotary)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_kv_lora_rank(latent)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_rope_dimension_count(rotary)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts or 0)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(float(config.routed_scaling_factor))
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    if (spread := config.rope_parameters.get("mscale_all_dim")) is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * spread)  # llama.cpp multiplies it by ten for this architecture
