"""Packed weights times a few rows, as decoding has them: the kernels of `few_rows_kernels.py`, where they can be used.

Without gradients, on a GPU with Triton. Everything else is computed by the operators of `linears.py` and `experts.py`.
"""

import functools

import torch
from torch import Tensor

from workbench.models.quantized.weights import is_packed, on_gpu, products_in, unpacked

Factors = tuple[list[Tensor], float]  # nothing, or A [E, r, in] and B [E, out, r]; their scale
MOST = 64  # rows; for more, unpacking the weights once is faster


def takes(x: Tensor) -> bool:
    """Whether activations [..., width] are few rows without gradients on a GPU."""
    few = not torch.is_grad_enabled() and 0 < x.numel() <= MOST * x.shape[-1]
    return few and on_gpu(x) and not unusable()


@functools.cache
def unusable() -> str:
    """Why the kernels cannot be used on this machine, or nothing: they are compiled and tried once."""
    from workbench.models.quantized import few_rows_kernels as kernels

    try:
        difference = kernels.try_out()
    except (OSError, RuntimeError, AttributeError) as error:  # no NVRTC, or one that does not know the GPU
        return " ".join(str(error).split())[:300] or type(error).__name__
    return "" if difference < 0.01 else f"a product was wrong by {difference:.0%}"


def linear(module, x: Tensor, a: Tensor | None = None, b: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """What a packed linear layer gives for x [..., in], with or without LoRA's A [r, in] and B [out, r]."""
    from workbench.models.quantized import few_rows_kernels as kernels

    state = module.weight.quant_state
    rows = x.reshape(-1, x.shape[-1]).to(state.dtype).contiguous()
    if not kernels.fits(state):
        out = rows @ unpacked(module.weight).t()
        if a is not None and b is not None:
            out += rows @ a.to(out.dtype).t() @ b.to(out.dtype).t() * scale
        out = out if module.bias is None else out + module.bias.to(out.dtype)
    else:
        low = None if a is None else kernels.low_rank(rows, a)
        out = kernels.linear(rows, module.weight.data, state, module.bias, low, b, scale)
    return out.view(*x.shape[:-1], module.out_features).to(x.dtype)


def experts(module, x: Tensor, index: Tensor, weight: Tensor, up_lora: Factors, down_lora: Factors) -> Tensor:
    """What packed experts give for x [rows, H] with the choices [rows, k]; LoRA as `expert_lora.unscaled_factors` gives
    it."""
    from workbench.models.quantized import few_rows_kernels as kernels

    up, down = (module._parameters[name] for name in ("gate_up_proj", "down_proj"))
    rows = x.to(products_in(x.dtype, x.device.type)).contiguous()
    packed = (up.data, up.quant_state), (down.data, down.quant_state)
    out = kernels.experts(rows, index, weight, *packed, up_lora, down_lora)
    return out.to(x.dtype)


def gated(gate, up, x: Tensor) -> Tensor:
    """`silu(gate(x)) · up(x)` of two packed layers for which `fits_gated` holds."""
    from workbench.models.quantized import few_rows_kernels as kernels

    rows = x.reshape(-1, x.shape[-1]).to(gate.weight.quant_state.dtype).contiguous()
    parts = [(layer.weight.data, layer.weight.quant_state) for layer in (gate, up)]
    return kernels.gated(rows, *parts).view(*x.shape[:-1], gate.out_features).to(x.dtype)


def fits_gated(gate, up) -> bool:
    """Whether `gated` can compute these two layers."""
    weights = [getattr(layer, "weight", None) for layer in (gate, up)]
    if not all(is_packed(one) and one.is_cuda and one.quant_state.nested for one in weights):
        return False
    from workbench.models.quantized import few_rows_kernels as kernels

    same = weights[0].quant_state.shape == weights[1].quant_state.shape
    return same and gate.bias is None and up.bias is None and all(kernels.fits(one.quant_state) for one in weights)


def fits_experts(module) -> bool:
    """Whether a module's packed experts are as the kernels read them."""
    from workbench.models.quantized import few_rows_kernels as kernels

    parameters = [module._parameters.get(name) for name in ("gate_up_proj", "down_proj")]
    return all(one is not None and is_packed(one) and kernels.fits(one.quant_state) for one in parameters)
