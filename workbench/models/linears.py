"""4-bit linear layers with their LoRA as one operator each way, for training on a GPU.

bitsandbytes and PEFT run a layer as a dozen small operations: scales unpacked, weights unpacked, the product, a copy, two
thin products, a scaled sum, casts. `workbench::lora_linear` unpacks in one pass and adds the low-rank update into the
product's own output. Its input is all that it keeps, and only if there is LoRA; the way back unpacks the weights again.
"""

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from workbench.models.packed import is_packed, module_of, register, weights


@torch.library.custom_op("workbench::lora_linear", mutates_args=())
def lora_linear(x: Tensor, lora: list[Tensor], handle: Tensor, out_features: int, scale: float) -> Tensor:
    """`x Wᵀ + scale · (x Aᵀ) Bᵀ` with the packed weight W [out, in] of the module with this handle.

    Args:
        x: [..., in]. lora: nothing, or A [r, in] and B [out, r].
    """
    weight = weights(module_of(handle), "weight")
    rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    out = rows @ weight.t()
    if lora:
        a, b = (part.to(weight.dtype) for part in lora)
        out.addmm_(rows @ a.t(), b.t(), alpha=scale)
    return out.view(*x.shape[:-1], out_features).to(x.dtype)


@lora_linear.register_fake
def _(x, lora, handle, out_features, scale):
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("workbench::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    grad: Tensor, x: Tensor, lora: list[Tensor], handle: Tensor, in_features: int, scale: float, input_too: bool
) -> list[Tensor]:
    """Gradients of x (empty unless `input_too`), and of A and B where there is LoRA."""
    weight = weights(module_of(handle), "weight")
    rows = grad.reshape(-1, grad.shape[-1]).to(weight.dtype)
    low = []
    if lora:
        a, b = (part.to(weight.dtype) for part in lora)
        inputs = x.reshape(-1, in_features).to(weight.dtype)
        grad_low = (rows @ b).mul_(scale)
        low = [
            (grad_low.t() @ inputs).to(lora[0].dtype),
            (rows.t() @ (inputs @ a.t()).mul_(scale)).to(lora[1].dtype),
        ]
    if not input_too:
        return [grad.new_empty(0), *low]
    out = rows @ weight
    if lora:
        out.addmm_(grad_low, a)
    return [out.view(*grad.shape[:-1], in_features).to(grad.dtype), *low]


@lora_linear_backward.register_fake
def _(grad, x, lora, handle, in_features, scale, input_too):
    of_x = grad.new_empty(*grad.shape[:-1], in_features) if input_too else grad.new_empty(0)
    return [of_x, *[part.new_empty(part.shape) for part in lora]]


def _setup(ctx, inputs, output):
    x, lora, handle, _, ctx.scale = inputs
    ctx.in_features = x.shape[-1]
    ctx.save_for_backward(handle, *([x, *lora] if lora else []))


def _backward(ctx, grad):
    handle, *rest = ctx.saved_tensors
    x, lora = (rest[0], rest[1:]) if rest else (grad, [])
    input_too = ctx.needs_input_grad[0]
    grads = lora_linear_backward(grad.contiguous(), x, lora, handle, ctx.in_features, ctx.scale, input_too)
    return grads[0] if input_too else None, grads[1:], None, None, None


lora_linear.register_autograd(_backward, setup_context=_setup)


class PackedLinear(bnb.nn.Linear4bit):
    """bitsandbytes' layer, computed with `lora_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return self._plus_bias(lora_linear(x, [], self.packed_handle, self.out_features, 1.0))

    def with_lora(self, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """A [r, in] and B [out, r] added to the weight."""
        return self._plus_bias(lora_linear(x, [a, b], self.packed_handle, self.out_features, scale))

    def _plus_bias(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + self.bias.to(out.dtype)


def use_packed_linears(model) -> tuple[int, int]:
    """Let every 4-bit linear layer of `model`, and PEFT's LoRA on it, run as `lora_linear`.

    LoRA with dropout or a variant (DoRA), or on layers that are not in 4 bits, stays PEFT's.

    Returns:
        `(4-bit layers, LoRA layers that stay PEFT's)`.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit

    class PackedLoraLinear(PeftLinear4bit):
        """PEFT's layer; with one plain adapter switched on, base and adapter are one operator."""

        def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
            name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
            if self.disable_adapters or self.merged or name not in self.lora_A or args or kwargs:
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
        if plain and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values()):
            module.__class__ = PackedLoraLinear
    others = sum(
        isinstance(m, LoraLayer) and type(m) is not PackedLoraLinear and not _on_packed_experts(m)
        for m in model.modules()
    )
    return count, others


def _on_packed_experts(module) -> bool:
    return hasattr(module, "parameter_name") and hasattr(module.get_base_layer(), "packed_lora")
