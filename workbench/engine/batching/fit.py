"""Whether a model can share forward passes among requests: found out by doing it, before anything is served."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.engine.batching.cache import PagedCache
from workbench.engine.batching.quick import QuickForward, quick_forward
from workbench.engine.batching.runner import MaskForm, Piece, Runner
from workbench.models.rope_lengths import RopeLengths

_KINDS = {"full_attention", "sliding_attention"}
_WINDOW = 3  # of sliding layers during the trial, so that it matters
_ROUNDING = {torch.float32: 1e-3}  # what may differ, as a share of how much logits vary
_ROUNDING_16_BIT = 0.15  # near ties, an expert may be another one


@dataclass(frozen=True)
class Fit:
    """What was found: how the model wants its masks, the bytes that its cache takes for a token, and the width of its
    logits; `quick`: the lean forward pass, where it computes the same; or `reason`, why its requests must take
    turns."""

    form: MaskForm = "plain"
    bytes_per_token: int = 0
    width: int = 0
    quick: QuickForward | None = None
    reason: str = ""


def find_fit(model, rope: RopeLengths) -> Fit:
    """Whether and how requests to `model` can share forward passes.

    Two texts are read in pieces and side by side, and must come out as each does alone with transformers' own cache.
    """
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if others:
        return Fit(reason=f"it has layers of kind {', '.join(sorted(others))}")
    if rope.per_layer:
        return Fit(reason="its rotary embeddings depend on the length, each layer's in its own way")
    if getattr(config, "attention_chunk_size", None):
        return Fit(reason="its attention is chunked")
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return Fit(reason=f"its attention is {config._attn_implementation} (flash_attn: auto or sdpa would do)")
    forms: tuple[MaskForm, ...] = (
        ("by_layer_type", "plain") if getattr(config, "layer_types", None) else ("plain", "by_layer_type")
    )
    window = getattr(config, "sliding_window", None)
    reason = ""
    if window:
        config.sliding_window = _WINDOW
    try:
        for form in forms:
            try:
                cost, width, difference = _tried(model, rope, form, None)
            except Exception as error:  # of whatever a model's code does not expect
                reason = reason or (" ".join(str(error).split())[:200] or type(error).__name__)
                continue
            if cost and difference <= _ROUNDING.get(model.get_input_embeddings().weight.dtype, _ROUNDING_16_BIT):
                return Fit(form, cost, width, _quick(model, rope, form))
            reason = "two texts side by side do not come out as each alone" if cost else "it does not use its cache"
    finally:
        if window:
            config.sliding_window = window
    return Fit(reason=reason)


def _quick(model, rope: RopeLengths, form: MaskForm) -> QuickForward | None:
    quick = quick_forward(model)
    try:
        right = quick is not None and _tried(model, rope, form, quick)[2] <= _ROUNDING[torch.float32]
    except Exception:
        return None
    return quick if right else None


def _tried(model, rope: RopeLengths, form: MaskForm, quick: QuickForward | None) -> tuple[int, int, float]:
    """Bytes a token, the logits' width, and the largest difference of a row's logits as a share of how much they
    vary."""
    cache = PagedCache(9, 4)
    runner = Runner(model, cache, rope, form, quick)
    size = model.config.get_text_config().vocab_size
    texts = [[(7 * i + 3) % size for i in range(11)], [(5 * i + 1) % size for i in range(7)]]
    pages = [[3, 5, 7], [6, 2]]
    found: list[list[Tensor]] = [[], []]

    def read(*parts: tuple[int, int, int]) -> None:
        out = runner.run(
            [Piece(texts[i][a:b], a, pages[i], rope.lengths(a, b, b, b) if rope.kind else None) for i, a, b in parts]
        )
        for (i, _, _), logits in zip(parts, out, strict=True):
            found[i].append(logits)

    read((0, 0, 5))
    read((0, 5, 9), (1, 0, 6))
    read((0, 9, 10), (1, 6, 7))
    read((0, 10, 11))
    worst = 0.0
    with torch.inference_mode():
        for text, rows, ends in zip(texts, found, ((5, 9, 10, 11), (6, 7)), strict=True):
            alone, start = DynamicCache(config=model.config.get_text_config()), 0
            for end, logits in zip(ends, rows, strict=True):
                ids = torch.tensor([text[start:end]], device=runner.device)
                want = model(input_ids=ids, past_key_values=alone, use_cache=True, logits_to_keep=1).logits[0, -1]
                worst = max(worst, float((logits - want.float()).norm() / (want.float() - want.float().mean()).norm()))
                start = end
    return cache.bytes_per_token, found[0][0].shape[-1], worst
