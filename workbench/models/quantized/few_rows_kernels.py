"""Kernels for a few rows, as decoding has them: packed weights are unpacked in registers and multiplied at once.

A decoding step is bound by reading weights. So each weight is read once, in its 4 bits, and only those of the experts
that a row has chosen. What a row gets does not depend on how many rows there are: sums run in the same order, in
float32.

The products are CUDA (`few_rows.cu`): a code is turned into a number by picking bytes out of registers, and Triton
would carry words through shared memory before that. A code stands for a bfloat16 number times a factor for which the
sixteen of them fit best; so weights are a little nearer to NF4's own than those that `kernels.dequantize` rounds after
scaling. What is around the products is Triton.
"""

import functools
from pathlib import Path

import torch
import triton
import triton.language as tl

from workbench.models.quantized.launching import on_its_gpu
from workbench.models.quantized.nvrtc import CudaModule

_BLOCK = 64  # weights that share a scale
_NESTED = 256  # scales that share a scale
_ROWS, _THREADS = 16, 256  # of a block, as in the source
_SOURCE = Path(__file__).with_name("few_rows.cu")


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def source(code: tuple[float, ...], dtype: torch.dtype) -> str:
    """The CUDA source for a quantization's sixteen numbers and 16-bit activations."""
    numbers, factor = fitting_numbers(code, dtype)
    bits = [int(one) & 0xFFFF for one in torch.tensor(numbers, dtype=torch.float64).to(dtype).view(torch.int16)]
    words = []
    for shift in (8, 0):  # the high bytes of all numbers, four in a word, then the low ones
        parts = [bits[i] >> shift & 0xFF for i in range(16)]
        words += [f"{sum(parts[4 * i + j] << 8 * j for j in range(4)):#010x}u" for i in range(4)]
    defined = {"CODES": ", ".join(words), "FACTOR": f"{factor!r}f", "HALF": int(dtype is torch.float16)}
    return "".join(f"#define {name} {value}\n" for name, value in defined.items()) + _SOURCE.read_text()


@functools.cache
def fitting_numbers(code: tuple[float, ...], dtype: torch.dtype) -> tuple[list[float], float]:
    """`(numbers, factor)`: 16-bit numbers that give a quantization's sixteen when multiplied with the factor, as nearly
    as can be."""
    exact = torch.tensor(code, dtype=torch.float64)
    factors = torch.linspace(1, 2, 4001, dtype=torch.float64)[:, None]
    rounded = (exact * factors).to(dtype).double() / factors
    factor = float(factors[((rounded - exact) ** 2).sum(1).argmin()])
    return (exact * factor).to(dtype).tolist(), 1 / factor


@functools.cache
def _module(code: tuple[float, ...], dtype: torch.dtype, gpu: int) -> CudaModule:
    """For this GPU, which is the current one: a module of the driver belongs to its context."""
    return CudaModule(source(code, dtype), _SOURCE.name)


def _packing(data: torch.Tensor, state) -> tuple[CudaModule, str, list[torch.Tensor]]:
    """The functions for weights of this QuantState, how its scales are packed, and where everything lies."""
    module = getattr(state, "few_rows", None)
    if module is None:
        module = state.few_rows = _module(tuple(state.code.tolist()), state.dtype, data.get_device())
    nested = state.state2 if state.nested else None
    if nested is None:
        return module, "plain", [data, *[state.absmax] * 5]
    return module, "nested", [data, state.absmax, state.absmax, nested.absmax, nested.code, state.offset]


def fits(state) -> bool:
    """Whether weights with this QuantState are packed as these kernels read them."""
    nested = not state.nested or (state.state2.dtype is torch.float32 and state.state2.blocksize == _NESTED)
    whole = state.blocksize == _BLOCK and state.shape[-1] % _BLOCK == 0 and state.code.numel() == 16
    tensor_cores = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return nested and whole and tensor_cores and state.dtype in (torch.bfloat16, torch.float16)


@on_its_gpu
def linear(
    x: torch.Tensor,
    data: torch.Tensor,
    state,
    bias: torch.Tensor | None = None,
    low: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """`x Wᵀ + scale · low Bᵀ + bias`.

    Args:
        x: [M, K], contiguous, in the weights' dtype.
        data, state: the packed W [N, K].
        low, b: nothing, or [M, r] and B [N, r].
    """
    (rows, width), count = x.shape, state.shape[0]
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    module, kind, packing = _packing(data, state)
    tiles = 1 if rows <= 8 else 2 if rows <= 16 else 4
    rank = 0 if b is None else b.shape[1]
    factor = x if b is None else b.detach().float().contiguous()
    offset = x if bias is None else bias.detach().to(x.dtype)
    module.launch(
        f"linear_{kind}_{tiles}", (triton.cdiv(count, _ROWS), triton.cdiv(rows, 8 * tiles)), _THREADS,
        x, *packing, x if low is None else low, factor, offset, out, float(scale), rows, count, width, rank,
        int(bias is not None),
    )  # fmt: skip
    return out


def try_out() -> float:
    """The relative difference of a small product to the same with weights that bitsandbytes unpacks; 0 where nothing
    would fit these kernels."""
    from workbench.models.quantized.bnb import bnb

    generator = torch.Generator("cuda").manual_seed(0)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    weight, x = (torch.randn(32, 128, device="cuda", generator=generator).to(dtype) for _ in range(2))
    data, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    if not fits(state):
        return 0.0
    want = x.float() @ bnb.functional.dequantize_4bit(data, state).float().t()
    return float((linear(x, data, state).float() - want).norm() / want.norm())


@on_its_gpu
def gated(x: torch.Tensor, gate: tuple, up: tuple) -> torch.Tensor:
    """`silu(x Gᵀ) · (x Uᵀ)`, rounded after each step: [M, K] -> [M, I].

    Args:
        gate, up: `(data, state)` of the packed G and U [I, K], with nested scales.
    """
    (rows, width), count = x.shape, gate[1].shape[0]
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    module, _, packing = _packing(*gate)
    tiles = 1 if rows <= 8 else 2
    grid = triton.cdiv(count, _ROWS), triton.cdiv(rows, 8 * tiles)
    module.launch(f"gated_{tiles}", grid, _THREADS, x, *packing, *_packing(*up)[2], out, rows, count, width)
    return out


@triton.jit
def _low_rank(x, a, out, R, K: tl.constexpr, BLOCK: tl.constexpr):
    row, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, K, BLOCK):
        column = k + tl.arange(0, BLOCK)
        left = tl.load(x + row * K + column, mask=column < K, other=0.0)
        right = tl.load(a + r * K + column, mask=column < K, other=0.0).to(x.dtype.element_ty)
        total += left.to(tl.float32) * right.to(tl.float32)
    tl.store(out + row * R + r, tl.sum(total, axis=0).to(out.dtype.element_ty))


@on_its_gpu
def low_rank(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """`x Aᵀ`: [M, K] and [r, K] -> [M, r]."""
    out = torch.empty(x.shape[0], a.shape[0], dtype=x.dtype, device=x.device)
    _low_rank[(x.shape[0], a.shape[0])](x, a, out, a.shape[0], K=x.shape[1], BLOCK=1024, num_warps=4)
    return out


@triton.jit
def _low_of_pairs(x, a, keys, out, R, scale, EACH: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    pair, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    expert = tl.load(keys + pair).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, K, BLOCK):
        column = k + tl.arange(0, BLOCK)
        left = tl.load(x + pair // EACH * K + column, mask=column < K, other=0.0)
        right = tl.load(a + (expert * R + r) * K + column, mask=column < K, other=0.0).to(x.dtype.element_ty)
        total += left.to(tl.float32) * right.to(tl.float32)
    tl.store(out + pair * R + r, (tl.sum(total, axis=0) * scale).to(out.dtype.element_ty))


@on_its_gpu
def low_of_pairs(x: torch.Tensor, a: torch.Tensor, keys: torch.Tensor, each: int, scale: float = 1.0) -> torch.Tensor:
    """`scale · A x` of each pair -> [pairs, r]: rows `x[pair // each]` of [·, K] and A [E, r, K] of the expert
    `keys[pair]`."""
    a = a.contiguous()
    out = torch.empty(keys.shape[0], a.shape[1], dtype=x.dtype, device=x.device)
    _low_of_pairs[out.shape](
        x, a, keys, out, a.shape[1], float(scale), EACH=each, K=x.shape[1], BLOCK=1024, num_warps=4
    )
    return out


def _factors(x: torch.Tensor, lora: tuple[list[torch.Tensor], float], keys: torch.Tensor, each: int) -> list:
    """The kernels' arguments for LoRA on experts: nothing, or A [E, r, K] and B [E, N, r], and their scale."""
    if not lora[0]:
        return [x, x, 0, 0, 0, 0]
    a, b = lora[0][0], lora[0][1].detach().float()
    return [low_of_pairs(x, a.detach(), keys, each, lora[1]), b, b.shape[2], *b.stride()]


@triton.jit
def _sum_of_choices(rows, out, H, K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(K):
        total += tl.load(rows + (token * K + j) * H + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(out + token * H + column, total.to(out.dtype.element_ty), mask=column < H)


@on_its_gpu
def experts(
    x: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    up: tuple,
    down: tuple,
    up_lora: tuple[list[torch.Tensor], float],
    down_lora: tuple[list[torch.Tensor], float],
) -> torch.Tensor:
    """Σ over a row's choices of `weight · W_d (silu(W_g x) ⊙ W_u x)`: [M, H] -> [M, H].

    Args:
        x: [M, H], contiguous. index, weight: [M, k], the chosen experts and their weights.
        up, down: `(data, state)` of the packed gate_up_proj [E, 2I, H] and down_proj [E, H, I].
        up_lora, down_lora: nothing, or LoRA's A [E, r, in] and B [E, out, r] of each, and their scale.
    """
    rows, width = x.shape
    pairs, k = index.numel(), index.shape[1]
    count, double, _ = up[1].shape
    inner = double // 2
    by_pair = pairs <= count
    keys, weight = index.reshape(-1).to(torch.int64).contiguous(), weight.reshape(-1).float().contiguous()
    programs = pairs if by_pair else count
    gated = torch.empty(pairs, inner, dtype=x.dtype, device=x.device)
    module, kind, packing = _packing(*up)
    module.launch(
        f"gate_up_{kind}", (programs, triton.cdiv(inner, _ROWS)), _THREADS,
        x, keys, weight, *packing, *_factors(x, up_lora, keys, k), gated, pairs, inner, width, k, int(by_pair),
    )  # fmt: skip
    out = torch.empty(pairs, width, dtype=x.dtype, device=x.device)
    module, kind, packing = _packing(*down)
    module.launch(
        f"down_{kind}", (programs, triton.cdiv(width, _ROWS)), _THREADS,
        gated, keys, *packing, *_factors(gated, down_lora, keys, 1), out, pairs, width, inner, int(by_pair),
    )  # fmt: skip
    total = torch.empty_like(x)
    _sum_of_choices[(rows, triton.cdiv(width, 1024))](out, total, width, K=k, BLOCK=1024, num_warps=4)
    return total
