"""Regional torch.compile: every decoder layer is compiled as one region, which fuses the elementwise half of a step.

A layer is either kept, and the compiler chooses what to store for the backward pass, or computed again there. The
second kind stores its input and what is dear to compute and small: the attention's output, the routing, thin products.
The rest, the experts among it, comes from these again; operations whose result nobody needs any more are left out.
"""

import contextlib
import functools
import itertools

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import workbench.models.attention  # noqa: F401  (its operator)
from workbench.models.host_weights import host_weights_of
from workbench.models.layers import decoder_layers
from workbench.models.quantized import experts, linears  # noqa: F401  (their operators)

_THIN = 8  # a product is thin if its result has this many times fewer elements than its first factor
_LINEARS = 2  # outputs of linear layers that are stored, in sizes of the layer's input


def compile_layers(model, stored_in=None, dynamic: bool | None = None, only_inputs: bool = False) -> int:
    """Compile every decoder layer of `model` in place, to be computed again; returns their number.

    Compilation happens with the first step. `stored_in` is a context in which each layer is run forward. `dynamic`:
    whether the compiled code is for any number of tokens; None for the compiler's own way, a second time if another
    number comes. `only_inputs`: a layer stores its input and nothing else.
    """
    if model.config.model_type == "deepseek_v2":
        from workbench.models import rotary

        rotary.install()
    # The compiler would build C++ programs for half a minute to learn what the CPU can do, for code that runs on a GPU.
    if next(model.parameters()).device.type == "cuda":
        from torch._inductor import config

        config.cpp.vec_isa_ok = False
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    # An epsilon is the same number in every step: as a variable of the compiled code it would be traced twice.
    torch._dynamo.config.specialize_float = True
    layers = decoder_layers(model)
    weights = host_weights_of(model)
    around = weights.from_outside() if weights else [_called] * len(layers)
    for layer, call in zip(layers, around, strict=True):
        kind = getattr(type(layer), "plain", type(layer))
        layer.__class__ = _recomputing(kind, _signature(layer), only_inputs)
        layer.stored_in, layer.around = stored_in or contextlib.nullcontext(), call
    compile_again(model, dynamic)
    return len(layers)


def compile_again(model, dynamic: bool | None) -> None:
    """Let the compiler begin anew with the layers of `model`; `dynamic` as in `compile_layers`."""
    torch._dynamo.reset()
    # A layer's modules and their attributes do not change while training, and checking them in every layer of every
    # step costs more than a short batch. Only dropout must tell training from evaluation.
    fixed = not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe} if fixed else None
    for layer in decoder_layers(model):
        layer.compile(options=options, dynamic=dynamic)


def keep_layers(model, count: int, stored_in=None) -> None:
    """Let the last `count` layers keep what they compute for the backward pass, their experts' `gate_up` included.

    `stored_in` is the context in which they are run from now on, if another than before.
    """
    for layer in decoder_layers(model)[::-1][:count]:
        for module in layer.modules():
            if hasattr(module, "keep_gate_up"):
                module.keep_gate_up = True
        if hasattr(type(layer), "plain"):
            layer.__class__ = _keeping(type(layer).plain, _signature(layer))
            layer.stored_in = stored_in or layer.stored_in


def store_layers(model, stored_in) -> None:
    """Run every decoder layer, which is not compiled, within `stored_in`. With transformers' checkpointing that is
    where its input goes."""
    for layer in decoder_layers(model):
        if not hasattr(layer, "stored_in"):
            layer.__class__ = _storing(type(layer))
        layer.stored_in = stored_in


@functools.cache
def _storing(kind: type) -> type:
    def __call__(self, *args, **kwargs):
        with self.stored_in:
            return kind.__call__(self, *args, **kwargs)

    return type(f"Storing{kind.__name__}", (kind,), {"__call__": __call__})


def _signature(layer) -> tuple:
    """What the compiled code of a layer depends on: equal for layers that may share it.

    The compiler would find this out with guards, which are switched off.
    """
    parts = []
    for name, module in layer.named_modules():
        own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in _INDIVIDUAL and _is_plain(v)}
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        tensors = [
            (key, tuple(t.shape), t.dtype, t.requires_grad) for key, t in module._parameters.items() if t is not None
        ]
        kind = getattr(type(module), "plain", type(module))
        parts.append((name, kind, repr(sorted(own.items())), hooks, tuple(tensors)))
    return tuple(parts)


_INDIVIDUAL = ("layer_idx", "training", "packed_handle")


def _is_plain(value) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple | set):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _called(call):
    return call()


def _contexts():
    return create_selective_checkpoint_contexts(_Policy())


# What the compiler made with this policy may be found again by a later process: the folder of its results is one for
# each version of this code (`compiler_cache`).
_contexts.cache_hash = "workbench.train.fast.compiled._Policy"  # type: ignore[attr-defined]


@functools.cache
def _recomputing(kind: type, signature: tuple, only_inputs: bool) -> type:
    """The layer class `kind` with a forward pass that is computed again in the backward pass, but for what `_Policy`
    stores unless it is `only_inputs`."""

    def forward(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return kind.forward(self, *args, **kwargs)
        if kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"] = None  # computing a layer again would write to the cache twice
        run = functools.partial(kind.forward, self)
        if only_inputs or not torch.compiler.is_compiling():  # or the compiler gave up on this layer
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=_contexts, **kwargs)

    return _compiled_kind("Recomputing", kind, forward)


@functools.cache
def _keeping(kind: type, signature: tuple) -> type:
    """The layer class `kind`; the compiler chooses what it stores."""

    def forward(self, *args, **kwargs):
        return kind.forward(self, *args, **kwargs)

    return _compiled_kind("Keeping", kind, forward)


def _compiled_kind(prefix: str, kind: type, forward) -> type:
    def __call__(self, *args, **kwargs):
        with self.stored_in:
            return self.around(functools.partial(kind.__call__, self, *args, **kwargs))

    made = type(f"{prefix}{kind.__name__}", (kind,), {"__call__": __call__, "plain": kind})
    # The compiler keeps its results with the code object of the outermost function. A code object of its own for every
    # signature keeps layers of different make apart; transformers' wrapper for checkpointing would be one for all.
    forward.__code__ = forward.__code__.replace(co_name=f"forward_of_kind_{next(_numbers)}")
    made.forward = forward
    return made


_numbers = itertools.count()


class _Policy:
    """What a recomputed layer stores beside its input. One for each time that a layer is traced.

    Of the 4-bit linear layers' outputs, the first are stored, up to `_LINEARS` times the size of the layer's input:
    that is attention's projections and not the wide ones of the feed-forward part. The copies to the host have time for
    it.
    """

    def __init__(self):
        self._linears = 0

    def __call__(self, ctx, op, *args, **kwargs) -> CheckpointPolicy:
        keep = op in _small_and_dear() or (op in _PRODUCTS and _is_thin(op, args))
        if op is torch.ops.workbench.lora_linear.default:
            x, _, _, _, out_features, _ = args
            if 2 * x.shape[-1] >= out_features and self._linears + out_features <= _LINEARS * self._width(x):
                self._linears += out_features
                keep = True
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    def _width(self, x) -> int:
        self._hidden = getattr(self, "_hidden", x.shape[-1])  # the first linear layer reads what the layer reads
        return self._hidden


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def _is_thin(op, args) -> bool:
    first, second = args[-2:]
    return second.shape[1] * _THIN <= first.shape[1]


@functools.cache
def _small_and_dear() -> frozenset:
    """Attention, routing, the choice of experts, and LoRA's low-rank rows."""
    aten = torch.ops.aten
    names = (
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "flash_attention_for_cpu",
        "fused_attention_overrideable",
    )
    attention = [getattr(aten, f"_scaled_dot_product_{name}", None) for name in names]
    own = torch.ops.workbench
    packets = [packet.default for packet in attention if packet is not None]
    packets += [own.bounded_attention.default, own.route.default, own.low_rank.default]
    return frozenset([*packets, aten.topk.default, aten._softmax.default])
