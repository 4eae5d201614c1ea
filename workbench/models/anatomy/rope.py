"""Rotary position embedding: how fast each pair of dimensions turns, and what scalings make of that.

The pair i of d dimensions turns by theta^(-2i/d) per token; a whole turn takes 2π · theta^(2i/d) tokens, its
*wavelength*. Pairs that turn less than once in the texts of training have never shown most of their angles: beyond
those texts they say what the model has not seen. Scalings: linear (arXiv 2306.15595), dynamic NTK, YaRN (2309.00071),
Llama 3.1's, longrope (2402.13753), each as transformers computes it (`modeling_rope_utils`).
"""

import math
from dataclasses import dataclass, field

from workbench.messages.message import Message
from workbench.models.anatomy.sizes import Sizes
from workbench.storage import files

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
MOST_DIMS = 8192  # of a head: more would only make the pictures slow


@dataclass(frozen=True)
class Rope:
    """A model's rotary embedding. `dims`: dimensions of a head that turn. `context`: `max_position_embeddings`;
    `original`: what it was trained with before it was stretched. `settings`: of its own scaling."""

    theta: float
    dims: int
    kind: str
    context: int
    original: int
    factor: float
    settings: dict = field(default_factory=dict)


def _positive(value) -> float | None:
    good = (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 1e-9 < value < 1e12
    )
    return float(value) if good else None


def read_rope(config: dict, sizes: Sizes) -> tuple[Rope | None, list[str]]:
    """A model's rotary embedding and what is wrong with it; None where it cannot be told. Reads both forms:
    `rope_theta` with `rope_scaling`, and `rope_parameters`."""
    problems: list[str] = []
    inner = config.get("text_config")
    if sizes.model_type != config.get("model_type") and isinstance(inner, dict):
        config = inner
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(given, dict) and isinstance(given.get("full_attention"), dict):
        problems.append(Message("anatomy_rope_kinds"))
        given = given["full_attention"]
    if not isinstance(given, dict):
        return None, [Message("anatomy_rope_wrong", key="rope_scaling", value=files.shown(given, 40))]
    kind = given.get("rope_type", given.get("type")) or "default"
    if kind == "su" or (kind == "yarn" and sizes.model_type == "phi3"):
        kind = "longrope"
    theta = given.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        theta = 10000.0
        problems.append(Message("anatomy_default", key="rope_theta", value="10000"))
    base = _positive(theta)
    share = _positive(
        given.get("partial_rotary_factor")
        or config.get("partial_rotary_factor")
        or sizes.family.defaults.get("partial_rotary_factor", 1.0)
    )
    if base is None or base <= 1 or share is None or share > 1:
        key, value = ("rope_theta", theta) if base is None or base <= 1 else ("partial_rotary_factor", share)
        return None, [*problems, Message("anatomy_rope_wrong", key=key, value=files.shown(value, 40))]
    dims = sizes.latent.rope if sizes.latent else int(sizes.head * share) // 2 * 2
    if not 2 <= dims <= MOST_DIMS:
        return None, [*problems, Message("anatomy_rope_wrong", key="head_dim", value=str(sizes.head))]
    context = sizes.context
    original = _positive(
        given.get("original_max_position_embeddings")
        or config.get("original_max_position_embeddings")
        or context
        or None
    )
    factor = _positive(given.get("factor"))
    if original is None and kind != "default":
        return None, [*problems, Message("anatomy_rope_wrong", key="original_max_position_embeddings", value="")]
    original = int(original or 0)
    if factor is None:
        if kind in ("linear", "dynamic", "yarn", "llama3"):
            return None, [
                *problems,
                Message("anatomy_rope_wrong", key="factor", value=files.shown(given.get("factor"), 40)),
            ]
        factor = context / original if kind == "longrope" and original else 1.0
    rope = Rope(base, dims, str(kind)[:40], context, original, factor, given)
    if kind not in KINDS:
        problems.append(Message("anatomy_rope_unknown", kind=files.shown(kind, 40)))
    elif kind == "longrope" and not all(_factors(rope, name) for name in ("short_factor", "long_factor")):
        return None, [*problems, Message("anatomy_rope_factors", wanted=dims // 2)]
    return rope, problems


def _factors(rope: Rope, name: str) -> list[float]:
    given = rope.settings.get(name)
    if not isinstance(given, list) or len(given) != rope.dims // 2:
        return []
    found = [_positive(value) for value in given]
    return [value for value in found if value] if all(found) else []


def plain(rope: Rope) -> list[float]:
    """Turns (radians per token) of each pair without scaling."""
    return [rope.theta ** (-2 * i / rope.dims) for i in range(rope.dims // 2)]


def scaled(rope: Rope, kind: str, factor: float, length: int = 0) -> list[float]:
    """Turns of each pair with a scaling of this kind and factor, in a text of `length` tokens (which only dynamic and
    longrope look at). The model's own settings are used where it has this kind."""
    turns, dims, original = plain(rope), rope.dims, rope.original or rope.context
    settings = rope.settings if kind == rope.kind else {}
    if kind == "linear":
        return [turn / factor for turn in turns]
    if kind == "dynamic":
        longest = max(length, rope.context)
        stretch = max(1.0, factor * longest / rope.context - (factor - 1)) if rope.context else 1.0
        if dims <= 2:
            return turns
        base = rope.theta * stretch ** (dims / (dims - 2))
        return [base ** (-2 * i / dims) for i in range(dims // 2)]
    if kind == "yarn" and original:
        low, high = _ramp(rope, settings, original)
        kept = [1 - min(1.0, max(0.0, (i - low) / (high - low))) for i in range(dims // 2)]
        return [turn * (k + (1 - k) / factor) for turn, k in zip(turns, kept, strict=True)]
    if kind == "llama3" and original:
        return [_llama3(turn, factor, settings, original) for turn in turns]
    if kind == "longrope":
        factors = _factors(rope, "long_factor" if length > original else "short_factor")
        return [turn / by for turn, by in zip(turns, factors, strict=True)]
    return turns


def _ramp(rope: Rope, settings: dict, original: int) -> tuple[float, float]:
    """From which pair on YaRN stretches, and from which it stretches in full."""

    def pair(turns: float) -> float:
        return rope.dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = pair(_positive(settings.get("beta_fast")) or 32)
    high = pair(_positive(settings.get("beta_slow")) or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    return low, high + 0.001 if low == high else high


def _llama3(turn: float, factor: float, settings: dict, original: int) -> float:
    slow = _positive(settings.get("low_freq_factor")) or 1.0
    fast = _positive(settings.get("high_freq_factor")) or 4.0
    wave = 2 * math.pi / turn
    if wave < original / fast:
        return turn
    if wave > original / slow or fast == slow:
        return turn / factor
    smooth = (original / wave - slow) / (fast - slow)
    return (1 - smooth) * turn / factor + smooth * turn


def wavelengths(turns: list[float]) -> list[float]:
    """Tokens of a whole turn."""
    return [2 * math.pi / turn for turn in turns]


def attention_factor(rope: Rope) -> float:
    """What queries and keys are multiplied with beside (YaRN's and longrope's temperature); 1 for the others."""
    settings = rope.settings
    if rope.kind not in ("yarn", "longrope"):
        return 1.0
    if given := _positive(settings.get("attention_factor")):
        return given
    if rope.kind == "longrope":
        if rope.factor <= 1 or rope.original <= 1:
            return 1.0
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original))

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    one, all_dims = _positive(settings.get("mscale")), _positive(settings.get("mscale_all_dim"))
    return mscale(one) / mscale(all_dims) if one and all_dims else mscale(1.0)


def stretched(rope: Rope, factor: float) -> int:
    """The context that a scaling with this factor aims at: it counts from the original one, as `rope_scaling` of a run
    does."""
    return int((rope.original or rope.context) * factor)


def unseen(rope: Rope, turns: list[float]) -> int:
    """Pairs that do not turn once within the original context: what they say farther away was never trained."""
    return sum(wave > rope.original for wave in wavelengths(turns)) if rope.original else 0
