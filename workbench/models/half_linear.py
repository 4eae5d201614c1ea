"""Linear layers on the CPU with weights in 16 bits and arithmetic in 32.

A decoding step is bound by reading weights; float32 reads twice of what a bf16 checkpoint holds. FBGEMM (in PyTorch for
x86) multiplies float32 inputs with weights packed as float16, converting them in registers. The weights of a bf16
checkpoint fit float16 without a change that matters (they have fewer digits), so results differ from float32's by
rounding only. A row's result does not depend on other rows.
"""

from collections.abc import Callable

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


class PackedLinear(nn.Linear):
    """A linear layer without gradients whose weights lie in another form. `weight` is unpacked when somebody asks (PEFT
    for shapes, DoRA for norms)."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.register_parameter("bias", bias)

    def __getattr__(self, name: str):
        if name == "weight":  # no parameter: it would be read twice from the memory
            return self.unpacked()
        return super().__getattr__(name)

    def unpacked(self) -> Tensor:
        """The weight in float32, [out, in]."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        raise NotImplementedError

    def restored(self) -> nn.Linear:
        """The plain layer again."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        plain.bias = self.bias
        return plain


class HalfLinear(PackedLinear):
    """With FBGEMM's packed float16."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), None)

    def unpacked(self) -> Tensor:
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0].float()

    @property
    def nbytes(self) -> int:
        return 2 * self.in_features * self.out_features

    def forward(self, x: Tensor) -> Tensor:
        out = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed)
        return out if self.bias is None else out + self.bias


def pack(
    model: nn.Module, *, only_exact: bool, make: Callable[[nn.Linear], PackedLinear | None] = lambda _: None
) -> int:
    """Replace the float32 linear layers of `model` (those that are no subclass); returns how many. With `only_exact`
    those whose weights float16 does not hold stay. `make` packs a layer in a better way; where it gives None, FBGEMM
    does if it is there."""
    engine = torch.backends.quantized.engine
    if available():
        torch.backends.quantized.engine = "fbgemm"
    count = 0
    try:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is not nn.Linear or child.weight.dtype is not torch.float32:
                    continue
                if only_exact and not exact(child.weight):
                    continue
                packed = make(child) or (HalfLinear(child) if available() else None)
                if packed is not None:
                    setattr(parent, name, packed.eval())
                    count += 1
    finally:
        torch.backends.quantized.engine = engine
    return count


def restore(model: nn.Module, names: list[str]) -> None:
    """Make plain layers again of those that `names` mean (last parts of their names): an adapter trained them whole."""
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            full = f"{path}.{name}".lstrip(".")
            if isinstance(child, PackedLinear) and any(full == one or full.endswith(f".{one}") for one in names):
                setattr(module, name, child.restored())
