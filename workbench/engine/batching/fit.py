"""Whether a model can share forward passes among requests: found out by doing it, before anything is served."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.engine.batching.cache import PagedCache
from workbench.engine.batching.quick import QuickForward, quick_forward
from workbench.engine.batching.runner import MaskForm, Piece, Runner
from workbench.messages.message import Message
from workbench.models.host_weights import host_weights_of
from workbench.models.quantized.weights import triton_is_here
from workbench.models.rope_lengths import RopeLengths

_KINDS = {"full_attention", "sliding_attention"}
_WINDOW = 3  # of sliding layers during the trial, so that it matters
_ROUNDING = {torch.float32: 1e-3}  # what may differ, as a share of how much logits vary
_ROUNDING_16_BIT = 0.15  # near ties, an expert may be another one
_OWN = 1.5  # times the difference that a model in 16 bits makes by itself, where that is larger
_MOST = 0.5  # of that; what read other tokens differs by more


@dataclass(frozen=True)
class Fit:
    """What was found: how the model wants its masks, the bytes that its cache takes for a token, and the width of its
    logits; `quick`: the lean forward pass, where it computes the same, and `steps`, whether the step of one row does;
    `recorded`: whether decoding steps can be recorded (CUDA graphs), with `not_recorded`, why not; `alike`: the layers
    if all have the same cache. Or `reason`, why its requests must take turns."""

    form: MaskForm = "plain"
    bytes_per_token: int = 0
    width: int = 0
    quick: QuickForward | None = None
    steps: bool = False
    recorded: bool = False
    not_recorded: Message | str = ""
    alike: int = 0
    reason: str = ""


def find_fit(model, rope: RopeLengths) -> Fit:
    """Whether and how requests to `model` can share forward passes.

    Two texts are read in pieces and side by side, and must come out as each does alone with transformers' own cache.
    """
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if others:
        return Fit(reason=Message("turns_layers", kinds=sorted(others)))
    if rope.per_layer:
        return Fit(reason=Message("turns_rotary"))
    if getattr(config, "attention_chunk_size", None):
        return Fit(reason=Message("turns_chunked"))
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return Fit(reason=Message("turns_attention", kind=config._attn_implementation))
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
                want = _alone(model)
                cost, alike, found = _side_by_side(model, rope, form, None)
                same = _as_alone(model, found, want)
            except Exception as error:  # of whatever a model's code does not expect
                reason = reason or (" ".join(str(error).split())[:200] or type(error).__name__)
                continue
            if cost and same:
                quick = _quick(model, rope, form, want)
                steps = quick is not None and _right(model, rope, form, quick, want, steps=True)
                recorded, why = _recorded(model, rope, form, want)
                return Fit(form, cost, want[0].shape[-1], quick, steps, recorded, why, alike)
            reason = Message("turns_differ" if cost else "turns_cache")
    finally:
        if window:
            config.sliding_window = window
    return Fit(reason=reason)


def _quick(model, rope: RopeLengths, form: MaskForm, want: list[Tensor]) -> QuickForward | None:
    if host_weights_of(model) is not None:  # it reads weights past the layers, which have them come
        return None
    quick = quick_forward(model)
    return quick if quick is not None and _right(model, rope, form, quick, want) else None


def _right(
    model, rope: RopeLengths, form: MaskForm, quick: QuickForward, want: list[Tensor], steps: bool = False
) -> bool:
    """Whether the lean pass, or with `steps` also the step of one row, computes the same."""
    try:
        return _difference(_side_by_side(model, rope, form, quick, steps)[2], want) <= _ROUNDING[torch.float32]
    except Exception:
        return False


def _recorded(model, rope: RopeLengths, form: MaskForm, want: list[Tensor]) -> tuple[bool, Message | str]:
    """Whether steps can be recorded and compute the same, and else why not (nothing on a CPU)."""
    embeddings = model.get_input_embeddings().weight
    if embeddings.device.type != "cuda":
        return False, ""
    if host_weights_of(model) is not None:
        return False, Message("recorded_host")
    if not triton_is_here():
        return False, Message("recorded_triton")
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return False, Message("recorded_split")
    try:
        found = _side_by_side(model, rope, form, None, recorded=True)[2]
    except _NotRecorded as error:
        return False, str(error)
    if not _as_alone(model, found, want):
        return False, Message("recorded_differs")
    return True, ""


class _NotRecorded(Exception):
    pass


def _texts(model) -> list[list[int]]:
    size = model.config.get_text_config().vocab_size
    return [[(7 * i + 3) % size for i in range(11)], [(5 * i + 1) % size for i in range(7)]]


def _as_alone(model, found: list[Tensor], want: list[Tensor]) -> bool:
    """Whether logits are those of `_alone`, but for rounding.

    In 16 bits a router that likes two experts alike may take another one each time, and where experts weigh much
    (DeepSeek-V2: 16 times), that is no small difference. So what transformers' own passes differ by, of the same tokens
    in other pieces, is allowed, too.
    """
    difference, exact = _difference(found, want), _ROUNDING.get(model.get_input_embeddings().weight.dtype)
    if exact is not None or difference <= _ROUNDING_16_BIT:
        return difference <= (exact or _ROUNDING_16_BIT)
    return difference <= min(_MOST, _OWN * _difference(_alone(model, one_by_one=True), want))


def _alone(model, one_by_one: bool = False) -> list[Tensor]:
    """Logits after the tokens of both texts at which `_side_by_side` has some, with transformers' own cache."""
    found = []
    with torch.inference_mode():
        for text, ends in zip(_texts(model), ((5, 9, 10, 11), (6, 7)), strict=True):
            cache, start = DynamicCache(config=model.config.get_text_config()), 0
            for end in range(1, ends[-1] + 1) if one_by_one else ends:
                ids = torch.tensor([text[start:end]], device=model.get_input_embeddings().weight.device)
                out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                if end in ends:
                    found.append(out.logits[0, -1].float())
                start = end
    return found


def _side_by_side(
    model,
    rope: RopeLengths,
    form: MaskForm,
    quick: QuickForward | None,
    steps: bool = False,
    recorded: bool = False,
) -> tuple[int, int, list[Tensor]]:
    """Bytes a token, how many layers have the same cache, and the logits of both texts in pieces and together, the
    first text's before the second's."""
    cache, texts = PagedCache(9, 4), _texts(model)
    runner = Runner(model, cache, rope, form, quick, steps, recorded=3 if recorded else 0)
    pages = [[3, 5, 7], [6, 2]]
    found: list[list[Tensor]] = [[], []]
    for parts in (((0, 0, 5),), ((0, 5, 9), (1, 0, 6)), ((0, 9, 10), (1, 6, 7)), ((0, 10, 11),)):
        pieces = [
            Piece(texts[i][a:b], a, pages[i], rope.lengths(a, b, b, b) if rope.kind else None) for i, a, b in parts
        ]
        if runner.recorded:
            rows = runner.in_steps(pieces, None)
            if rows is None:
                raise _NotRecorded(runner.recorded.refused[None])
        else:
            rows = runner.run(pieces)
        for (i, _, _), logits in zip(parts, rows, strict=True):
            found[i].append(logits)
    return cache.bytes_per_token, cache.same, found[0] + found[1]


def _difference(found: list[Tensor], want: list[Tensor]) -> float:
    """The largest of all logits' vectors, as a share of how much they vary."""
    return max(float((a - b).norm() / (b - b.mean()).norm()) for a, b in zip(found, want, strict=True))
