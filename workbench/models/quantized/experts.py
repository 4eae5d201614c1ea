"""Forward and backward of packed (4-bit) experts that are frozen, with or without LoRA: grouped matrix products.

For a token's hidden state x and routing weight w, an expert gives  w · W_d a = W_d (w · a),  a = act(W_g x) ⊙ (W_u x).
The routing weight goes in before the down projection. So its gradient comes from the product W_dᵀ g that the backward
pass needs anyway, and nothing needs the output of the down projection again.

Forward and backward are one operator each (`workbench::experts`, `workbench::experts_backward`), opaque to autograd and
to torch.compile. What the backward pass needs beside the operator's inputs is `gate_up`; the forward pass hands it over
where it may be kept (`module.keep_gate_up`), else it is computed again. Unpacked weights live for one product, or from
the recomputation to the product that needs them again. With `in_halves` those of `gate_proj` and of `up_proj` are never
there at once: a layer's largest need is smaller by that, but one of them is unpacked once more on the way back.

LoRA on an expert's matrix W adds  s · B (A x)  with one A and B per expert; products with them are grouped too.

Everything works in float32, bfloat16 and float16, on the CPU and on GPUs. The Triton kernels are used where they can
be; the plain versions beside their calls say what they compute.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _can_use_grouped_mm, _default_apply_gate

from workbench.models.quantized import few_rows
from workbench.models.quantized.expert_lora import lora_factors, unscaled_factors
from workbench.models.quantized.layout import BLOCK, is_fused_experts
from workbench.models.quantized.weights import is_packed, module_of, on_gpu, products_in, register, weights

NAME = "packed_experts"


def use_packed_experts(model) -> None:
    """Let `model` compute its fused experts with `packed_experts_forward`."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, packed_experts_forward)
    for module in model.modules():
        if is_fused_experts(module):
            register(module)
            module.keep_gate_up = module.in_halves = False
            module.packed_lora = {}  # parameter -> PEFT's wrapper, see `expert_lora`
            act = type(getattr(module, "act_fn", None)).__name__
            module.plain_silu = type(module)._apply_gate is _default_apply_gate and act in ("SiLU", "SiLUActivation")
            module.config._experts_implementation = NAME


def experts_in_halves(model) -> None:
    """Let experts without LoRA on their `gate_up_proj` unpack one half of it at a time."""
    for module in model.modules():
        if getattr(module, "packed_handle", None) is not None and is_fused_experts(module):
            up = module._parameters.get("gate_up_proj")
            if up is not None and is_packed(up):
                _, double, hidden = up.quant_state.shape
                module.in_halves = double // 2 * hidden % BLOCK == 0  # a half of a matrix is whole blocks


def grouped(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """`rows[i] @ matrices[e]` where expert e owns the rows up to `ends[e]`.

    Args:
        rows: [S, in], sorted by expert.
        matrices: [E, in, out] (a transposed view is fine).
        ends: [E] int32, cumulative row counts.

    Returns:
        [S, out] in the dtype of the matrices. torch's `grouped_mm` where the device has it, else a loop over the
        experts that own rows (V100, T4, CPU).
    """
    rows = rows.to(matrices.dtype)
    if _grouped_mm_works(rows, matrices, ends):
        return torch.nn.functional.grouped_mm(rows, matrices, offs=ends)
    out = rows.new_empty(rows.shape[0], matrices.shape[2])
    for expert, (start, end) in enumerate(_spans(ends)):
        if end > start:
            torch.mm(rows[start:end], matrices[expert], out=out[start:end])
    return out


def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """[S, M], [S, N] -> [E, M, N]: for each expert the product of its rows, `left[rows].T @ right[rows]`."""
    left = left.to(right.dtype)
    if _grouped_mm_works(left, right, ends):
        return torch.nn.functional.grouped_mm(left.t(), right, offs=ends)
    out = right.new_zeros(ends.shape[0], left.shape[1], right.shape[1])
    for expert, (start, end) in enumerate(_spans(ends)):
        if end > start:
            torch.mm(left[start:end].t(), right[start:end], out=out[expert])
    return out


def _grouped_mm_works(left: Tensor, right: Tensor, ends: Tensor) -> bool:
    aligned = left.shape[-1] % 8 == 0 and right.shape[-1] % 8 == 0
    return (
        right.device.type == "cuda"
        and right.dtype in (torch.bfloat16, torch.float16)
        and aligned
        and _can_use_grouped_mm(left, right, ends)
    )


def _spans(ends: Tensor) -> list[tuple[int, int]]:
    stops = ends.tolist()
    return list(zip([0, *stops], stops, strict=False))


# ---- routing: which row of the sorted ones belongs to which choice


@torch.library.custom_op("workbench::route", mutates_args=())
def route(index: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the choices [T, k] by expert.

    Returns:
        source: [T k] int32, the choice (t k + j) that each sorted row stands for.
        back: [T k] int32, the sorted row of each choice.
        ends: [E] int32, cumulative row counts.
    """
    keys = index.reshape(-1)
    if on_gpu(keys):
        from workbench.models.quantized import kernels

        return kernels.route(keys, experts)
    chosen, order = torch.sort(keys, stable=True)
    source = order.to(torch.int32)
    back = torch.empty_like(source)
    back[order] = torch.arange(keys.shape[0], dtype=torch.int32, device=index.device)
    experts_there = torch.arange(experts, dtype=keys.dtype, device=index.device)
    ends = torch.searchsorted(chosen, experts_there, right=True, out_int32=True)
    return source, back, ends


@route.register_fake
def _(index, experts):
    flat = index.new_empty(index.numel(), dtype=torch.int32)
    return flat, torch.empty_like(flat), index.new_empty(experts, dtype=torch.int32)


# ---- moving rows and gating, with the plain version of each kernel


def spread(x: Tensor, back: Tensor, k: int) -> Tensor:
    """[T, H] to one row for each choice, sorted by expert: [S, H]."""
    if on_gpu(x):
        from workbench.models.quantized import kernels

        return kernels.spread(x, back, k)
    out = x.new_empty(back.shape[0], x.shape[1])
    out[back.long()] = x.repeat_interleave(k, dim=0)
    return out


def combine(rows: Tensor, back: Tensor, k: int, more: Tensor | None = None) -> Tensor:
    """[S, H] to [T, H], summed over a token's k choices, and over `rows` and `more` [S, H]."""
    if on_gpu(rows):
        from workbench.models.quantized import kernels

        return kernels.combine(rows, back, k, more)
    if more is not None:
        rows = rows + more
    return rows[back.long()].view(-1, k, rows.shape[-1]).sum(dim=1, dtype=torch.float32).to(rows.dtype)


def gate(gates: Tensor, ups: Tensor, weight: Tensor, source: Tensor) -> Tensor:
    """[S, I] twice -> [S, I]: `silu(gates) * ups`, times the routing weight [T k] of each row."""
    if on_gpu(gates):
        from workbench.models.quantized import kernels

        return kernels.gate(gates, ups, weight, source)
    return F.silu(gates) * ups * weight[source.long()].unsqueeze(-1).to(gates.dtype)


def gate_backward(
    gates: Tensor, ups: Tensor, weight: Tensor, source: Tensor, grad: Tensor, out: tuple[Tensor, Tensor]
) -> Tensor:
    """The way back through `gate`: the gradient of `weight`. Those of `gates` and `ups` are written to `out`, which may
    be `(gates, ups)` itself."""
    if on_gpu(gates):
        from workbench.models.quantized import kernels

        return kernels.gate_backward(gates, ups, weight, source, grad, out)
    act = F.silu(gates)
    grad_weight = torch.empty_like(weight)
    grad_weight[source.long()] = (grad.float() * (act * ups).float()).sum(-1).to(weight.dtype)
    grad = grad * weight[source.long()].unsqueeze(-1).to(grad.dtype)
    of_gates, of_ups = torch.ops.aten.silu_backward(grad * ups, gates), grad * act
    out[0].copy_(of_gates)
    out[1].copy_(of_ups)
    return grad_weight


# ---- the operators


def _experts(hidden, weight, source, back, ends, up, down, handle, keep: bool) -> tuple[Tensor, Tensor | None]:
    """`(output [S, H], gate_up [S, 2I] if that is kept)` of the module with this handle."""
    module, k = module_of(handle), weight.shape[-1]
    rows = spread(_as_product(hidden), back, k)
    gate_up = None
    if not _halves(module, up):
        gate_up = _product(module, "gate_up_proj", rows, ends, up)
        gates, ups = gate_up.chunk(2, dim=-1)
    elif keep:
        gate_up = rows.new_empty(rows.shape[0], module.packed_sizes[0])
        gates, ups = gate_up.chunk(2, dim=-1)
        gates.copy_(_half_product(module, 0, rows, ends))
        ups.copy_(_half_product(module, 1, rows, ends))
    else:
        gates, ups = _half_product(module, 0, rows, ends), _half_product(module, 1, rows, ends)
    del rows
    gated = gate(gates, ups, weight.reshape(-1), source)
    if not keep:
        del gate_up, gates, ups
    return _product(module, "down_proj", gated, ends, down), gate_up if keep else None


def _halves(module, up: list[Tensor]) -> bool:
    return module.in_halves and not up and not module.kept_unpacked


def _half_product(module, half: int, rows: Tensor, ends: Tensor) -> Tensor:
    """[S, H] -> [S, I]: each row times its expert's `gate_proj` (0) or `up_proj` (1)."""
    return grouped(rows, weights(module, "gate_up_proj", half).transpose(1, 2), ends)


@torch.library.custom_op("workbench::experts", mutates_args=())
def experts(
    hidden: Tensor,
    weight: Tensor,
    source: Tensor,
    back: Tensor,
    ends: Tensor,
    up: list[Tensor],
    down: list[Tensor],
    handle: Tensor,
) -> Tensor:
    """Routed experts of the module with this handle: [T, H] -> [T, H].

    Args:
        weight: [T, k], the routing weights.
        source, back, ends: from `route`.
        up: nothing, or LoRA's A [E, r, H] and B [E, 2I, r] (scaled) of gate_up_proj.
        down: nothing, or A [E, r, I] and B [E, H, r] of down_proj.
    """
    rows = _experts(hidden, weight, source, back, ends, up, down, handle, False)[0]
    return combine(rows.to(hidden.dtype), back, weight.shape[-1])


@experts.register_fake
def _(hidden, weight, source, back, ends, up, down, handle):
    return hidden.new_empty(hidden.shape)


@torch.library.custom_op("workbench::experts_kept", mutates_args=())
def experts_kept(
    hidden: Tensor,
    weight: Tensor,
    source: Tensor,
    back: Tensor,
    ends: Tensor,
    up: list[Tensor],
    down: list[Tensor],
    handle: Tensor,
    double: int,
) -> tuple[Tensor, Tensor]:
    """`experts` that also hands over `gate_up` [S, double], which the backward pass then need not compute again."""
    rows, gate_up = _experts(hidden, weight, source, back, ends, up, down, handle, True)
    return combine(rows.to(hidden.dtype), back, weight.shape[-1]), gate_up


@experts_kept.register_fake
def _(hidden, weight, source, back, ends, up, down, handle, double):
    dtype = products_in(hidden.dtype, hidden.device.type)
    return hidden.new_empty(hidden.shape), hidden.new_empty(source.shape[0], double, dtype=dtype)


def _as_product(x: Tensor) -> Tensor:
    return x.to(products_in(x.dtype, x.device.type))


def _product(module, name: str, rows: Tensor, ends: Tensor, lora: list[Tensor]) -> Tensor:
    """Each row times its expert's matrix [out, in] and the low-rank update of it: [S, in] -> [S, out]."""
    return _with_lora(grouped(rows, weights(module, name).transpose(1, 2), ends), rows, ends, lora)


def _with_lora(out: Tensor, rows: Tensor, ends: Tensor, lora: list[Tensor]) -> Tensor:
    """Adds the low-rank update in place. The unpacked matrices should be gone by now: this takes memory, too."""
    if lora:
        a, b = _ready(lora, out.dtype)
        out += grouped(grouped(rows, a.transpose(1, 2), ends), b.transpose(1, 2), ends)
    return out


def _ready(lora: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A and B as grouped products take them: B comes as a permuted view of PEFT's parameter."""
    return [part.to(dtype, memory_format=torch.contiguous_format) for part in lora]


def _lora_backward(grad_rows: Tensor, grad: Tensor, rows: Tensor | None, ends: Tensor, lora: list[Tensor]):
    """The way back through `_with_lora`: adds to the gradient of the rows in place; gradients of A and B."""
    if not lora:
        return []
    a, b = _ready(lora, grad_rows.dtype)
    low = grouped(rows, a.transpose(1, 2), ends)
    grad_low = grouped(grad, b, ends)
    grad_rows += grouped(grad_low, a, ends)
    return [
        grouped_outer(grad_low, rows, ends).to(lora[0].dtype),
        grouped_outer(grad, low, ends).to(lora[1].dtype),
    ]


@torch.library.custom_op("workbench::experts_backward", mutates_args=())
def experts_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    source: Tensor,
    back: Tensor,
    ends: Tensor,
    up: list[Tensor],
    down: list[Tensor],
    kept: Tensor,
    handle: Tensor,
) -> list[Tensor]:
    """Gradients of `hidden`, `weight`, and each tensor of `up` and `down`. `kept` is `gate_up` or empty."""
    module, k = module_of(handle), weight.shape[-1]
    recompute, flat = not kept.numel(), weight.reshape(-1)
    grad = _as_product(grad)
    if _halves(module, up):
        return _backward_in_halves(module, grad, hidden, weight, source, back, ends, down, kept)
    rows = spread(_as_product(hidden), back, k) if up or recompute else None
    up_matrices = None
    if not down:  # then this can come before `gate_up` is there
        grad_gated, of_down = _down_backward(module, spread(grad, back, k), None, ends, down)
    if recompute:
        up_matrices = weights(module, "gate_up_proj")
        gate_up = grouped(rows, up_matrices.transpose(1, 2), ends)
        if up or down:  # with LoRA more is alive from here on, so these weights are unpacked again when they are needed
            up_matrices = None
        gate_up = _with_lora(gate_up, rows, ends, up)
    else:
        gate_up = kept
    if not up:
        rows = None
    gates, ups = gate_up.chunk(2, dim=-1)
    if down:
        grad_gated, of_down = _down_backward(module, spread(grad, back, k), gate(gates, ups, flat, source), ends, down)
    grad_gate_up = gate_up if recompute else torch.empty_like(gate_up)
    grad_weight = gate_backward(gates, ups, flat, source, grad_gated, grad_gate_up.chunk(2, dim=-1))
    del gate_up, gates, ups, grad_gated
    if up_matrices is None:
        up_matrices = weights(module, "gate_up_proj")
    grad_rows = grouped(grad_gate_up, up_matrices, ends)
    del up_matrices
    of_up = _lora_backward(grad_rows, grad_gate_up, rows, ends, up)
    del grad_gate_up, rows
    return [combine(grad_rows.to(hidden.dtype), back, k), grad_weight.view(weight.shape), *of_up, *of_down]


def _backward_in_halves(module, grad, hidden, weight, source, back, ends, down, kept) -> list[Tensor]:
    """`experts_backward` without LoRA on `gate_up_proj`, of which one half is unpacked at a time."""
    k, flat = weight.shape[-1], weight.reshape(-1)
    if not down:
        grad_gated, of_down = _down_backward(module, spread(grad, back, k), None, ends, down)
    up_matrices = None
    if kept.numel():
        gates, ups = kept.chunk(2, dim=-1)
        of_gates, of_ups = torch.empty_like(kept).chunk(2, dim=-1)
    else:
        rows = spread(_as_product(hidden), back, k)
        gates = of_gates = _half_product(module, 0, rows, ends)
        if down:
            ups = of_ups = _half_product(module, 1, rows, ends)
        else:  # these matrices are needed again soon
            up_matrices = weights(module, "gate_up_proj", 1)
            ups = of_ups = grouped(rows, up_matrices.transpose(1, 2), ends)
        del rows
    if down:
        grad_gated, of_down = _down_backward(module, spread(grad, back, k), gate(gates, ups, flat, source), ends, down)
    grad_weight = gate_backward(gates, ups, flat, source, grad_gated, (of_gates, of_ups))
    del grad_gated, gates, ups
    if up_matrices is None:
        up_matrices = weights(module, "gate_up_proj", 1)
    more = grouped(of_ups, up_matrices, ends).to(hidden.dtype)
    del of_ups, up_matrices
    rows = grouped(of_gates, weights(module, "gate_up_proj", 0), ends).to(hidden.dtype)
    del of_gates
    grad_hidden = combine(rows, back, k, more)
    return [grad_hidden, grad_weight.view(weight.shape), *of_down]


def _down_backward(module, grad: Tensor, gated: Tensor | None, ends: Tensor, lora: list[Tensor]):
    """`(gradient of the gated rows, gradients of down_proj's A and B)`."""
    grad_gated = grouped(grad, weights(module, "down_proj"), ends)
    return grad_gated, _lora_backward(grad_gated, grad, gated, ends, lora)


@experts_backward.register_fake
def _(grad, hidden, weight, source, back, ends, up, down, kept, handle):
    return [part.new_empty(part.shape) for part in (hidden, weight, *up, *down)]


def _save(ctx, inputs, kept: list[Tensor]) -> None:
    hidden, weight, source, back, ends, up, down, handle = inputs[:8]
    ctx.save_for_backward(hidden, weight, source, back, ends, handle, *kept, *up, *down)
    ctx.parts = len(kept), len(up)


def _gradients(ctx, grad):
    hidden, weight, source, back, ends, handle, *rest = ctx.saved_tensors
    kept, ups = ctx.parts
    up, down = rest[kept : kept + ups], rest[kept + ups :]
    gate_up = rest[0] if kept else hidden.new_empty(0)
    grads = experts_backward(grad.contiguous(), hidden, weight, source, back, ends, up, down, gate_up, handle)
    return grads[0], grads[1], None, None, None, grads[2 : 2 + ups], grads[2 + ups :], None


experts.register_autograd(_gradients, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, []))
experts_kept.register_autograd(
    lambda ctx, grad, _: (*_gradients(ctx, grad), None),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, [output[1]]),
)


# ---- other gates: the same in steps, so that autograd can go through the model's own gate


@torch.library.custom_op("workbench::product", mutates_args=())
def product(rows: Tensor, ends: Tensor, lora: list[Tensor], handle: Tensor, name: str, out_features: int) -> Tensor:
    """`_product` as an operator."""
    return _product(module_of(handle), name, rows, ends, lora)


@product.register_fake
def _(rows, ends, lora, handle, name, out_features):
    return rows.new_empty(rows.shape[0], out_features, dtype=products_in(rows.dtype, rows.device.type))


@torch.library.custom_op("workbench::product_backward", mutates_args=())
def product_backward(
    grad: Tensor, rows: Tensor, ends: Tensor, lora: list[Tensor], handle: Tensor, name: str
) -> list[Tensor]:
    """The way back through `product`: gradients of the rows, and of A and B where there is LoRA."""
    grad_rows = grouped(grad, weights(module_of(handle), name), ends)
    of_lora = _lora_backward(grad_rows, grad.to(grad_rows.dtype), rows.to(grad_rows.dtype), ends, lora)
    return [grad_rows.to(rows.dtype), *of_lora]


@product_backward.register_fake
def _(grad, rows, ends, lora, handle, name):
    return [part.new_empty(part.shape) for part in (rows, *lora)]


def _product_setup(ctx, inputs, output):
    rows, ends, lora, handle, ctx.name, _ = inputs
    ctx.save_for_backward(rows, ends, handle, *lora)


def _product_gradients(ctx, grad):
    rows, ends, handle, *lora = ctx.saved_tensors
    grads = product_backward(grad.contiguous(), rows, ends, lora, handle, ctx.name)
    return grads[0], None, grads[1:], None, None, None


product.register_autograd(_product_gradients, setup_context=_product_setup)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, back, k):
        ctx.save_for_backward(back)
        ctx.k = k
        return spread(hidden, back, k)

    @staticmethod
    def backward(ctx, grad):
        return combine(grad, ctx.saved_tensors[0], ctx.k), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, back, k):
        ctx.save_for_backward(back)
        ctx.k = k
        return combine(rows, back, k)

    @staticmethod
    def backward(ctx, grad):
        return spread(grad, ctx.saved_tensors[0], ctx.k), None, None


def packed_experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """What an experts module of transformers calls: [T, H], [T, k], [T, k] -> [T, H]."""
    names = ("gate_up_proj", "down_proj")
    if self.plain_silu and few_rows.takes(hidden_states) and few_rows.fits_experts(self):
        factors = (unscaled_factors(self, name) for name in names)
        return few_rows.experts(self, hidden_states, top_k_index, top_k_weights, *factors)
    up, down = (lora_factors(self, name) for name in names)
    source, back, ends = route(top_k_index, self.num_experts)
    double, width = self.packed_sizes
    if self.plain_silu:
        inputs = (hidden_states, top_k_weights, source, back, ends, up, down, self.packed_handle)
        return experts_kept(*inputs, double)[0] if self.keep_gate_up else experts(*inputs)
    k = top_k_index.shape[-1]
    rows = _Spread.apply(hidden_states, back, k)
    gate_up = product(rows, ends, up, self.packed_handle, "gate_up_proj", double)
    gated = self._apply_gate(gate_up) * top_k_weights.reshape(-1)[source.long()].unsqueeze(-1).to(gate_up.dtype)
    rows = product(gated, ends, down, self.packed_handle, "down_proj", width)
    return _Combine.apply(rows.to(hidden_states.dtype), back, k)
