"""Attention between bounds: conversations laid end to end in one row, each attending only to itself.

transformers' own ways build an [n, n] mask for such a row, or ask the positions where a conversation starts, which
waits for the GPU. Here the bounds come as a tensor of fixed size (`cu_seq_lens_q`, as transformers names it for flash
attention), so that a step with other bounds is the same CUDA graph. On a GPU the kernels are flash attention's (Dao,
arXiv 2307.08691) as built into PyTorch; they want values as wide as keys, so multi-head latent attention's (128
beside 192) are filled up. Elsewhere every conversation is a call of PyTorch's own attention.

`use_bounds` puts it in the place of `sdpa`, which still computes what comes without bounds: evaluation, answers.
"""

import itertools
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from workbench.messages.message import Message

NAME = "workbench_bounds"
_FLASH = ("flash_attention_2", "flash_attention_3")  # these take bounds by themselves


_ROUNDING = 0.05  # of the largest value: what other conversations may change by rounding, in 16 bits


class _State:
    bounded = False  # the forward pass at hand has bounds and needs no masks
    calls = 0  # of attention with bounds


@torch.library.custom_op("workbench::bounded_attention", mutates_args=())
def bounded_attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Causal attention of each conversation.

    Args:
        q: [n, heads, d]. k: [n, groups, d]. v: [n, groups, dv]; groups divide the heads.
        bounds: [slots + 1] int32, where conversations start, and n; unused slots are empty.
        longest: tokens of the longest conversation that may come; no tensor's size depends on it.
        window: tokens that a token sees, itself among them; 0 for all before it.

    Returns:
        [n, heads, dv], and the logarithm of each softmax's sum (flash attention's layout; empty on the CPU).
    """
    if q.device.type != "cuda":
        return _one_by_one(q, k, v, bounds, scale, window), q.new_empty(0)
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        q, k, _widened(v, q), bounds, bounds, longest, longest, 0.0, True, False, scale=scale, **_window(window)
    )
    return out[..., : v.shape[-1]].contiguous(), sums


@bounded_attention.register_fake
def _(q, k, v, bounds, longest, scale, window):
    sums = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32) if q.device.type == "cuda" else q.new_empty(0)
    return q.new_empty(*q.shape[:-1], v.shape[-1]), sums


@torch.library.custom_op("workbench::bounded_attention_backward", mutates_args=())
def bounded_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if q.device.type != "cuda":
        return _one_by_one_backward(grad, q, k, v, bounds, scale, window)
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of dropout, of which there is none
    of_q, of_k, of_v = torch.ops.aten._flash_attention_backward(
        _widened(grad, q),
        q,
        k,
        _widened(v, q),
        _widened(out, q),
        sums,
        bounds,
        bounds,
        longest,
        longest,
        0.0,
        True,
        unused,
        unused,
        scale=scale,
        **_window(window),
    )
    return of_q.contiguous(), of_k.contiguous(), of_v[..., : v.shape[-1]].contiguous()


@bounded_attention_backward.register_fake
def _(grad, q, k, v, out, sums, bounds, longest, scale, window):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup(ctx, inputs, output):
    q, k, v, bounds, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, *output, bounds)


def _backward(ctx, grad, _):
    q, k, v, out, sums, bounds = ctx.saved_tensors
    grads = bounded_attention_backward(grad.contiguous(), q, k, v, out, sums, bounds, *ctx.numbers)
    return *grads, None, None, None, None


bounded_attention.register_autograd(_backward, setup_context=_setup)


def _widened(x: Tensor, like: Tensor) -> Tensor:
    missing = like.shape[-1] - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x


def _window(window: int) -> dict:
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, window: int) -> Tensor:
    """A call of PyTorch's attention for each conversation."""
    parts = []
    for start, end in itertools.pairwise(bounds.tolist()):
        if end == start:
            continue
        one, other, values = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        mask = _seen(end - start, window, q.device) if window and end - start > window else None
        out = F.scaled_dot_product_attention(
            one, other, values, mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _one_by_one_backward(grad, q, k, v, bounds, scale, window) -> tuple[Tensor, Tensor, Tensor]:
    """The way back through `_one_by_one`, written out: an operator has no autograd inside."""
    grads = [torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)]
    times = q.shape[1] // k.shape[1]
    for start, end in itertools.pairwise(bounds.tolist()):
        one, g = (x[start:end].float().transpose(0, 1) for x in (q, grad))
        keys, values = (x[start:end].float().transpose(0, 1).repeat_interleave(times, 0) for x in (k, v))
        scores = one @ keys.transpose(1, 2) * scale
        p = scores.masked_fill(~_seen(end - start, window, q.device), -torch.inf).softmax(-1)
        of_p = g @ values.transpose(1, 2)
        of_scores = p * (of_p - (of_p * p).sum(-1, keepdim=True)) * scale
        parts = of_scores @ keys, of_scores.transpose(1, 2) @ one, p.transpose(1, 2) @ g
        for total, part in zip(grads, parts, strict=True):
            heads = total.shape[1]
            total[start:end] = part.unflatten(0, (heads, -1)).sum(1).transpose(0, 1)
    return tuple(total.to(x.dtype) for total, x in zip(grads, (q, k, v), strict=True))


def _seen(length: int, window: int, device) -> Tensor:
    """[length, length] of one conversation: what each token attends to."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < (window or length or 1))


def bounded_attention_forward(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others,
) -> tuple[Tensor, None]:
    """What an attention module of transformers calls: query [1, heads, n, d], key, value -> [1, n, heads, dv].

    Raises:
        ValueError: with bounds, for what they do not go together with.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if not torch.compiler.is_compiling():
        _State.calls += 1
        for name, what in (("s_aux", "sinks"), ("softcap", "soft-capped logits"), ("position_bias", "a bias")):
            if others.get(name) is not None:
                raise ValueError(f"its attention has {what}")
        if dropout:
            raise ValueError("its attention has dropout")
    # flash attention gives its results in the order in memory that these have; a compiler fuses the copies away
    q, k, v = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    if q.dtype is torch.float32 and q.device.type == "cuda":  # flash attention has none
        dtype = torch.get_autocast_dtype("cuda")
        q, k, v = (x.to(dtype) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    longest = int(max_length_q) if not torch.compiler.is_compiling() else max_length_q
    window = sliding_window or 0
    if q.device.type == "cpu" and not torch.compiler.is_compiling():  # autograd knows what to store
        out = _one_by_one(q, k, v, cu_seq_lens_q, scale, window)
    else:
        out = bounded_attention(q, k, v, cu_seq_lens_q, longest, scale, window)[0]
    return out.unsqueeze(0).to(query.dtype), None


def _mask(*args, **kwargs):
    return None if _State.bounded else masking_utils.sdpa_mask(*args, **kwargs)


def use_bounds(model: PreTrainedModel) -> str:
    """Let `model` attend between bounds where it is given some. Returns why it cannot, or nothing.

    Two tiny forward passes find out: every layer must ask for attention once, and for nothing that bounds do not go
    together with; and a conversation must come out the same after another one. Then the model is left as it was.
    """
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        return Message("attention_layers", kinds=sorted(others))
    if not (isinstance(model, PreTrainedModel) and model._supports_attention_backend):
        return Message("attention_own_code")
    before = config._attn_implementation
    if before in (*_FLASH, NAME):  # or it was asked before
        return ""
    if before != "sdpa":
        return Message("attention_kind", kind=before)
    if getattr(config, "attention_dropout", 0.0):
        return Message("attention_dropout")
    if getattr(config, "attention_chunk_size", None):
        return Message("attention_chunked")
    ALL_ATTENTION_FUNCTIONS.register(NAME, bounded_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)
    owners = [module.config for module in model.modules() if getattr(module, "config", None) is not None]
    owners = [owner for owner in {id(owner): owner for owner in owners}.values() if _implementation(owner) == "sdpa"]
    for owner in owners:
        owner._attn_implementation = NAME
    reason = _tried(model, config)
    if reason:
        for owner in owners:
            owner._attn_implementation = before
    return reason


def _implementation(config) -> str | None:
    return getattr(config, "_attn_implementation", None)


def _tried(model, config) -> str:
    """Why a forward pass with bounds fails, or nothing."""
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None] % config.vocab_size
    others = torch.where(torch.arange(8, device=device) < 5, (ids + 3) % config.vocab_size, ids)
    bounds = torch.tensor([0, 5, 8, 8], dtype=torch.int32, device=device)
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]], device=device)
    _State.calls, training = 0, model.training
    mixed = device.type == "cuda"
    dtype = model.get_input_embeddings().weight.dtype
    try:
        model.eval()
        with torch.no_grad(), no_masks(), torch.autocast(device.type, dtype=dtype, enabled=mixed):
            hidden, changed = (
                model.base_model(
                    input_ids=given, position_ids=places, use_cache=False, **bounds_arguments(bounds, 8)
                ).last_hidden_state[0, 5:]
                for given in (ids, others)
            )
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        model.train(training)
    layers = config.num_hidden_layers
    if _State.calls != 2 * layers:
        return Message("attention_calls", count=_State.calls // 2, layers=layers)
    if (hidden - changed).abs().max() > _ROUNDING * hidden.abs().max():
        return Message("attention_carries")
    return ""


def bounds_arguments(bounds: Tensor, longest: int) -> dict:
    """The arguments of a model's forward pass that carry the bounds; transformers' names."""
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


@contextmanager
def no_masks():
    """Inside, forward passes have bounds, and transformers neither builds masks nor looks at positions for them."""
    saved, _State.bounded = masking_utils.find_packed_sequence_indices, True
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, _State.bounded = saved, False
