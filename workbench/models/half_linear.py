"""Linear layers on the CPU with weights in 16 bits and arithmetic in 32.

A decoding step is bound by reading weights; float32 reads twice of what a bf16 checkpoint holds. FBGEMM (in PyTorch for
x86) multiplies float32 inputs with weights packed as float16, converting them in registers. The weights of a bf16
checkpoint fit float16 without a change that matters (they have fewer digits), so results differ from float32's by
rounding only. A row's result does not depend on other rows.
"""

import torch
from torch import Tensor, nn

_LARGEST = 65504.0  # of float16
_FURTHER_DIGITS = 0x1FFF  # of float32's 23, those that float16 (and bf16) do not have


def available() -> bool:
    """Whether this machine's PyTorch has the kernel."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def exact(weight: Tensor) -> bool:
    """Whether float16 holds these float32 weights without a change that matters: no further digits, nothing too large.
    Below 2⁻¹⁴ its steps are 2⁻²⁴, far less than what rounding does in a sum."""
    least, most = (float(value) for value in weight.detach().aminmax())
    if max(-least, most) > _LARGEST:
        return False
    return not bool((weight.detach().contiguous().view(torch.int32) & _FURTHER_DIGITS).any())


class HalfLinear(nn.Linear):
    """A linear layer without gradients. `weight` is unpacked when somebody asks (PEFT for shapes, DoRA for norms)."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), None)
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.register_parameter("bias", bias)

    def __getattr__(self, name: str):
        if name == "weight":  # no parameter: it would be read twice from the memory
            return torch.ops.quantized.linear_unpack_fp16(self.packed)[0].float()
        return super().__getattr__(name)

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        return 2 * self.in_features * self.out_features

    def forward(self, x: Tensor) -> Tensor:
        out = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed)
        return out if self.bias is None else out + self.bias

    def restored(self) -> nn.Linear:
        """The plain layer again."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        plain.bias = self.bias
        return plain


def pack(model: nn.Module, *, only_exact: bool) -> int:
    """Replace the float32 linear layers of `model` (those that are no subclass); returns how many. With `only_exact`
    those whose weights float16 does not hold stay."""
    engine, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
    count = 0
    try:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is not nn.Linear or child.weight.dtype is not torch.float32:
                    continue
                if not only_exact or exact(child.weight):
                    setattr(parent, name, HalfLinear(child).eval())
                    count += 1
    finally:
        torch.backends.quantized.engine = engine
    return count


def restore(model: nn.Module, names: list[str]) -> None:
    """Make plain layers again of those that `names` mean (last parts of their names): an adapter trained them whole."""
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            full = f"{path}.{name}".lstrip(".")
            if isinstance(child, HalfLinear) and any(full == one or full.endswith(f".{one}") for one in names):
                setattr(module, name, child.restored())
