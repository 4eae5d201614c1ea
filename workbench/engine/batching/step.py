"""A decoding step of some rows in one call of `models/cpu/kernels.c`: nothing is left but the weights' products.

It is for the base of the models that `QuickForward` knows, with packed layers, and tried as that is (`fit.py`).
"""

import torch
from torch import Tensor

from workbench.engine.batching.cache import PagedCache
from workbench.engine.batching.quick import QuickForward
from workbench.models.cpu import library
from workbench.models.cpu.linear import BlockedLinear


class OneStep:
    """The step of one model and one cache. Raises ValueError for a model that is not as the step needs it."""

    def __init__(self, quick: QuickForward, cache: PagedCache):
        self.body, self.cache = quick.body, cache
        config = quick.model.config.get_text_config()
        window = getattr(config, "sliding_window", None) or 0
        self._held: list[object] = []  # what addresses point to
        self._layers = (library.Layer * len(quick.layers))()
        self._attentions = [one.self_attn for one in quick.layers]
        scales, eps, head_eps = set(), {quick.body.norm.variance_epsilon}, set()
        for entry, layer, kind in zip(self._layers, quick.layers, quick.kinds, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            linears = [getattr(attention, f"{name}_proj") for name in "qkvo"]
            linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
            for name, one in zip(library.LINEARS, linears, strict=True):
                setattr(entry, name, self._packed(one).entry)
            entry.before, entry.after = self._norm(layer.input_layernorm), self._norm(layer.post_attention_layernorm)
            if hasattr(attention, "q_norm"):
                entry.query_norm, entry.key_norm = self._norm(attention.q_norm), self._norm(attention.k_norm)
                head_eps |= {attention.q_norm.variance_epsilon, attention.k_norm.variance_epsilon}
            entry.window = window if kind == "sliding_attention" or not getattr(config, "layer_types", None) else 0
            eps |= {layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon}
            scales.add(attention.scaling)
        if len(scales) != 1 or len(eps) != 1 or len(head_eps) > 1:
            raise ValueError("layers differ")
        first, self._head = quick.layers[0], self._packed(quick.model.lm_head)
        self._library = self._head.library
        self._model = library.Model(
            self._layers, self._norm(quick.body.norm), len(quick.layers), quick.heads, quick.groups, quick.width,
            first.self_attn.q_proj.in_features, first.mlp.gate_proj.out_features, cache.pages * cache.size, cache.size,
            eps.pop(), head_eps.pop() if head_eps else 0.0, scales.pop(), self._head.entry,
        )  # fmt: skip
        self._placed = False

    def _packed(self, module: torch.nn.Module) -> BlockedLinear:
        module = getattr(module, "base_layer", module)  # beside an adapter
        if not isinstance(module, BlockedLinear):
            raise ValueError("a layer is not packed")
        self._held.append(module)
        return module

    def _norm(self, module: torch.nn.Module) -> int:
        weight = module.weight.detach().float().contiguous()
        self._held.append(weight)
        return weight.data_ptr()

    def ready(self) -> bool:
        """Whether the cache has its pools, which it makes when a prompt is read."""
        if not self._placed:
            pools = [self.cache.pools(number) for number in range(len(self._layers))]
            for entry, pair in zip(self._layers, pools, strict=True):
                if pair is None:
                    return False
                entry.keys, entry.values = (pool.data_ptr() for pool in pair)
            self._placed = True
        return True

    def __call__(self, ids: Tensor, positions: Tensor, table: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of one token each. `ids` and `positions` [rows, 1]; `table` [rows, pages]: the
        rows' pages."""
        x, rows = self.body.embed_tokens(ids).clone(), len(ids)
        cos, sin = (one.expand(rows, -1, -1).contiguous() for one in self.body.rotary_emb(x, position_ids=positions))
        logits, tokens, pages = x.new_empty(rows, self._head.out_features), positions + 1, table.contiguous()
        inputs = [one.data_ptr() for one in (x, cos, sin, pages)]
        output, threads = logits.data_ptr(), torch.get_num_threads()
        if self._library.step(self._model, *inputs, table.shape[1], tokens.data_ptr(), rows, output, threads):
            raise MemoryError("not enough memory")
        return logits


def one_step(quick: QuickForward | None, cache: PagedCache) -> OneStep | None:
    """The step of a model, None where there is none for it."""
    if quick is None:
        return None
    try:
        return OneStep(quick, cache)
    except (ValueError, AttributeError):
        return None
