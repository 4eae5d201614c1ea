"""What attention modules of transformers call while a decoding step is recorded: each row's pages are read in place.

Multi-head latent attention stays in its latents, as DeepSeek-V2's paper has it for inference (arXiv 2405.04434, 2.1.2):
the matrix that makes keys of latents is multiplied to the queries, the one that makes values to the result. So a
token's 576 numbers are read instead of the thousands that they would be expanded to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workbench.models.quantized.weights import unpacked

NAME = "workbench_recorded"
_REFUSED = {"s_aux": "sinks", "softcap": "soft-capped scores", "position_bias": "a bias"}


@dataclass
class Places:
    """Where rows have their tokens: `table` [rows, pages] int32, `lengths` [rows] int32. `window` of sliding layers.
    `latent`: the matrices of latent attention of each module, which last as long as a recording that reads them."""

    table: Tensor
    lengths: Tensor
    window: int
    latent: dict[torch.nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)


class _State:
    places: Places | None = None


@contextmanager
def reading(model, places: Places) -> Iterator[None]:
    """Inside, the attention of `model` reads pages where `places` says; keys and values are the cache's pools."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    configs = {id(m.config): m.config for m in model.modules() if getattr(m, "config", None) is not None}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    latent = [module for module in model.modules() if _is_latent(module)]
    for module in latent:
        module.expand_kv = _not_expanded
    for config, kind in before:
        if kind is not None:
            config._attn_implementation = NAME
    _State.places = places
    try:
        yield
    finally:
        _State.places = None
        for config, kind in before:
            if kind is not None:
                config._attn_implementation = kind
        for module in latent:
            del module.expand_kv


def _is_latent(module) -> bool:
    return hasattr(module, "expand_kv") and hasattr(module, "kv_b_proj") and hasattr(module, "qk_nope_head_dim")


def _not_expanded(latents: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    return latents, rotated


def _attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others,
) -> tuple[Tensor, None]:
    """query [rows, heads, 1, d]; key and value: a layer's pools -> [rows, 1, heads, dv].

    Raises:
        ValueError: for what the kernels do not compute.
    """
    from workbench.engine.recorded.attention_kernels import attend

    places = _State.places
    if places is None:
        raise ValueError("no step is being recorded")
    for name, what in _REFUSED.items():
        if others.get(name) is not None:
            raise ValueError(f"its attention has {what}")
    query = query[:, :, 0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = places.window if sliding_window else 0
    if not _is_latent(module):
        out = attend(query, key, value, places.table, places.lengths, scale, window)
        return out.unsqueeze(1), None
    if module not in places.latent:
        places.latent[module] = latent_matrices(module)
    to_latent, from_latent = places.latent[module]
    plain, rotated = query[..., : module.qk_nope_head_dim], query[..., module.qk_nope_head_dim :]
    inside = torch.bmm(plain.transpose(0, 1), to_latent).transpose(0, 1)
    out = attend(inside, key, None, places.table, places.lengths, scale, window, more=(rotated, value))
    return torch.bmm(out.transpose(0, 1), from_latent).transpose(0, 1).unsqueeze(1), None


def latent_matrices(module) -> tuple[Tensor, Tensor]:
    """`(queries to latents [heads, nope, rank], latents to values [heads, rank, dv])` of a latent attention's
    `kv_b_proj`, with the LoRA that is switched on.

    Raises:
        ValueError: for another kind of layer or adapter.
    """
    weight = _weight(module.kv_b_proj)
    nope, dv = module.qk_nope_head_dim, module.v_head_dim
    both = weight.view(-1, nope + dv, weight.shape[1])
    return both[:, :nope].contiguous(), both[:, nope:].transpose(1, 2).contiguous()


def _weight(layer) -> Tensor:
    """The weight of a linear layer [out, in], with the LoRA that is switched on."""
    if getattr(layer, "bias", None) is not None:
        raise ValueError("its latents are expanded with a bias")
    if not hasattr(layer, "lora_A"):
        return unpacked(layer.weight)
    if hasattr(layer, "parameter_name") or layer.merged:
        raise ValueError("the adapter of its latents is of another kind")
    weight = _weight(layer.base_layer)
    for name in [] if layer.disable_adapters else layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in layer.lora_variant:
            raise ValueError("the adapter of its latents is a variant of LoRA")
        product = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float()
        weight = (weight.float() + layer.scaling[name] * product).to(weight.dtype)
    return weight
