"""Triton kernels around the grouped products: dequantizing, moving rows, gating, cross-entropy. For GPUs with Triton.

Each is one pass over its data, with arithmetic in float32. What they compute, and plain torch versions that run
anywhere, stands in `packed.py`, `experts.py` and `head.py`; the tests compare the two (Triton's interpreter needs no
GPU).
"""

import torch
import triton
import triton.language as tl

from workbench.models.quantized.launching import on_its_gpu


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


@triton.jit
def _dequantize(
    packed,
    absmax,
    nested_absmax,
    nested_code,
    offset,
    code,
    out,
    blocks,
    part,
    stride,
    first,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    BYTES: tl.constexpr,
    ROWS: tl.constexpr,
):
    target = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = target < blocks
    block = target // part * stride + first + target % part
    if NESTED:
        scale = tl.load(nested_code + tl.load(absmax + block, mask=inside, other=0).to(tl.int32))
        scale = scale * tl.load(nested_absmax + block // NESTED_BLOCK, mask=inside, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=inside, other=0.0)
    places = block[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    byte = tl.load(packed + places, mask=inside[:, None], other=0).to(tl.int32)
    high, low = tl.load(code + (byte >> 4)), tl.load(code + (byte & 15))
    values = tl.interleave(high, low) * scale[:, None]
    places = target[:, None] * (2 * BYTES) + tl.arange(0, 2 * BYTES)[None, :]
    tl.store(out + places, values.to(out.dtype.element_ty), mask=inside[:, None])


@on_its_gpu
def dequantize(data: torch.Tensor, state, dtype: torch.dtype, half: int | None = None) -> torch.Tensor:
    """The weights behind bitsandbytes' packed bytes, its nested scales included, in one pass.

    Args:
        data: uint8, two 4-bit codes a byte, high half first.
        state: bitsandbytes' QuantState, double quantized or not.
        half: of matrices [E, 2N, M] only `[:, :N]` (0) or `[:, N:]` (1); N M are whole blocks.
    """
    shape = list(state.shape)
    stride = part = state.shape.numel() // state.blocksize
    if half is not None:
        shape[1] //= 2
        stride = part // shape[0]
        part = stride // 2
    out = torch.empty(shape, dtype=dtype, device=data.device)
    blocks, rows = out.numel() // state.blocksize, 64
    nested = state.state2 if state.nested else None
    _dequantize[(triton.cdiv(blocks, rows),)](
        data,
        state.absmax,
        nested.absmax if nested else state.absmax,
        nested.code if nested else state.code,
        state.offset if nested else state.absmax,
        state.code,
        out,
        blocks,
        part,
        stride,
        (half or 0) * part,
        NESTED=bool(nested),
        NESTED_BLOCK=nested.blocksize if nested else 1,
        BYTES=state.blocksize // 2,
        ROWS=rows,
        num_warps=4,
    )
    return out


@triton.jit
def _count(keys, counts, N, blocks, E: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + offsets, mask=offsets < N, other=EXPERTS).to(tl.int32)
    expert = tl.arange(0, EXPERTS)
    number = tl.sum((key[:, None] == expert[None, :]).to(tl.int32), axis=0)
    tl.store(counts + expert * blocks + block, number, mask=expert < E)


@triton.jit
def _place(keys, reached, counts, source, back, N, blocks, E: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + offsets, mask=offsets < N, other=EXPERTS).to(tl.int32)
    expert = tl.arange(0, EXPERTS)
    same = (key[:, None] == expert[None, :]).to(tl.int32)
    start = tl.load(reached + expert * blocks + block, mask=expert < E, other=0)
    start -= tl.load(counts + expert * blocks + block, mask=expert < E, other=0)
    rank = tl.cumsum(same, axis=0) - 1 + start[None, :]
    target = tl.sum(rank * same, axis=1)
    tl.store(back + offsets, target, mask=offsets < N)
    tl.store(source + target, offsets, mask=offsets < N)


@on_its_gpu
def route(keys: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Counting sort of N keys below `experts`, stable.

    Returns:
        `(source [N], back [N], ends [experts])`, int32: the key at each sorted place, the place of each key, and where
        each expert's places end.
    """
    padded = _power_of_2(experts)
    block = max(16, min(256, 16384 // padded))
    blocks = triton.cdiv(keys.shape[0], block)
    counts = torch.empty(experts, blocks, dtype=torch.int32, device=keys.device)
    source = torch.empty(keys.shape[0], dtype=torch.int32, device=keys.device)
    back = torch.empty_like(source)
    sizes = {"E": experts, "EXPERTS": padded, "BLOCK": block}
    _count[(blocks,)](keys, counts, keys.shape[0], blocks, **sizes, num_warps=4)
    reached = counts.view(-1).cumsum(0, dtype=torch.int32)
    _place[(blocks,)](keys, reached, counts, source, back, keys.shape[0], blocks, **sizes, num_warps=4)
    return source, back, reached.view(experts, blocks)[:, -1].contiguous()


@triton.jit
def _spread(x, back, out, H, K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(x + token * H + column, mask=column < H)
    for j in tl.static_range(K):
        row = tl.load(back + token * K + j).to(tl.int64)
        tl.store(out + row * H + column, value, mask=column < H)


@on_its_gpu
def spread(x: torch.Tensor, back: torch.Tensor, k: int) -> torch.Tensor:
    """[T, H] and [T k] -> [T k, H]: `x[t]` goes to the rows `back[t k] … back[t k + k - 1]`."""
    x = x.contiguous()
    out = torch.empty(back.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
    _spread[(x.shape[0],)](x, back, out, x.shape[1], K=k, BLOCK=_power_of_2(x.shape[1]), num_warps=4)
    return out


@triton.jit
def _combine(rows, more, back, out, H, K: tl.constexpr, MORE: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(K):
        row = tl.load(back + token * K + j).to(tl.int64)
        total += tl.load(rows + row * H + column, mask=column < H, other=0.0).to(tl.float32)
        if MORE:
            total += tl.load(more + row * H + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(out + token * H + column, total.to(out.dtype.element_ty), mask=column < H)


@on_its_gpu
def combine(rows: torch.Tensor, back: torch.Tensor, k: int, more: torch.Tensor | None = None) -> torch.Tensor:
    """[S, H] and [S] -> [T, H]: the sum of `rows[back[t k]] … rows[back[t k + k - 1]]`, and of those of `more`."""
    tokens = back.shape[0] // k
    out = torch.empty(tokens, rows.shape[1], dtype=rows.dtype, device=rows.device)
    other, block = rows if more is None else more, _power_of_2(rows.shape[1])
    _combine[(tokens,)](rows, other, back, out, rows.shape[1], K=k, MORE=more is not None, BLOCK=block, num_warps=4)
    return out


@triton.jit
def _gate(gates, ups, weight, source, out, stride, I, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < I
    gate = tl.load(gates + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(ups + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + tl.load(source + row)).to(tl.float32)
    tl.store(out + row * I + column, (gate * tl.sigmoid(gate) * up * w).to(out.dtype.element_ty), mask=inside)


@on_its_gpu
def gate(gates: torch.Tensor, ups: torch.Tensor, weight: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """[S, I] twice (of one row stride), [T k], [S] -> [S, I]: `silu(gates) * ups * weight[source]`."""
    out = gates.new_empty(gates.shape)
    size, stride = out.shape[1], gates.stride(0)
    _gate[(out.shape[0],)](gates, ups, weight, source, out, stride, size, BLOCK=_power_of_2(size), num_warps=4)
    return out


@triton.jit
def _gate_backward(gates, ups, weight, source, grad, grad_weight, of_gates, of_ups, stride, I, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < I
    gate = tl.load(gates + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(ups + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * I + column, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(source + row)
    w = tl.load(weight + target).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    act = gate * sigmoid
    tl.store(grad_weight + target, tl.sum(g * act * up, axis=0).to(grad_weight.dtype.element_ty))
    g = g * w
    grad_gate = g * up * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(of_gates + row * stride + column, grad_gate.to(of_gates.dtype.element_ty), mask=inside)
    tl.store(of_ups + row * stride + column, (g * act).to(of_ups.dtype.element_ty), mask=inside)


@on_its_gpu
def gate_backward(
    gates: torch.Tensor,
    ups: torch.Tensor,
    weight: torch.Tensor,
    source: torch.Tensor,
    grad: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """The way back through `gate`: the gradient of `weight`. Those of `gates` and `ups` are written to `out`, which has
    their row stride and may be `(gates, ups)` itself."""
    size = grad.shape[1]
    grad_weight = torch.empty_like(weight)
    _gate_backward[(grad.shape[0],)](
        gates, ups, weight, source, grad, grad_weight, *out, gates.stride(0), size, BLOCK=_power_of_2(size), num_warps=4
    )
    return grad_weight


@triton.jit
def _cross_entropy(logits, targets, losses, V: tl.constexpr, scale, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    start = logits + row * V
    column = tl.arange(0, BLOCK)
    if target < 0:
        for at in range(0, V, BLOCK):
            zero = tl.zeros((BLOCK,), tl.float32).to(logits.dtype.element_ty)
            tl.store(start + at + column, zero, mask=at + column < V)
        tl.store(losses + row, 0.0)
        return
    top = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for at in range(0, V, BLOCK):
        z = tl.load(start + at + column, mask=at + column < V, other=0.0).to(tl.float32) * scale
        if CAPPED:
            z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)
        z = tl.where(at + column < V, z, -float("inf"))
        new = tl.maximum(top, tl.max(z, axis=0))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(z - new), axis=0)
        top = new
    wanted = tl.load(start + target).to(tl.float32) * scale
    if CAPPED:
        wanted = cap * (2 * tl.sigmoid(2 * wanted / cap) - 1)
    tl.store(losses + row, tl.log(total) + top - wanted)
    for at in range(0, V, BLOCK):
        z = tl.load(start + at + column, mask=at + column < V, other=0.0).to(tl.float32) * scale
        if CAPPED:
            z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)
        grad = (tl.exp(z - top) / total - (at + column == target).to(tl.float32)) * scale
        if CAPPED:
            grad = grad * (1 - (z / cap) * (z / cap))
        tl.store(start + at + column, grad.to(logits.dtype.element_ty), mask=at + column < V)


@on_its_gpu
def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, scale: float = 1.0, cap: float = 0.0) -> torch.Tensor:
    """Negative log-likelihood of each row; overwrites `logits` [N, V] with its gradient.

    Args:
        targets: [N]; a negative one gives no loss and no gradient.
        scale: factor on the logits.
        cap: logits become `cap * tanh(logits / cap)` after scaling; 0 for none.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _cross_entropy[(logits.shape[0],)](
        logits,
        targets,
        losses,
        logits.shape[1],
        scale,
        cap or 1.0,
        CAPPED=bool(cap),
        BLOCK=min(8192, _power_of_2(logits.shape[1])),
        num_warps=8,
    )
    return losses
