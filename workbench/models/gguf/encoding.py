"""Numbers as GGUF keeps them: f32, f16, and Q8_0 (blocks of 32 with one f16 scale), as bytes."""

from workbench.errors import UserError

BLOCK = 32  # numbers of a Q8_0 block
_BLOCK_BYTES = 2 + BLOCK
_AT_ONCE = 1 << 14  # blocks: what the processor's caches hold
_ALMOST_HALF = 0.5 - 2**-25  # the largest float32 below: 0.49999997 is not rounded up with it, 0.5 is


def bytes_of(shape: tuple[int, ...], kind: str) -> int:
    """The bytes that a tensor takes as `F32`, `F16` or `Q8_0`."""
    count = 1
    for size in shape:
        count *= size
    return {"F32": 4 * count, "F16": 2 * count, "Q8_0": count // BLOCK * _BLOCK_BYTES}[kind]


def encode(values, kind: str, name: str):
    """A float32 tensor as the uint8 array that goes into the file.

    Raises:
        UserError: a number that is not finite, or too large for f16.
    """
    import torch

    if kind == "F32":
        encoded = values.contiguous()
        finite = torch.isfinite(encoded).all()
    elif kind == "F16":
        encoded = values.to(torch.float16).contiguous()
        finite = torch.isfinite(encoded).all()
    else:
        blocks = values.reshape(-1, BLOCK)
        encoded = torch.empty((len(blocks), _BLOCK_BYTES), dtype=torch.uint8)
        for start in range(0, len(blocks), _AT_ONCE):
            _quantize(blocks[start : start + _AT_ONCE], encoded[start : start + _AT_ONCE])
        finite = torch.isfinite(encoded[:, :2].contiguous().view(torch.float16)).all()
    if not finite:
        raise UserError("gguf_not_finite", name=name)
    return encoded.view(torch.uint8).reshape(-1).numpy()


def _quantize(blocks, encoded) -> None:
    """Q8_0: the scale is a block's largest number / 127; halves are rounded away from zero, as ggml does."""
    import torch

    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    scaled += torch.copysign(torch.tensor(_ALMOST_HALF), scaled)
    encoded[:, :2] = scale.to(torch.float16).view(torch.uint8)
    encoded[:, 2:] = scaled.to(torch.int8).view(torch.uint8)
