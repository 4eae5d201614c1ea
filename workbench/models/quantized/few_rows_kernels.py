"""Triton kernels for a few rows, as decoding has them: packed weights are unpacked in registers and multiplied at once.

A decoding step is bound by reading weights. So each weight is read once, in its 4 bits, and only those of the experts
that a row has chosen. Unpacked weights are rounded to the activations' dtype as `kernels.dequantize` does, products
are summed in float32. What a row gets does not depend on how many rows there are: sums run in the same order.

Two weights share a byte, the first in the high half. Rows of a weight hold whole blocks of 64 that share a scale.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 64  # weights that share a scale


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


@triton.jit
def _unpacked_tile(
    packed,
    absmax,
    nested_absmax,
    nested_code,
    offset,
    code,
    rows,
    inside,
    k,
    K,
    dtype: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Of BLOCK_N rows the weights k … k + BLOCK_K - 1: those at even and those at odd places, [BLOCK_K / 2, BLOCK_N]
    each."""
    column = k // 64 + tl.arange(0, BLOCK_K // 64)
    block = rows[None, :] * (K // 64) + column[:, None]
    there = inside[None, :] & (column < K // 64)[:, None]
    if NESTED:
        scale = tl.load(nested_code + tl.load(absmax + block, mask=there, other=0).to(tl.int32))
        scale = scale * tl.load(nested_absmax + block // NESTED_BLOCK, mask=there, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=there, other=0.0)
    places = block[:, None, :] * 32 + tl.arange(0, 32)[None, :, None]
    byte = tl.load(packed + places, mask=there[:, None, :], other=0).to(tl.int32)
    even = (tl.load(code + (byte >> 4)) * scale[:, None, :]).to(dtype)
    odd = (tl.load(code + (byte & 15)) * scale[:, None, :]).to(dtype)
    return tl.reshape(even, (BLOCK_K // 2, BLOCK_N)), tl.reshape(odd, (BLOCK_K // 2, BLOCK_N))


@triton.jit
def _halves(x, rows, inside, k, K, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Of activations [·, K] the columns k …, at even and at odd places: [BLOCK_M, BLOCK_K / 2] each."""
    column = k + tl.arange(0, BLOCK_K)
    tile = tl.load(x + rows[:, None] * K + column[None, :], mask=inside[:, None] & (column < K)[None, :], other=0.0)
    return tl.split(tl.reshape(tile, (BLOCK_M, BLOCK_K // 2, 2)))


@triton.jit
def _linear(
    x,
    packed,
    absmax,
    nested_absmax,
    nested_code,
    offset,
    code,
    low,
    b,
    bias,
    out,
    scale,
    M,
    N,
    K: tl.constexpr,
    R,
    RANK: tl.constexpr,
    BIAS: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    dtype: tl.constexpr = x.dtype.element_ty
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        x_even, x_odd = _halves(x, m, m < M, k, K, BLOCK_M, BLOCK_K)
        even, odd = _unpacked_tile(
            packed, absmax, nested_absmax, nested_code, offset, code, n, n < N, k, K,
            dtype, NESTED, NESTED_BLOCK, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        total = tl.dot(x_even, even, total, input_precision="ieee")
        total = tl.dot(x_odd, odd, total, input_precision="ieee")
    if RANK:
        r = tl.arange(0, RANK)
        left = tl.load(low + m[:, None] * R + r[None, :], mask=(m < M)[:, None] & (r < R)[None, :], other=0.0)
        right = tl.load(b + n[None, :] * R + r[:, None], mask=(n < N)[None, :] & (r < R)[:, None], other=0.0)
        total += scale * tl.dot(left, right.to(dtype), input_precision="ieee")
    if BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    places = m[:, None] * N + n[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def _packing(state) -> tuple:
    """The arguments that say how to unpack, of bitsandbytes' QuantState."""
    nested = state.state2 if state.nested else None
    tensors = (
        state.absmax,
        nested.absmax if nested else state.absmax,
        nested.code if nested else state.code,
        state.offset if nested else state.absmax,
        state.code,
    )
    return tensors, {"NESTED": bool(nested), "NESTED_BLOCK": nested.blocksize if nested else 1}


def fits(state) -> bool:
    """Whether weights with this QuantState are packed as these kernels read them."""
    nested = not state.nested or state.state2.dtype is torch.float32
    return state.blocksize == _BLOCK and state.shape[-1] % _BLOCK == 0 and nested


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
        x: [M, K], contiguous, in the dtype to multiply in.
        data, state: the packed W [N, K].
        low, b: nothing, or [M, r] and B [N, r].
    """
    (rows, _), width = x.shape, state.shape[0]
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    tensors, packing = _packing(state)
    block_m = 16 if rows <= 16 else 32
    grid = (triton.cdiv(width, 16), triton.cdiv(rows, block_m))
    rank = 0 if b is None else b.shape[1]
    _linear[grid](
        x, data, *tensors, x if low is None else low, x if b is None else b, x if bias is None else bias, out, scale,
        rows, width, K=x.shape[1], R=rank, RANK=max(16, _power_of_2(rank)) if rank else 0, BIAS=bias is not None,
        **packing, BLOCK_M=block_m, BLOCK_N=16, BLOCK_K=128, num_warps=4, num_stages=3,
    )  # fmt: skip
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


def low_rank(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """`x Aᵀ`: [M, K] and [r, K] -> [M, r]."""
    out = torch.empty(x.shape[0], a.shape[0], dtype=x.dtype, device=x.device)
    _low_rank[(x.shape[0], a.shape[0])](x, a, out, a.shape[0], K=x.shape[1], BLOCK=1024, num_warps=4)
    return out


@triton.jit
def _pairs_of(keys, expert, tile, S, PAIRS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Which of the S pairs are the ones number tile · BLOCK_M … of an expert: `(pairs [BLOCK_M], which of them are
    there)`."""
    pair = tl.arange(0, PAIRS)
    mine = (tl.load(keys + pair, mask=pair < S, other=-1) == expert).to(tl.int32)
    rank = tl.cumsum(mine, axis=0) - 1
    wanted = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    hit = (rank[None, :] == wanted[:, None]) & (mine[None, :] == 1)
    return tl.sum(tl.where(hit, pair[None, :], 0), axis=1), wanted < tl.sum(mine, axis=0)


@triton.jit
def _expert_of(keys, S, PAIRS: tl.constexpr, BY_PAIR: tl.constexpr):
    """`(expert, how many pairs it has)` of this program; none for one that another program has."""
    program, pair = tl.program_id(0), tl.arange(0, PAIRS)
    key = tl.load(keys + pair, mask=pair < S, other=-1)
    if BY_PAIR:
        expert = tl.load(keys + program)
        earlier = tl.sum(((key == expert) & (pair < program)).to(tl.int32), axis=0)
        count = tl.where(earlier > 0, 0, tl.sum((key == expert).to(tl.int32), axis=0))
    else:
        expert = program.to(tl.int64)
        count = tl.sum((key == expert).to(tl.int32), axis=0)
    return expert, count


@triton.jit
def _gate_up(
    x,
    keys,
    weight,
    packed,
    absmax,
    nested_absmax,
    nested_code,
    offset,
    code,
    out,
    S,
    I,
    TOP_K: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    TILES: tl.constexpr,
    BY_PAIR: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert, count = _expert_of(keys, S, PAIRS, BY_PAIR)
    dtype: tl.constexpr = x.dtype.element_ty
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    first = expert * (2 * I) + n
    for tile in tl.static_range(TILES):
        if tile * BLOCK_M < count:
            pair, there = _pairs_of(keys, expert, tile, S, PAIRS, BLOCK_M)
            gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for k in range(0, K, BLOCK_K):
                x_even, x_odd = _halves(x, (pair // TOP_K).to(tl.int64), there, k, K, BLOCK_M, BLOCK_K)
                even, odd = _unpacked_tile(
                    packed, absmax, nested_absmax, nested_code, offset, code, first, n < I, k, K,
                    dtype, NESTED, NESTED_BLOCK, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                gate = tl.dot(x_even, even, gate, input_precision="ieee")
                gate = tl.dot(x_odd, odd, gate, input_precision="ieee")
                even, odd = _unpacked_tile(
                    packed, absmax, nested_absmax, nested_code, offset, code, first + I, n < I, k, K,
                    dtype, NESTED, NESTED_BLOCK, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                up = tl.dot(x_even, even, up, input_precision="ieee")
                up = tl.dot(x_odd, odd, up, input_precision="ieee")
            gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
            w = tl.load(weight + pair, mask=there, other=0.0).to(tl.float32)
            gated = gate * tl.sigmoid(gate) * up * w[:, None]
            places = pair[:, None].to(tl.int64) * I + n[None, :]
            tl.store(out + places, gated.to(dtype), mask=there[:, None] & (n < I)[None, :])


@triton.jit
def _down(
    x,
    keys,
    packed,
    absmax,
    nested_absmax,
    nested_code,
    offset,
    code,
    out,
    S,
    N,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    TILES: tl.constexpr,
    BY_PAIR: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert, count = _expert_of(keys, S, PAIRS, BY_PAIR)
    dtype: tl.constexpr = x.dtype.element_ty
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    for tile in tl.static_range(TILES):
        if tile * BLOCK_M < count:
            pair, there = _pairs_of(keys, expert, tile, S, PAIRS, BLOCK_M)
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for k in range(0, K, BLOCK_K):
                x_even, x_odd = _halves(x, pair.to(tl.int64), there, k, K, BLOCK_M, BLOCK_K)
                even, odd = _unpacked_tile(
                    packed, absmax, nested_absmax, nested_code, offset, code, expert * N + n, n < N, k, K,
                    dtype, NESTED, NESTED_BLOCK, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                total = tl.dot(x_even, even, total, input_precision="ieee")
                total = tl.dot(x_odd, odd, total, input_precision="ieee")
            places = pair[:, None].to(tl.int64) * N + n[None, :]
            tl.store(out + places, total.to(dtype), mask=there[:, None] & (n < N)[None, :])


@triton.jit
def _sum_of_choices(rows, out, H, K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(K):
        total += tl.load(rows + (token * K + j) * H + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(out + token * H + column, total.to(out.dtype.element_ty), mask=column < H)


def experts(x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, up: tuple, down: tuple) -> torch.Tensor:
    """Σ over a row's choices of `weight · W_d (silu(W_g x) ⊙ W_u x)`: [M, H] -> [M, H].

    Args:
        x: [M, H], contiguous. index, weight: [M, k], the chosen experts and their weights.
        up, down: `(data, state)` of the packed gate_up_proj [E, 2I, H] and down_proj [E, H, I].
    """
    rows, width = x.shape
    pairs, k = index.numel(), index.shape[1]
    count, double, _ = up[1].shape
    inner = double // 2
    by_pair = pairs <= count
    common = {
        "PAIRS": max(16, _power_of_2(pairs)),
        "TILES": triton.cdiv(rows, 16),
        "BY_PAIR": by_pair,
        "BLOCK_M": 16,
        "num_warps": 4,
        "num_stages": 3,
    }
    keys, weight = index.reshape(-1).contiguous(), weight.reshape(-1).contiguous()
    programs = pairs if by_pair else count
    gated = torch.empty(pairs, inner, dtype=x.dtype, device=x.device)
    tensors, packing = _packing(up[1])
    _gate_up[(programs, triton.cdiv(inner, 16))](
        x, keys, weight, up[0], *tensors, gated, pairs, inner, TOP_K=k, K=width, BLOCK_N=16, BLOCK_K=128,
        **packing, **common,
    )  # fmt: skip
    out = torch.empty(pairs, width, dtype=x.dtype, device=x.device)
    tensors, packing = _packing(down[1])
    _down[(programs, triton.cdiv(width, 32))](
        gated, keys, down[0], *tensors, out, pairs, width, K=inner, BLOCK_N=32, BLOCK_K=128, **packing, **common
    )
    total = torch.empty_like(x)
    _sum_of_choices[(rows, triton.cdiv(width, 1024))](out, total, width, K=k, BLOCK=1024, num_warps=4)
    return total


@triton.jit
def _rms_norm(x, weight, out, H, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(x + row * H + column, mask=column < H, other=0.0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / H + eps)
    w = tl.load(weight + column, mask=column < H, other=0.0)
    value = value.to(x.dtype.element_ty).to(tl.float32) * w.to(tl.float32)
    tl.store(out + row * H + column, value.to(out.dtype.element_ty), mask=column < H)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`weight · x / √(mean(x²) + eps)`, with the rounding of transformers' own."""
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    width = x.shape[-1]
    _rms_norm[(x.numel() // width,)](x, weight, out, width, eps, BLOCK=_power_of_2(width), num_warps=4)
    return out
