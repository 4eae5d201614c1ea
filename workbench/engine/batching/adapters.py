"""Rows of several LoRA adapters, and of the base model, in one forward pass.

PEFT's own way (`adapter_names`) picks rows by lists at every layer and puts hooks on every layer at every pass. Here
rows of one adapter follow one another, the base computes all of them, and each LoRA layer adds its low-rank product to
a slice of its output.

What has more than factors (DoRA, whole modules, new tokens, LoRA on experts or embeddings) cannot be mixed: such an
adapter is *apart*, and its rows get a pass of their own, with PEFT's own forward.
"""

import weakref
from collections.abc import Callable, Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

_ROUNDING = 1e-3
_ROUNDING_16_BIT = 0.15


class MixedAdapters:
    """The adapters of one model. `spans` says which rows of the pass at hand belong to which adapter."""

    def __init__(self):
        self.spans: list[tuple[int, int, str]] = []
        self._apart: dict[str, str] = {}  # inner name -> why it cannot be mixed, or nothing
        self._hooked: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._seen: list[Tensor] | None = None  # inputs of LoRA layers, while a new adapter is tried

    def apart(self, inner: str) -> str:
        """Why an adapter needs passes of its own; empty if it can be mixed."""
        return self._apart.get(inner, "it was not tried")

    def known(self, inner: str) -> bool:
        """Whether it was tried."""
        return inner in self._apart

    def forget(self, inner: str) -> None:
        """The adapter is gone."""
        self._apart.pop(inner, None)

    def add(self, inner: str, model, run: Callable[[Sequence[str | None], bool], Tensor]) -> str:
        """Look at a new adapter of the PEFT model, and try it; returns why it cannot be mixed, or nothing.

        Args:
            run: runs the same tokens in one row per adapter named (None: the base) and returns logits [rows, …]; with
                True by passes of their own, with False mixed.
        """
        reason = _structure(model, inner)
        if not reason:
            self._hook(model)
            exact = model.get_input_embeddings().weight.dtype is torch.float32
            reason = self._try(inner, run, exact)
        self._apart[inner] = reason
        return reason

    def _try(self, inner: str, run: Callable[[Sequence[str | None], bool], Tensor], exact: bool) -> str:
        try:
            want = run([None, inner], True)
            self._seen = []
            found = run([None, inner], False)
        except Exception as error:
            return " ".join(str(error).split())[:200] or type(error).__name__
        finally:
            seen, self._seen = self._seen, None
        if any(x.dim() < 3 or x.shape[0] != 2 for x in seen or ()):
            return "LoRA is on layers that do not see whole rows"
        allowed = _ROUNDING if exact else _ROUNDING_16_BIT
        spread = (want - want.mean(dim=-1, keepdim=True)).norm(dim=-1)
        if ((found - want).norm(dim=-1) > allowed * spread).any():
            return "mixed with the base it gives another answer than alone"
        return ""

    def _hook(self, model) -> None:
        for module in model.modules():
            if isinstance(module, LoraLayer) and isinstance(module, torch.nn.Module) and module not in self._hooked:
                module.register_forward_hook(self._add_low_rank)
                self._hooked.add(module)

    def _add_low_rank(self, module, args, output):
        for start, end, name in self.spans:
            if name in module.lora_A:
                x = args[0]
                if self._seen is not None:
                    self._seen.append(x)
                a, b = module.lora_A[name], module.lora_B[name]
                low = b(a(x[start:end].to(a.weight.dtype))) * module.scaling[name]
                output[start:end] += low.to(output.dtype)


def _structure(model, inner: str) -> str:
    """What an adapter has that a low-rank product on a slice is not; nothing if that is all."""
    config = model.peft_config[inner]
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return "it is not LoRA"
    for option, what in (
        ("use_dora", "it is DoRA"),
        ("modules_to_save", "it has whole modules"),
        ("target_parameters", "it has LoRA on parameters"),
        ("trainable_token_indices", "it has new tokens"),
    ):
        if getattr(config, option, None):
            return what
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        if inner in getattr(module, "lora_embedding_A", ()):
            return "it has LoRA on embeddings"
        if inner in getattr(module, "lora_variant", ()):
            return "it is a variant of LoRA"
        if module.merged:
            return "an adapter is merged"
        if inner in module.lora_A and not isinstance(module.lora_A[inner], torch.nn.Linear):
            return "it has LoRA on layers that are not linear"
    return ""
