"""Linear layers whose weights lie in blocks for `kernels.c`: in 16 bits, or in 8 with a scale for 32 of them."""

import ctypes

import torch
from torch import Tensor, nn

from workbench.models.cpu.library import Linear
from workbench.models.half_linear import PackedLinear

ROWS, GROUP = 4, 32  # of a block
_MANY = 192  # inputs, as of prompts: from here on PyTorch's product is faster, unpacking included


def fits(linear: nn.Linear) -> bool:
    """Whether the weight can be cut into blocks."""
    return linear.out_features % ROWS == 0 and linear.in_features % GROUP == 0


class BlockedLinear(PackedLinear):
    """A linear layer without gradients; arithmetic in float32. Up to 191 rows, what a row
    gets does not depend on the others."""

    def __init__(self, linear: nn.Linear, library: ctypes.CDLL, bits: int):
        """`bits`: 16, or 8 for int8 rounded to the nearest step of max |w| / 127 in each group of 32."""
        super().__init__(linear)
        self.library, self.bits = library, bits
        blocks = linear.weight.detach().float().view(-1, ROWS, self.in_features // GROUP, GROUP).transpose(1, 2)
        self.scale = None
        if bits == 8:
            self.scale = (blocks.abs().amax(-1) / 127).contiguous()
            steps = blocks / self.scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
            self.blocks = steps.round_().clamp_(-127, 127).to(torch.int8).contiguous()
        else:
            self.blocks = blocks.clamp(-65504.0, 65504.0).half().contiguous()
        address = [None if one is None else one.data_ptr() for one in (self.blocks, self.scale, self.bias)]
        self.entry = Linear(*address, self.out_features, self.in_features, int(bits == 8))

    def unpacked(self) -> Tensor:
        weight = torch.empty(self.out_features, self.in_features)
        ordered = weight.view(-1, ROWS, self.in_features // GROUP, GROUP)
        ordered.copy_(self.blocks.transpose(1, 2))
        if self.scale is not None:
            ordered *= self.scale.transpose(1, 2)[..., None]
        return weight

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        if x.numel() // self.in_features >= _MANY:
            return nn.functional.linear(x, self.unpacked(), self.bias)
        out = x.new_empty((*x.shape[:-1], self.out_features))
        self.library.product(
            self.entry, x.data_ptr(), out.data_ptr(), x.numel() // self.in_features, torch.get_num_threads()
        )
        return out
