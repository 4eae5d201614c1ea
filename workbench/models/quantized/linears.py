"""4-bit linear layers with their LoRA as one operator each way, for training on a GPU.

bitsandbytes and PEFT run a layer as a dozen small operations: scales unpacked, weights unpacked, the product, a copy,
two thin products, a scaled sum, casts. Here the low-rank update B (A x) is written first and the large product adds
itself to it on its way out, which costs no pass of its own. A layer keeps its input for the backward pass, and A x,
which is tiny; the way back unpacks the weights again.
"""

import torch
from torch import Tensor, nn

from workbench.models.quantized import few_rows
from workbench.models.quantized.bnb import bnb
from workbench.models.quantized.weights import cast, is_packed, module_of, register, weights


@torch.library.custom_op("workbench::low_rank", mutates_args=())
def low_rank(x: Tensor, a: Tensor, dtype: torch.dtype) -> Tensor:
    """`x Aᵀ` as rows [tokens, r] of the dtype. Its gradient is part of `lora_linear`'s."""
    return x.reshape(-1, x.shape[-1]).to(dtype) @ cast(a, dtype).t()


@low_rank.register_fake
def _(x, a, dtype):
    return x.new_empty(x.numel() // x.shape[-1], a.shape[0], dtype=dtype)


@torch.library.custom_op("workbench::lora_linear", mutates_args=())
def lora_linear(x: Tensor, low: Tensor, lora: list[Tensor], handle: Tensor, out_features: int, scale: float) -> Tensor:
    """`x Wᵀ + scale · (x Aᵀ) Bᵀ` with the packed weight W [out, in] of the module with this handle.

    Args:
        x: [..., in]. lora: nothing, or A [r, in] and B [out, r].
        low: `low_rank(x, A)`, not differentiated; anything without LoRA.
    """
    weight = weights(module_of(handle), "weight")
    rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    if lora:
        out = low @ cast(lora[1], weight.dtype).t()
        out.addmm_(rows, weight.t(), beta=scale)
    else:
        out = rows @ weight.t()
    return out.view(*x.shape[:-1], out_features).to(x.dtype)


@lora_linear.register_fake
def _(x, low, lora, handle, out_features, scale):
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("workbench::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    grad: Tensor,
    x: Tensor,
    low: Tensor,
    lora: list[Tensor],
    handle: Tensor,
    in_features: int,
    scale: float,
    input_too: bool,
) -> list[Tensor]:
    """Gradients of x (empty unless `input_too`), and of A and B where there is LoRA."""
    weight = weights(module_of(handle), "weight") if input_too else None
    dtype = low.dtype if lora else weight.dtype
    rows = grad.reshape(-1, grad.shape[-1]).to(dtype)
    of_lora = []
    if lora:
        a, b = (cast(part, dtype) for part in lora)
        grad_low = rows @ b
        of_lora = [
            _scaled_product(grad_low.t(), x.reshape(-1, in_features).to(dtype), scale, lora[0].dtype),
            _scaled_product(rows.t(), low, scale, lora[1].dtype),
        ]
    if not input_too:
        return [grad.new_empty(0), *of_lora]
    out = (grad_low @ a).addmm_(rows, weight, beta=scale) if lora else rows @ weight
    return [out.view(*grad.shape[:-1], in_features).to(grad.dtype), *of_lora]


def _scaled_product(left: Tensor, right: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """`scale · left right` in `dtype`, on a GPU without a pass of its own for factor and cast."""
    if left.device.type == "cuda" and dtype is torch.float32 and left.dtype is not dtype:
        nothing = left.new_empty((), dtype=dtype)
        return torch.addmm(nothing, left, right, out_dtype=dtype, beta=0, alpha=scale)
    return (left @ right).to(dtype).mul_(scale)


@lora_linear_backward.register_fake
def _(grad, x, low, lora, handle, in_features, scale, input_too):
    of_x = grad.new_empty(*grad.shape[:-1], in_features) if input_too else grad.new_empty(0)
    return [of_x, *[part.new_empty(part.shape) for part in lora]]


def _setup(ctx, inputs, output):
    x, low, lora, handle, _, ctx.scale = inputs
    ctx.in_features = x.shape[-1]
    ctx.save_for_backward(handle, *([x, low, *lora] if lora else []))


def _backward(ctx, grad):
    handle, *rest = ctx.saved_tensors
    x, low, *lora = rest or (grad, grad)
    input_too = ctx.needs_input_grad[0]
    grads = lora_linear_backward(grad.contiguous(), x, low, lora, handle, ctx.in_features, ctx.scale, input_too)
    return grads[0] if input_too else None, None, grads[1:], None, None, None


lora_linear.register_autograd(_backward, setup_context=_setup)


class PackedLinear(bnb.nn.Linear4bit):
    """bitsandbytes' layer, computed with `lora_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        if few_rows.takes(x):
            return few_rows.linear(self, x)
        return self._plus_bias(lora_linear(x, x.detach(), [], self.packed_handle, self.out_features, 1.0))

    def with_lora(self, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """A [r, in] and B [out, r] added to the weight."""
        if few_rows.takes(x):
            return few_rows.linear(self, x, a, b, scale)
        low = low_rank(x.detach(), a.detach(), self.weight.quant_state.dtype)
        return self._plus_bias(lora_linear(x, low, [a, b], self.packed_handle, self.out_features, scale))

    def _plus_bias(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + self.bias.to(out.dtype)


def use_packed_linears(model) -> tuple[int, int]:
    """Let every 4-bit linear layer of `model`, and PEFT's LoRA on it, run as `lora_linear`.

    LoRA with dropout or a variant (DoRA), or on layers that are not in 4 bits, stays PEFT's.

    Returns:
        `(4-bit layers, layers with adapters that stay PEFT's)`.
    """
    from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
    from peft.tuners.tuners_utils import BaseTunerLayer

    class PackedLoraLinear(PeftLinear4bit):
        """PEFT's layer; with one plain adapter switched on, base and adapter are one operator."""

        def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
            name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
            plain = name in self.lora_A and name not in self.lora_variant and _no_dropout(self, name)
            if self.disable_adapters or self.merged or not plain or args or kwargs:
                return super().forward(x, *args, **kwargs)
            return self.base_layer.with_lora(x, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])

    count = 0
    for module in list(model.modules()):
        if type(module) is bnb.nn.Linear4bit and is_packed(module.weight):
            register(module)
            module.__class__ = PackedLinear
            count += 1
    for module in list(model.modules()):
        plain = type(module) is PeftLinear4bit and not module.lora_variant
        if plain and all(_no_dropout(module, name) for name in module.lora_dropout):
            module.__class__ = PackedLoraLinear
    others = sum(
        isinstance(m, BaseTunerLayer) and type(m) is not PackedLoraLinear and not _on_packed_experts(m)
        for m in model.modules()
    )
    return count, others


def _no_dropout(layer, name: str) -> bool:
    return not layer.training or isinstance(layer.lora_dropout[name], nn.Identity)


def lora_of_linears(model) -> list[nn.Parameter]:
    """LoRA factors that are matrices of a linear layer; those of packed experts are not among them."""
    from peft.tuners.lora import LoraLayer

    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and not _on_packed_experts(m)]
    factors = [p for layer in layers for part in (layer.lora_A, layer.lora_B) for p in part.parameters()]
    return list(dict.fromkeys(p for p in factors if p.requires_grad))


def _on_packed_experts(module) -> bool:
    return hasattr(module, "parameter_name") and hasattr(module.get_base_layer(), "packed_lora")
