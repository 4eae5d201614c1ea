"""Adapters' changes of single tensors, so that a model is merged without being loaded.

LoRA: W + s · B A, with s = alpha / r, or alpha / √r with rsLoRA (arXiv 2106.09685, 2312.03732). DoRA: the rows of that,
scaled to the trained magnitudes (arXiv 2402.09353). Modules trained whole: W + weight · (trained − W). The same as
PEFT's merge, in float32; `tests/models/test_gguf.py` compares.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.models.gguf.tensors import Tensors
from workbench.models.merging import check_weights

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
_EXPERTS = re.compile(r"(.+\.experts)(?:\.base_layer)*")
_UNSUPPORTED = ("fan_in_fan_out", "layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens")


@dataclass
class Factors:
    """Of one module: names of its factors in the file, and the factor of their product."""

    a: str
    b: str
    scale: float
    embedding: bool = False


class Adapter:
    """One adapter, its weight, and which tensors of the base it changes."""

    def __init__(self, folder: Path, weight: float, base: dict[str, tuple[int, ...]], experts: int = 0):
        """
        Args:
            base: the shapes of the base's tensors by name.
            experts: routed experts of a layer, whose factors PEFT keeps together.

        Raises:
            UserError: it is no LoRA, does not fit the base, or has parts that are not known here.
        """
        from peft import PeftConfig

        try:
            self.config: Any = PeftConfig.from_pretrained(str(folder))
        except Exception as error:  # of a file that says what the library does not expect
            raise UserError("adapter_unfit", folder=folder, problem=" ".join(str(error).split())[:300]) from None
        self.folder, self.weight, self.experts = folder, weight, experts
        self.tensors = Tensors([folder / "adapter_model.safetensors"])
        self.factors: dict[str, Factors] = {}
        self.whole: dict[str, str] = {}
        self.copies: dict[str, str] = {}  # of the base, which PEFT keeps beside factors of embeddings
        self.magnitudes: dict[str, str] = {}
        self._kept: tuple[str, Any] = ("", None)  # the factor of all experts of a layer that was read last
        kind = str(getattr(self.config.peft_type, "value", self.config.peft_type))
        used = [name for name in _UNSUPPORTED if getattr(self.config, name, None)]
        if kind != "LORA" or used:
            raise UserError("gguf_adapter_kind", folder=folder, kind=", ".join(used) or kind)
        self._sort(base)

    def _sort(self, base: dict[str, tuple[int, ...]]) -> None:
        """Find the tensor of the base that each part belongs to."""
        parts: dict[str, dict[str, str]] = {}
        for key in self.tensors.shapes:
            name = key.removeprefix(_PREFIX)
            if match := _FACTOR.fullmatch(name):
                parts.setdefault(match[1], {"embedding": match[2] or ""})[match[3]] = key
            elif match := _MAGNITUDE.fullmatch(name):
                self.magnitudes[f"{match[1]}.weight"] = key
            elif name in base:
                self.whole[name] = key
            elif (plain := name.replace(".base_layer.", ".")) in base:
                self.copies[plain] = key
            else:
                raise UserError("gguf_adapter_part", folder=self.folder, name=name)
        for module, part in parts.items():
            if not part.get("A") or not part.get("B"):
                raise UserError("gguf_adapter_part", folder=self.folder, name=module)
            a, b = self.tensors.shapes[part["A"]], self.tensors.shapes[part["B"]]
            fused = _EXPERTS.fullmatch(module)
            rank = a[0] // max(1, self.experts) if fused else a[0]
            found = Factors(part["A"], part["B"], self._scale(module, rank), bool(part["embedding"]))
            if fused:
                self._place_experts(fused[1], found, a, b, base)
            else:
                self._place(f"{module}.weight", found, (a[1], b[0]) if found.embedding else (b[0], a[1]), base)
        for name, key in (self.whole | self.copies).items():
            self._check(name, self.tensors.shapes[key], base)

    def _scale(self, module: str, rank: int) -> float:
        from peft.utils.other import get_pattern_key

        patterns = self.config.alpha_pattern or {}
        alpha = patterns.get(get_pattern_key(patterns.keys(), module), self.config.lora_alpha)
        return alpha / (math.sqrt(max(1, rank)) if self.config.use_rslora else max(1, rank))

    def _place(self, name: str, found: Factors, shape: tuple[int, ...], base) -> None:
        self._check(name, shape, base)
        self.factors[name] = found

    def _place_experts(self, module: str, found: Factors, a, b, base) -> None:
        """Factors of all experts of a layer: A is [experts · r, in], B is [out, r · experts]; gate and up are one
        matrix. Which of the two a pair is follows from its shapes."""
        gate, down = base.get(f"{module}.0.gate_proj.weight"), base.get(f"{module}.0.down_proj.weight")
        if gate and (b[0], a[1]) == (2 * gate[0], gate[1]):
            self.factors[f"{module}.gate_up_proj"] = found
        elif down and (b[0], a[1]) == down:
            self.factors[f"{module}.down_proj"] = found
        else:
            raise UserError("gguf_adapter_part", folder=self.folder, name=module)

    def _check(self, name: str, shape: tuple[int, ...], base) -> None:
        if base.get(name) != tuple(shape):
            problem = f"{name}: {list(shape)}, {list(base[name]) if name in base else '–'}"
            raise UserError("adapter_unfit", folder=self.folder, problem=problem)

    def product(self, name: str) -> tuple[Any, Any, float] | None:
        """`(A [r, in], B [out, r], scale)` of a tensor's change, or None. Of an expert: its own part."""
        if expert := re.fullmatch(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight", name):
            return self._expert(expert[1], int(expert[2]), expert[3]) or self._plain(name)
        return self._plain(name)

    def changes(self, name: str) -> bool:
        """Whether merging changes a tensor of the base."""
        if name in self.factors or name in self.whole or name in self.copies:
            return True
        expert = re.fullmatch(r"(.+\.experts)\.\d+\.(gate_proj|up_proj|down_proj)\.weight", name)
        part = expert and ("down_proj" if expert[2] == "down_proj" else "gate_up_proj")
        return bool(expert) and f"{expert[1]}.{part}" in self.factors

    def _plain(self, name: str):
        found = self.factors.get(name)
        if found is None:
            return None
        a, b = self.tensors.rows(found.a), self.tensors.rows(found.b)
        return (b.T, a.T, found.scale) if found.embedding else (a, b, found.scale)

    def _expert(self, module: str, number: int, part: str):
        found = self.factors.get(f"{module}.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}")
        if found is None:
            return None
        rank = self.tensors.shapes[found.a][0] // self.experts
        a = self.tensors.rows(found.a, number * rank, (number + 1) * rank)
        if self._kept[0] != found.b:
            self._kept = found.b, self.tensors.rows(found.b)
        b = self._kept[1]
        b = b.reshape(b.shape[0], rank, self.experts)[:, :, number]
        if part != "down_proj":
            half = b.shape[0] // 2
            b = b[:half] if part == "gate_proj" else b[half:]
        return a, b, found.scale


class Merged:
    """A base's tensors with adapters merged in. Factors of the tensor that was asked for last are kept."""

    def __init__(self, base: Tensors, adapters: Iterable[Adapter]):
        """Raises UserError: adapters that cannot be added up."""
        self.base, self.adapters = base, list(adapters)
        check_weights([one.config for one in self.adapters], [one.weight for one in self.adapters])
        self._name, self._products = "", []

    def rows(self, name: str, start: int = 0, stop: int | None = None):
        """Rows of the merged tensor, float32."""
        stop = self.base.shapes[name][0] if stop is None else stop
        rows = merged = self.base.rows(name, start, stop)
        if self._name != name:
            self._name, self._products = name, [one.product(name) for one in self.adapters]
        for adapter, product in zip(self.adapters, self._products, strict=True):
            if key := adapter.copies.get(name):
                merged = merged + (adapter.tensors.rows(key, start, stop) - rows)
            if key := adapter.whole.get(name):
                merged = merged + adapter.weight * (adapter.tensors.rows(key, start, stop) - rows)
            if product is not None:
                a, b, scale = product
                merged = merged + (adapter.weight * scale) * (b[start:stop] @ a)
            if key := adapter.magnitudes.get(name):
                magnitude = adapter.tensors.rows(key).reshape(-1)[start:stop]
                merged = merged * (magnitude / merged.norm(dim=1))[:, None]
        return merged
