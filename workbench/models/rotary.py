"""DeepSeek-V2's rotary embedding in real arithmetic.

transformers computes it with complex numbers, which torch.compile cannot fuse. The same rotation of the pairs
(x₀, x₁) by the angle θ, written out: (x₀ cos θ − x₁ sin θ, x₀ sin θ + x₁ cos θ).
"""

import torch
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2

_complex_forward = deepseek_v2.DeepseekV2RotaryEmbedding.forward
complex_rotation = deepseek_v2.apply_rotary_emb


def rotate_pairs(xq: torch.Tensor, xk: torch.Tensor, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate neighboring pairs of the last dimension.

    Args:
        xq, xk: [batch, heads, length, d].
        angles: [batch, length, d / 2, 2], cos and sin (scaled as the RoPE type asks).

    Returns:
        Both rotated, in their own dtypes; the arithmetic is float32.
    """
    cos, sin = angles.unsqueeze(1).to(xq.device).unbind(-1)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2).type_as(x)

    return rotated(xq), rotated(xk)


def _real_forward(self, x, position_ids):
    return torch.view_as_real(_complex_forward(self, x, position_ids))


def install() -> None:
    """Use the real form in every DeepSeek-V2 model of this process; results differ by rounding only."""
    deepseek_v2.DeepseekV2RotaryEmbedding.forward = _real_forward
    deepseek_v2.apply_rotary_emb = rotate_pairs
