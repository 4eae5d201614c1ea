"""Forward and backward of packed (4-bit) experts that are frozen: grouped matrix products on dequantised weights.

For a token's hidden state x, expert e with weight w:  y = w · W_d a,  a = act(W_g x) ⊙ (W_u x).

Only inputs are kept for the backward pass, never a dequantised weight. The weights get no gradient; inputs and routing
weights do. The gradient of a routing weight needs no down projection again: dL/dw = g · (W_d a) = (W_dᵀ g) · a, and
W_dᵀ g is at hand. Works in float32, bfloat16 and float16, on the CPU and on GPUs.
"""

import bitsandbytes.functional as bnb
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _can_use_grouped_mm

NAME = "packed_experts"


def use_packed_experts(model) -> None:
    """Let `model` compute its experts with `packed_experts_forward`."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, packed_experts_forward)
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "_apply_gate")}.values():
        config._experts_implementation = NAME


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
        that own rows (V100, T4, older torch).
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


class _PackedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, index, routing, module):
        order, ends = _sort(index, module.num_experts)
        rows = hidden[order // index.shape[1]]
        gate_up = grouped(rows, unpacked(module.gate_up_proj).transpose(1, 2), ends)
        gated = module._apply_gate(gate_up)
        out = grouped(gated, unpacked(module.down_proj).transpose(1, 2), ends)
        del gated
        weighted = out * routing.reshape(-1)[order].unsqueeze(-1)
        ctx.module = module
        ctx.save_for_backward(hidden, index, routing, gate_up)
        return _sum_of_choices(weighted, order, index.shape).to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad):
        hidden, index, routing, gate_up = ctx.saved_tensors
        module = ctx.module
        order, ends = _sort(index, module.num_experts)
        rows = grad[order // index.shape[1]]
        with torch.enable_grad():
            source = gate_up.detach().requires_grad_()
            gated = module._apply_gate(source)
        through_down = grouped(rows, unpacked(module.down_proj), ends)
        grad_routing = torch.empty_like(routing.reshape(-1))
        grad_routing[order] = (through_down * gated.detach()).sum(-1, dtype=torch.float32).to(routing.dtype)
        through_down = through_down * routing.reshape(-1)[order].unsqueeze(-1).to(through_down.dtype)
        (grad_gate_up,) = torch.autograd.grad(gated, source, through_down)
        grad_rows = grouped(grad_gate_up, unpacked(module.gate_up_proj), ends)
        return (
            _sum_of_choices(grad_rows, order, index.shape).to(hidden.dtype),
            None,
            grad_routing.view_as(routing),
            None,
        )


def _sort(index: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(order, ends)`: positions of the `[T, k]` choices sorted by expert, and where each expert's rows end (int32)."""
    chosen, order = torch.sort(index.reshape(-1), stable=True)
    ends = torch.searchsorted(chosen, torch.arange(experts, device=index.device), right=True)
    return order, ends.to(torch.int32)


def _sum_of_choices(rows: torch.Tensor, order: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Rows sorted by expert back to `[T, k, …]`, summed over the k choices (deterministic, float32 accumulation)."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return rows[back].view(*shape, -1).sum(dim=1)


def packed_experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """What an experts module of transformers calls: [T, H], [T, k], [T, k] -> [T, H]."""
    return _PackedExperts.apply(hidden_states, top_k_index, top_k_weights, self)
