"""Bytes of a model's weights as they are loaded: 4 bits (QLoRA, arXiv 2305.14314), 8 bits, 16 bits or 32.

4 bits hold two weights a byte and a scale for each 64 of them: a float32, or with double quantization one byte, which
in turn have a float32 for each 256. Quantized are linear layers, and with 4 bits fused experts as well; embeddings,
norms, routers and the output head stay as they are (`quantized/loader.py`).
"""

import math
from dataclasses import dataclass
from functools import cached_property

from workbench.models.anatomy.shapes import Anatomy, Weight

BLOCK, NESTED = 64, 256  # weights that share a scale, scales that share one
_TABLES = 16 * 4 + 256 * 4 + 4  # bytes of the tables of values of 4 and 8 bits and of the scales' mean, per module


@dataclass(frozen=True)
class Form:
    """How a model is loaded. `bits`: 4, 8 or 0 (not quantized). `bytes`: of a weight that is not quantized."""

    bits: int = 0
    double: bool = True
    bytes: int = 2

    def packed(self, weight: Weight, fused_fits: bool) -> bool:
        """Whether this weight is quantized; `fused_fits`: the model's fused experts can be."""
        if not weight.linear or not self.bits or weight.name.endswith("bias"):
            return False
        return weight.component != "experts" or (self.bits == 4 and fused_fits)


@dataclass(frozen=True)
class LoadedWeights:
    """Bytes: `plain` of weights that are not quantized, `packed` of the others, `constants` of their scales."""

    plain: int
    packed: int
    constants: int

    @property
    def total(self) -> int:
        return self.plain + self.packed + self.constants


class Loaded:
    """A model as `form` loads it."""

    def __init__(self, anatomy: Anatomy, form: Form):
        self.anatomy, self.form = anatomy, form
        experts = anatomy.sizes.experts
        block = not experts or experts.size * anatomy.sizes.hidden % BLOCK == 0
        self.fused_fits = block and not anatomy.sizes.family.sinks

    def packed(self, weight: Weight) -> bool:
        return self.form.packed(weight, self.fused_fits)

    def of(self, weight: Weight) -> int:
        """Bytes of one such weight, with its scales."""
        return sum(packed_bytes(weight, self.form)) if self.packed(weight) else weight.count * self.form.bytes

    @cached_property
    def bytes(self) -> LoadedWeights:
        """Of the whole model."""
        plain = packed = constants = 0
        for weight, number in self.anatomy.counted():
            if not self.packed(weight):
                plain += weight.count * self.form.bytes * number
                continue
            data, scales = packed_bytes(weight, self.form)
            packed += data * number
            constants += scales * number
        return LoadedWeights(plain, packed, constants)

    @cached_property
    def largest(self) -> int:
        """Bytes in 16 bits of the largest single quantized weight: what unpacking it takes (0: none is quantized)."""
        return max((2 * w.count for w, _ in self.anatomy.counted() if self.packed(w)), default=0)


def packed_bytes(weight: Weight, form: Form) -> tuple[int, int]:
    """`(bytes of the values, bytes of the scales)` of one quantized weight."""
    if form.bits == 8:
        return weight.count, 4 * (weight.count // weight.shape[-1])
    scales = math.ceil(weight.count / BLOCK)
    if form.double:
        return math.ceil(weight.count / 2), scales + 4 * math.ceil(scales / NESTED) + _TABLES
    return math.ceil(weight.count / 2), 4 * scales + 16 * 4
