"""Forward and backward of packed (4-bit) experts that are frozen: grouped matrix products on dequantised weights.

For a token's hidden state x and routing weight w, an expert gives  w · W_d a = W_d (w · a),  a = act(W_g x) ⊙ (W_u x).
The routing weight goes in before the down projection. So its gradient comes from the product W_dᵀ g that the backward
pass needs anyway, and nothing needs the output of the down projection again.

Only two steps are opaque to autograd and to torch.compile, the grouped products (`workbench::grouped_product`): they
dequantise, multiply and forget the weights. Their backward pass gives the gradient of the rows and none of the weights.
Everything between them is plain torch, which a compiler fuses. Works in float32, bfloat16 and float16, on the CPU and
on GPUs.
"""

import weakref

import bitsandbytes.functional as bnb
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _can_use_grouped_mm

NAME = "packed_experts"
_modules: "weakref.WeakValueDictionary[int, torch.nn.Module]" = weakref.WeakValueDictionary()


def use_packed_experts(model) -> None:
    """Let `model` compute its fused experts with `packed_experts_forward`."""
    from workbench.models.quant4 import is_fused_experts

    ALL_EXPERTS_FUNCTIONS.register(NAME, packed_experts_forward)
    for module in model.modules():
        if is_fused_experts(module):
            number = len(_modules)
            while number in _modules:
                number += 1
            _modules[number] = module
            # a tensor, not an int: torch.compile would make one graph per layer for an int that differs
            module.packed_handle = torch.tensor(number, dtype=torch.int64, device="cpu")
            module.config._experts_implementation = NAME


def unpacked(parameter) -> torch.Tensor:
    """The `[E, out, in]` weights of a packed parameter, in the dtype they were quantised from."""
    return bnb.dequantize_4bit(parameter.data, parameter.quant_state)


def grouped(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`rows[i] @ weights[e]` where expert e owns the rows up to `ends[e]`.

    Args:
        rows: [S, in], sorted by expert.
        weights: [E, in, out] (a transposed view is fine).
        ends: [E] int32, cumulative row counts.

    Returns:
        [S, out] in the dtype of the weights. torch's `grouped_mm` where the device has it, else a loop over the experts
        that own rows (V100, T4, CPU).
    """
    rows = rows.to(weights.dtype)
    if weights.device.type == "cuda" and weights.dtype is torch.bfloat16 and _can_use_grouped_mm(rows, weights, ends):
        return torch.nn.functional.grouped_mm(rows, weights, offs=ends)
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(rows[start:end], weights[expert], out=out[start:end])
        start = end
    return out


@torch.library.custom_op("workbench::grouped_product", mutates_args=())
def grouped_product(
    rows: torch.Tensor, ends: torch.Tensor, handle: torch.Tensor, name: str, out_features: int, transposed: bool
) -> torch.Tensor:
    """Rows times the packed parameter `name` of the module with this handle; `transposed` for the way back."""
    weights = unpacked(getattr(_modules[int(handle)], name))
    product = grouped(rows, weights if transposed else weights.transpose(1, 2), ends)
    return product if product.dtype == rows.dtype else product.to(rows.dtype)


@grouped_product.register_fake
def _(rows, ends, handle, name, out_features, transposed):
    return rows.new_empty(rows.shape[0], out_features)


def _setup(ctx, inputs, output):
    rows, ends, handle, name, _, transposed = inputs
    ctx.save_for_backward(ends, handle)
    ctx.name, ctx.in_features, ctx.transposed = name, rows.shape[1], transposed


def _backward(ctx, grad):
    ends, handle = ctx.saved_tensors
    grad_rows = grouped_product(grad.contiguous(), ends, handle, ctx.name, ctx.in_features, not ctx.transposed)
    return grad_rows, None, None, None, None, None


torch.library.register_autograd("workbench::grouped_product", _backward, setup_context=_setup)


class _ToExperts(torch.autograd.Function):
    """[T, H] to the rows of each choice, sorted by expert. The way back sums a token's k rows without atomics."""

    @staticmethod
    def forward(ctx, hidden, order, back, k):
        ctx.save_for_backward(back)
        ctx.k = k
        return hidden[order // k]

    @staticmethod
    def backward(ctx, grad):
        (back,) = ctx.saved_tensors
        # autocast makes a sum float32; the residual stream must not become that
        return grad[back].view(-1, ctx.k, grad.shape[-1]).sum(dim=1).to(grad.dtype), None, None, None


class _FromExperts(torch.autograd.Function):
    """Rows sorted by expert to [T, H], summed over a token's k choices. The way back copies."""

    @staticmethod
    def forward(ctx, rows, order, back, k):
        ctx.save_for_backward(order)
        ctx.k = k
        return rows[back].view(-1, k, rows.shape[-1]).sum(dim=1).to(rows.dtype)

    @staticmethod
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        return grad[order // ctx.k], None, None, None


class _Gated(torch.autograd.Function):
    """`act(gate) * up * weight` that keeps only its inputs, for code that is not compiled (a compiler sees to it)."""

    @staticmethod
    def forward(ctx, gate_up, weight, module):
        ctx.save_for_backward(gate_up, weight)
        ctx.module = module
        return module._apply_gate(gate_up).mul_(weight.to(gate_up.dtype).unsqueeze(-1))

    @staticmethod
    def backward(ctx, grad):
        gate_up, weight = ctx.saved_tensors
        with torch.enable_grad():
            source = gate_up.detach().requires_grad_()
            gated = ctx.module._apply_gate(source)
        grad_weight = (grad * gated.detach()).sum(-1, dtype=torch.float32).to(weight.dtype)
        (grad_gate_up,) = torch.autograd.grad(gated, source, grad * weight.to(grad.dtype).unsqueeze(-1))
        return grad_gate_up, grad_weight, None


def packed_experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """What an experts module of transformers calls: [T, H], [T, k], [T, k] -> [T, H]."""
    k = top_k_index.shape[-1]
    chosen, order = torch.sort(top_k_index.reshape(-1), stable=True)
    ends = torch.searchsorted(chosen, torch.arange(self.num_experts, device=chosen.device), right=True).to(torch.int32)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    rows = _ToExperts.apply(hidden_states, order, back, k)
    gate_up = grouped_product(rows, ends, self.packed_handle, "gate_up_proj", self.packed_sizes[0], False)
    weights = top_k_weights.reshape(-1)[order]
    if torch.compiler.is_compiling():
        gated = self._apply_gate(gate_up) * weights.unsqueeze(-1)
    else:
        gated = _Gated.apply(gate_up, weights, self)
    out = grouped_product(gated.to(rows.dtype), ends, self.packed_handle, "down_proj", self.packed_sizes[1], False)
    return _FromExperts.apply(out, order, back, k)
