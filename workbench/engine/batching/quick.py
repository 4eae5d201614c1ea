"""A leaner forward pass for the common layer: what a decoding step on the CPU spends beside its products.

transformers' code makes about 45 small operations in a layer, which take as long as reading the weights of a small
model. Here the same layer takes about 25: the norms by sums of squares, keys and queries rotated together, the
attention called directly. It reads the modules of the model as they are at that moment, LoRA layers included, and is
used only after a trial has shown that it computes what the model does (`fit.py`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.engine.batching.cache import PagedCache

_FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass
class _Norm:
    """x · w / √(mean(x²) + eps), as x · (w √d) / √(Σx² + eps · d)."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module) -> "_Norm":
        width = module.weight.shape[0]
        return cls(module.weight.detach() * width**0.5, module.variance_epsilon * width)

    def __call__(self, x: Tensor) -> Tensor:
        return x * (x * x).sum(-1, keepdim=True).add_(self.eps).rsqrt_() * self.weight


class QuickForward:
    """The forward pass of one model; raises ValueError for one that is not of the known families in float32 on the
    CPU."""

    def __init__(self, model):
        config = model.config.get_text_config()
        if type(model).__name__ not in _FAMILIES or model.get_input_embeddings().weight.dtype is not torch.float32:
            raise ValueError("not a model that this knows")
        if model.get_input_embeddings().weight.device.type != "cpu" or config.hidden_act not in ("silu", "swish"):
            raise ValueError("not a model that this knows")
        self.model, self.body = model, model.model
        self.layers = list(self.body.layers[: config.num_hidden_layers])
        self.kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(self.layers)
        self.norms = [(_Norm.of(one.input_layernorm), _Norm.of(one.post_attention_layernorm)) for one in self.layers]
        heads = [one.self_attn for one in self.layers]
        self.head_norms = [
            (_Norm.of(one.q_norm), _Norm.of(one.k_norm)) if hasattr(one, "q_norm") else None for one in heads
        ]
        self.last = _Norm.of(self.body.norm)
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = heads[0].head_dim

    def __call__(self, ids: Tensor, positions: Tensor, masks, cache: PagedCache) -> Tensor:
        """Logits [rows, vocabulary] after the last token of each row."""
        rows, length = ids.shape
        x = self.body.embed_tokens(ids)
        cos, sin = self.body.rotary_emb(x, position_ids=positions)
        half = self.width // 2
        cos, sin = cos[:, :, None], torch.cat((-sin[..., :half], sin[..., half:]), -1)[:, :, None]
        kinds = masks if isinstance(masks, dict) else dict.fromkeys(set(self.kinds), masks)
        kinds = {kind: self._for_groups(kinds[kind]) for kind in set(self.kinds)}
        for number, layer in enumerate(self.layers):
            before, after = self.norms[number]
            attention = layer.self_attn
            h = before(x)
            q = attention.q_proj(h).view(rows, length, self.heads, self.width)
            k = attention.k_proj(h).view(rows, length, self.groups, self.width)
            v = attention.v_proj(h).view(rows, length, self.groups, self.width)
            norms = self.head_norms[number]
            if norms:
                q, k = norms[0](q), norms[1](k)
            both = torch.cat((q, k), 2)
            both = torch.addcmul(both * cos, both.roll(half, -1), sin).transpose(1, 2)
            keys, values = cache.update(both[:, self.heads :], v.transpose(1, 2), number)
            mask = kinds[self.kinds[number]]
            x = x + attention.o_proj(self._attend(both[:, : self.heads], keys, values, mask, attention.scaling))
            h = after(x)
            mlp = layer.mlp
            x = x + mlp.down_proj(F.silu(mlp.gate_proj(h)).mul_(mlp.up_proj(h)))
        return self.model.lm_head(self.last(x[:, -1]))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """`mask` [rows, 1, heads per group · length, tokens]: the heads of a group are laid one behind the other, as if
        they were tokens, so that keys and values need no copies."""
        rows, _, length, _ = q.shape
        q = q.reshape(rows, self.groups, -1, self.width)
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale).view(rows, self.heads, length, self.width)
        return out.transpose(1, 2).reshape(rows, length, -1)

    def _for_groups(self, mask: Tensor | None) -> Tensor | None:
        if mask is None or mask.shape[2] == 1:  # the same for all
            return mask
        return mask.repeat(1, 1, self.heads // self.groups, 1)


def quick_forward(model: nn.Module) -> QuickForward | None:
    """The lean pass of a model, None where there is none for it."""
    try:
        return QuickForward(model)
    except (ValueError, AttributeError):
        return None
