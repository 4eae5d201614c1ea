"""Numbers as GGUF keeps them: f32, f16, and Q8_0 (blocks of 32 with one f16 scale), as bytes."""

from workbench.errors import UserError

BLOCK = 32  # numbers of a Q8_0 block
_BLOCK_BYTES = 2 + BLOCK


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
        scale = blocks.abs().amax(1) / 127
        scaled = blocks * torch.where(scale == 0, 0.0, 1 / scale)[:, None]
        whole = (scaled.abs() + 0.5).floor() * scaled.sign()  # half away from zero, as ggml rounds
        stored = scale.to(torch.float16)
        finite = torch.isfinite(stored).all()
        numbers = whole.nan_to_num().to(torch.int8).view(torch.uint8)
        encoded = torch.cat([stored.view(torch.uint8).reshape(-1, 2), numbers], dim=1)
    if not finite:
        raise UserError("gguf_not_finite", name=name)
    return encoded.view(torch.uint8).reshape(-1).numpy()
