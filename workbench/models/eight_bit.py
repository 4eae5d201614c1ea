"""8-bit linear layers for inputs of any number of dimensions.

bitsandbytes 0.50.2 joins the leading dimensions of an input with three; with four (latents of DeepSeek-V2's attention
come as one head) its search for outliers on a GPU fails. Here they are joined before.
"""

from torch import Tensor, nn

from workbench.models.quantized.bnb import bnb


class AnyShapeLinear8bit(bnb.nn.Linear8bitLt):
    """bitsandbytes' layer for [..., in]. `scales`: of its rows, which PEFT's DoRA loses on the CPU."""

    scales: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.CB is not None and self.weight.SCB is None:
            self.weight.SCB = self.scales
        if x.dim() <= 3:
            return super().forward(x)
        return super().forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def take_any_shape(model: nn.Module) -> int:
    """Let the 8-bit layers of `model` take inputs of any number of dimensions; returns how many layers."""
    layers = [module for module in model.modules() if type(module) is bnb.nn.Linear8bitLt]
    for layer in layers:
        layer.__class__, layer.scales = AnyShapeLinear8bit, layer.weight.SCB
    return len(layers)
