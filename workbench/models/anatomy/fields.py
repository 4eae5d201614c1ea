"""The fields of a config one by one: value, meaning, what changing it does, and what other models have there."""

from dataclasses import dataclass

import orjson

from workbench.models.anatomy import bundled
from workbench.models.anatomy.field_texts import ATTENTION, LATENT, SHAPE, Texts
from workbench.models.anatomy.field_texts_more import EXPERTS, FILES, POSITION, TOKENS

GROUPS: dict[str, dict[str, Texts]] = {
    "shape": SHAPE,
    "attention": ATTENTION,
    "latent": LATENT,
    "experts": EXPERTS,
    "position": POSITION,
    "tokens": TOKENS,
    "files": FILES,
}
UNKNOWN = "unknown"
MOST = 400  # fields that are looked at
SHOWN = 120  # characters of a value
_OF_ROPE = ("rope_scaling", "rope_parameters")
_KNOWN = {name: (group, texts) for group, fields in GROUPS.items() for name, texts in fields.items()}


@dataclass(frozen=True)
class Field:
    """A field of a config. `group`: of `GROUPS`, or `UNKNOWN`. `value`: as JSON, shortened. `siblings`: the values of
    other models in the same form, empty where they have none."""

    name: str
    group: str
    value: str
    meaning: tuple[str, str] = ("", "")
    effect: tuple[str, str] = ("", "")
    siblings: tuple[str, ...] = ()


def explain(name: str) -> tuple[str, Texts] | None:
    """`(group, texts)` of a field, None for one that is not known. A part of `rope_parameters` counts as one of
    `rope_scaling`."""
    if name.startswith("rope_parameters."):
        name = "rope_scaling." + name.partition(".")[2]
    return _KNOWN.get(name)


def shown(value) -> str:
    """A value as JSON, short; a long list by its first items and its length. Bounded, whatever the value is."""
    if isinstance(value, list) and len(value) > 6:
        first = ", ".join(_json(item)[:24] for item in value[:3])
        return f"[{first}, … {len(value)}]"
    if isinstance(value, dict) and len(value) > 1:  # its parts have lines of their own, or are nobody's business here
        return f"{{… {len(value)}}}"
    text = _json(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _json(value) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a number that is too large, a lone surrogate
        return repr(value)[:SHOWN]


def flat(config: dict) -> dict[str, object]:
    """Fields by name; those of `rope_scaling` and `rope_parameters` one by one after their whole, others whole."""
    found: dict[str, object] = {}
    for name, value in list(config.items())[:MOST]:
        found[str(name)[:80]] = value
        if name in _OF_ROPE and isinstance(value, dict):
            found |= {f"{name}.{str(key)[:60]}": inner for key, inner in list(value.items())[:30]}
    return found


def fields(config: dict, siblings: list[str] | None = None) -> list[Field]:
    """Every field of a config, known ones by group, the unknown last. `siblings`: bundled models to compare with."""
    values = flat(config)
    others = [flat(bundled.configs()[name]) for name in siblings or []]
    found = []
    for name, value in values.items():
        known = explain(name)
        beside = tuple(shown(other[name]) if name in other else "" for other in others)
        group, texts = known or (UNKNOWN, ("", "", "", ""))
        found.append(Field(name, group, shown(value), texts[:2], texts[2:], beside))
    order = {group: place for place, group in enumerate((*GROUPS, UNKNOWN))}
    listed = {name: place for place, name in enumerate(_KNOWN)}
    return sorted(found, key=lambda f: (order[f.group], listed.get(f.name, len(listed)), f.name))
