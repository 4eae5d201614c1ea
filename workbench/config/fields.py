"""The options as a form needs them: kind of widget, choices, range, words. Read from `options.py`."""

from dataclasses import dataclass
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt

from workbench.config.options import GROUPS, ModelOptions, RunConfig, literal_choices


@dataclass(frozen=True)
class Option:
    """One option. `kind` is bool, int, float, text or choice; `minimum`/`maximum` are inclusive or None."""

    name: str
    kind: str
    default: Any
    choices: tuple
    minimum: float | None
    maximum: float | None
    group: str
    basic: bool
    optional: bool
    labels: tuple[str, str]
    helps: tuple[str, str]
    range_text: str


def _option(name: str, field) -> Option:
    kinds = [a for a in get_args(field.annotation) or (field.annotation,) if a is not type(None)]
    choices = literal_choices(field.annotation)
    kind = "choice" if choices else {bool: "bool", int: "int", float: "float", str: "text"}[kinds[0]]
    bounds = {type(m): m for m in field.metadata}
    low, high = bounds.get(Ge) or bounds.get(Gt), bounds.get(Le) or bounds.get(Lt)
    parts = [
        f"{symbol} {getattr(bounds[cls], attr)}"
        for cls, attr, symbol in ((Gt, "gt", ">"), (Ge, "ge", "≥"), (Lt, "lt", "<"), (Le, "le", "≤"))
        if cls in bounds
    ]
    extra = field.json_schema_extra
    return Option(
        name=name,
        kind=kind,
        default=field.get_default(),
        choices=choices,
        minimum=getattr(low, "ge", None),
        maximum=getattr(high, "le", None),
        group=extra["group"],
        basic=extra["basic"],
        optional=type(None) in get_args(field.annotation),
        labels=extra["label"],
        helps=extra["help"],
        range_text=", ".join(map(str, choices)) if choices else " and ".join(parts),
    )


def options(model: type[ModelOptions] = RunConfig) -> list[Option]:
    """All options of `model` in the order of their definition."""
    return [_option(name, field) for name, field in model.model_fields.items()]


def options_table() -> str:
    """The text of docs/options.md."""
    lines = [
        "# Options of a run",
        "",
        (
            "Made from `workbench/config/*options.py` by `python -m workbench options`. The same names work in a YAML"
            " file, with `--set name=value`, and in the form. The names are LLaMA-Factory's."
        ),
    ]
    by_group: dict[str, list[Option]] = {}
    for option in options():
        by_group.setdefault(option.group, []).append(option)
    for group, (english, chinese) in GROUPS.items():
        lines += [
            "",
            f"## {english} · {chinese}",
            "",
            "| option | type | default | range | meaning | 说明 |",
            "|---|---|---|---|---|---|",
        ]
        for o in by_group.get(group, []):
            default = "" if o.default is None else f"`{o.default}`"
            lines.append(
                f"| `{o.name}` | {o.kind} | {default} | {o.range_text} | {o.labels[0]}. {o.helps[0]} |"
                f" {o.labels[1]}。{o.helps[1]} |"
            )
    return "\n".join(lines) + "\n"
