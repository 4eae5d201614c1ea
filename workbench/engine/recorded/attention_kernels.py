"""Triton kernels for attention of one new token a row to its pages.

A row's tokens are cut into parts whose number does not depend on other rows; each part is one program's, which leaves
its sum and the logarithm of its softmax's denominator, and a second kernel adds the parts up (flash-decoding). Scores
and sums are in float32.

Keys may lie in two pools whose parts of the score add up, and values may be the first pool: so latents (multi-head
latent attention) are read once, for all heads.
"""

import torch
import triton
import triton.language as tl

_TOKENS = 32  # that a program looks at together
_LEAST = 32  # tokens of a part
_PARTS = 32  # of a row


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


@triton.jit
def _span(length, PARTS: tl.constexpr, TOKENS: tl.constexpr, LEAST: tl.constexpr):
    """Tokens of a part of a row with `length` tokens that are seen."""
    span = tl.cdiv(tl.cdiv(length, PARTS), TOKENS) * TOKENS
    return tl.maximum(span, LEAST)


@triton.jit
def _attend(
    q,
    more_q,
    keys,
    more_keys,
    values,
    table,
    lengths,
    sums,
    logs,
    scale,
    window,
    places,
    table_stride,
    q_row,
    q_head,
    more_row,
    more_head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,
    D: tl.constexpr,
    WIDE_D: tl.constexpr,
    MORE: tl.constexpr,
    WIDE_MORE: tl.constexpr,
    DV: tl.constexpr,
    WIDE_DV: tl.constexpr,
    SAME: tl.constexpr,
    PAGE: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    group = tl.program_id(1) // TILES
    inner = (tl.program_id(1) % TILES) * BLOCK_H + tl.arange(0, BLOCK_H)
    head = (group * GROUP + inner).to(tl.int64)
    mine = inner < GROUP
    end = tl.load(lengths + row)
    begin = tl.where(window > 0, tl.maximum(end - window, 0), 0)
    span = _span(end - begin, PARTS, TOKENS, LEAST)
    start = begin + part * span
    stop = tl.minimum(start + span, end)
    if start < end:
        d = tl.arange(0, WIDE_D)
        dv = tl.arange(0, WIDE_DV)
        query = tl.load(
            q + row * q_row + head[:, None] * q_head + d[None, :], mask=mine[:, None] & (d < D)[None, :], other=0.0
        )
        if MORE:
            e = tl.arange(0, WIDE_MORE)
            more = tl.load(
                more_q + row * more_row + head[:, None] * more_head + e[None, :],
                mask=mine[:, None] & (e < MORE)[None, :],
                other=0.0,
            )
        top = tl.full((BLOCK_H,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_H,), tl.float32)
        found = tl.zeros((BLOCK_H, WIDE_DV), tl.float32)
        for first in range(start, stop, TOKENS):
            token = first + tl.arange(0, TOKENS)
            seen = token < stop
            page = tl.load(table + row * table_stride + token // PAGE, mask=seen, other=0).to(tl.int64)
            place = group.to(tl.int64) * places + page * PAGE + token % PAGE
            key = tl.load(keys + place[None, :] * D + d[:, None], mask=seen[None, :] & (d < D)[:, None], other=0.0)
            score = tl.dot(query, key, input_precision="ieee")
            if MORE:
                other = tl.load(
                    more_keys + place[None, :] * MORE + e[:, None], mask=seen[None, :] & (e < MORE)[:, None], other=0.0
                )
                score += tl.dot(more, other, input_precision="ieee")
            score = tl.where(seen[None, :], score * scale, -float("inf"))
            new = tl.maximum(top, tl.max(score, axis=1))
            share = tl.exp(score - new[:, None])
            fade = tl.exp(top - new)
            total = total * fade + tl.sum(share, axis=1)
            if SAME:
                value = tl.trans(key)
            else:
                value = tl.load(
                    values + place[:, None] * DV + dv[None, :], mask=seen[:, None] & (dv < DV)[None, :], other=0.0
                )
            found = found * fade[:, None] + tl.dot(share.to(value.dtype), value, input_precision="ieee")
            top = new
        at = (row * HEADS + head) * PARTS + part
        tl.store(
            sums + at[:, None] * DV + dv[None, :],
            found / total[:, None],
            mask=mine[:, None] & (dv < DV)[None, :],
        )
        tl.store(logs + at, top + tl.log(total), mask=mine)


@triton.jit
def _add_up(
    sums,
    logs,
    lengths,
    out,
    window,
    HEADS: tl.constexpr,
    DV: tl.constexpr,
    WIDE_DV: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    LEAST: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    end = tl.load(lengths + row)
    seen = tl.where(window > 0, tl.minimum(end, window), end)
    span = _span(seen, PARTS, TOKENS, LEAST)
    part, dv = tl.arange(0, PARTS), tl.arange(0, WIDE_DV)
    there = part * span < seen
    at = (row * HEADS + head) * PARTS + part
    log = tl.load(logs + at, mask=there, other=-float("inf"))
    share = tl.exp(log - tl.max(log, axis=0))
    found = tl.load(sums + at[:, None] * DV + dv[None, :], mask=there[:, None] & (dv < DV)[None, :], other=0.0)
    value = tl.sum(found * share[:, None], axis=0) / tl.sum(share, axis=0)
    tl.store(out + (row * HEADS + head) * DV + dv, value.to(out.dtype.element_ty), mask=dv < DV)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    table: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int = 0,
    more: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention of each row's last token to what its pages hold: [rows, heads, dv].

    Args:
        q: [rows, heads, d], the last dimension contiguous.
        keys, values: pools [groups, pages, size, d or dv]; groups divide the heads. Without values the keys are them.
        table: [rows, pages] int32. lengths: [rows] int32, tokens of each row, its new one among them.
        window: tokens that are seen, the new one among them; 0 for all.
        more: `(q [rows, heads, e], pool [groups, pages, size, e])` whose products are added to the scores.
    """
    rows, heads, d = q.shape
    groups, pages, size, _ = keys.shape
    pool = keys if values is None else values
    dv = pool.shape[-1]
    group = heads // groups
    block = 16 if group <= 16 or d > 256 else 32
    tiles = triton.cdiv(group, block)
    parts = _PARTS if heads * dv <= 16384 else _PARTS // 2
    sums = torch.empty(rows, heads, parts, dv, dtype=torch.float32, device=q.device)
    logs = torch.empty(rows, heads, parts, dtype=torch.float32, device=q.device)
    out = torch.empty(rows, heads, dv, dtype=q.dtype, device=q.device)
    more_q, more_keys = more if more else (q, keys)
    width = more_q.shape[-1] if more else 0
    sizes = {"HEADS": heads, "DV": dv, "WIDE_DV": max(16, _power_of_2(dv)), "PARTS": parts}
    sizes |= {"TOKENS": _TOKENS, "LEAST": _LEAST}
    _attend[(rows, groups * tiles, parts)](
        q, more_q, keys, more_keys, pool, table, lengths, sums, logs, scale, window, pages * size, table.stride(0),
        q.stride(0), q.stride(1), more_q.stride(0), more_q.stride(1),
        GROUP=group, TILES=tiles, D=d, WIDE_D=max(16, _power_of_2(d)), MORE=width,
        WIDE_MORE=max(16, _power_of_2(width)) if width else 16, SAME=values is None, PAGE=size,
        BLOCK_H=block, **sizes, num_warps=4, num_stages=2,
    )  # fmt: skip
    _add_up[(rows, heads)](sums, logs, lengths, out, window, **sizes, num_warps=4)
    return out
