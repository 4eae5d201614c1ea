"""Triton kernels for small operations, with the rounding of transformers' own steps."""

import torch
import triton
import triton.language as tl

from workbench.models.quantized.launching import on_its_gpu


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


@triton.jit
def _rms_norm(x, weight, out, H, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(x + row * H + column, mask=column < H, other=0.0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / H + eps)
    w = tl.load(weight + column, mask=column < H, other=0.0)
    value = value.to(x.dtype.element_ty).to(tl.float32) * w.to(tl.float32)
    tl.store(out + row * H + column, value.to(out.dtype.element_ty), mask=column < H)


@on_its_gpu
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`weight · x / √(mean(x²) + eps)`, with the rounding of transformers' own."""
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    width = x.shape[-1]
    _rms_norm[(x.numel() // width,)](x, weight, out, width, eps, BLOCK=_power_of_2(width), num_warps=4)
    return out


@triton.jit
def _rotate_pairs(x, factors, out, heads, x_row, x_head, D: tl.constexpr, WIDE: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, WIDE)
    inside = i < D // 2
    start = x + row * x_row + head * x_head + 2 * i
    a = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(start + 1, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(factors + row * D + 2 * i, mask=inside, other=0.0)
    sin = tl.load(factors + row * D + 2 * i + 1, mask=inside, other=0.0)
    place = out + (row * heads + head) * D + 2 * i
    tl.store(place, (a * cos - b * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(place + 1, (a * sin + b * cos).to(out.dtype.element_ty), mask=inside)


@on_its_gpu
def rotate_pairs(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of neighboring numbers, as DeepSeek-V2 has it: [rows, heads, 1, d], any strides but the last.

    Args:
        factors: complex64 [rows, 1, d / 2].
    """
    rows, heads, _, width = x.shape
    out = torch.empty(rows, heads, 1, width, dtype=x.dtype, device=x.device)
    real = torch.view_as_real(factors.contiguous())
    _rotate_pairs[(rows, heads)](
        x, real, out, heads, x.stride(0), x.stride(1), D=width, WIDE=_power_of_2(width // 2), num_warps=1
    )
    return out


@triton.jit
def _rotate_halves(x, cos, sin, out, heads, x_row, x_head, D: tl.constexpr, WIDE: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, WIDE)
    inside = i < D // 2
    dtype: tl.constexpr = out.dtype.element_ty
    start = x + row * x_row + head * x_head + i
    a = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(start + D // 2, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * D + i, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(cos + row * D + D // 2 + i, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + row * D + i, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(sin + row * D + D // 2 + i, mask=inside, other=0.0).to(tl.float32)
    place = out + (row * heads + head) * D + i
    left = (a * c).to(dtype).to(tl.float32) - (b * s).to(dtype).to(tl.float32)
    right = (b * d).to(dtype).to(tl.float32) + (a * t).to(dtype).to(tl.float32)
    tl.store(place, left.to(dtype), mask=inside)
    tl.store(place + D // 2, right.to(dtype), mask=inside)


@on_its_gpu
def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of numbers half a head apart, as Llama's in transformers: [rows, heads, 1, d], any strides but
    the last. cos, sin: [rows, 1, d]."""
    rows, heads, _, width = x.shape
    out = torch.empty(rows, heads, 1, width, dtype=x.dtype, device=x.device)
    sizes = {"D": width, "WIDE": _power_of_2(width // 2), "num_warps": 1}
    cos, sin = cos.to(x.dtype).contiguous(), sin.to(x.dtype).contiguous()
    _rotate_halves[(rows, heads)](x, cos, sin, out, heads, x.stride(0), x.stride(1), **sizes)
    return out
