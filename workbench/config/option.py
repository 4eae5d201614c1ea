"""What an option is: a pydantic field with its place and words on the form, read from text as people write it."""

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

GROUPS = {
    "model": ("Model", "模型"),
    "data": ("Data", "数据"),
    "train": ("Training", "训练"),
    "preference": ("Preferences", "偏好"),
    "reward": ("Rewards", "奖励"),
    "lora": ("LoRA", "LoRA"),
    "tuning": ("Freeze and OFT", "冻结微调与 OFT"),
    "optim": ("GaLore, APOLLO, BAdam, Adam-mini, Muon", "GaLore、APOLLO、BAdam、Adam-mini、Muon"),
    "memory": ("Precision and memory", "精度与显存"),
    "rope": ("Attention and RoPE", "注意力与 RoPE"),
    "eval": ("Evaluation", "评估"),
    "output": ("Saving and logging", "保存与日志"),
}


def opt(
    default,
    group: str,
    label: tuple[str, str],
    help: tuple[str, str],
    *,
    basic: bool = False,
    affects: tuple[str, ...] = (),
    **limits,
):
    """A pydantic field with its place and words on the form. `label` and `help` are (English, Chinese).

    `affects`: `data`, what a run sees of its data and how long an epoch takes; `loading`, how an engine loads a model;
    `path`, it names a file or folder that a page's user must be allowed to read.
    """
    extra: dict[str, Any] = {"group": group, "label": label, "help": help, "basic": basic, "affects": affects}
    return Field(default, json_schema_extra=extra, **limits)


class Options(BaseModel):
    """Options of one kind: unknown names are refused, and values may come as text."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value, info):
        """Values as they come from a shell, a form or YAML: '4' for 4, a list for 'a,b', nothing for the default."""
        field = cls.model_fields[info.field_name]
        choices = literal_choices(field.annotation)
        if value is None:
            return field.get_default()
        if isinstance(value, str):
            value = value.strip()
            if value.lower() in ("", "none", "null") and "none" not in choices:
                return field.get_default()
            if value.isdigit() and int(value) in choices:
                return int(value)
            if value.lower() in choices:
                return value.lower()
        if isinstance(value, bool):  # YAML 1.1 reads bare `no`, `off` and `on` as booleans
            value = next((word for word in (("on",) if value else ("no", "off")) if word in choices), value)
        if isinstance(value, str) and "on" in choices and value.lower() in ("true", "false"):
            value = "on" if value.lower() == "true" else "off"
        if field.annotation in (str, str | None):
            if isinstance(value, list | tuple):
                separator = "\n" if info.field_name == "sample_prompts" else ","
                return separator.join(str(item).strip() for item in value)
            if isinstance(value, bool | int | float):
                return str(value).lower() if isinstance(value, bool) else str(value)
        return value


def tags(field: FieldInfo) -> dict[str, Any]:
    """What `opt` says of an option."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def options_that_affect(what: str, model: "type[Options]") -> tuple[str, ...]:
    """Names of the options of `model` that carry the tag `what`, in the order of their definition."""
    return tuple(name for name, field in model.model_fields.items() if what in tags(field)["affects"])


def literal_choices(annotation) -> tuple:
    """The values of a `Literal`, also inside `Literal[…] | None`; an empty tuple for other types."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((get_args(part) for part in get_args(annotation) if get_origin(part) is Literal), ())


def split_names(text: str | None) -> list[str]:
    """`'a, b'` as `['a', 'b']`."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
