"""What the form's values began as: a preset, an import, a run that was cloned. What differs from that is marked, can be
set back, and becomes the command line. No gradio here."""

import json
import shlex
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.config.presets import Preset
from workbench.config.run_config import coerced
from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.workspace import slug
from workbench.ui.catalogue import say

KINDS = ("preset", "import", "clone", "corrections")
MAX_DRAFT = 200_000  # letters of a form that a browser has kept


@dataclass(frozen=True)
class Base:
    """`kind` (see `KINDS`), `name` (of the preset, of the imported file, of the run), and the option values."""

    kind: str
    name: str
    values: dict = field(default_factory=dict)

    def __hash__(self) -> int:  # gradio tells by it that a State has changed
        return hash(json.dumps(asdict(self), default=str))

    @classmethod
    def of_preset(cls, preset: Preset) -> "Base":
        return cls("preset", preset.name, preset.values)

    def source(self, runs: Path) -> str:
        """What the command line names: a preset, a file to be written, or a file of the folder `runs`."""
        if self.kind == "preset":
            return self.name
        return str(runs / self.name / "run.yaml") if self.kind == "clone" else f"{self.name}.yaml"


def about_html(base: Base, presets: dict[str, Preset], lang: str) -> str:
    """Where the form's values come from; of a preset, what it is for and what it needs."""
    preset = presets.get(base.name) if base.kind == "preset" else None
    if preset and preset.own:
        about = say("preset_own", lang, name=preset.name)
    elif preset:
        about = f"{preset.about_zh}。" if lang == "zh" else f"{preset.purpose}. {preset.memory}."
    else:
        about = say(f"base_{base.kind}", lang, name=base.name)
    return f"<div class='wb-sub'>{escape(about)}</div>"


def changes(base: Base, values: dict) -> dict[str, tuple]:
    """`{option: (value in the base, value now)}` of what differs; `values` leave out what is at its default."""
    defaults, differing = RunConfig.model_construct(), {}
    for name in dict.fromkeys([*base.values, *values]):
        if name in RunConfig.model_fields:
            default = getattr(defaults, name)
            old = _coerced(name, base.values[name]) if name in base.values else default
            new = values.get(name, default)
            if old != new:
                differing[name] = old, new
    return differing


def _coerced(name: str, value):
    """`value` as its option has it; as it is where it does not fit, which the form's check says."""
    try:
        return coerced(name, value)
    except UserError:
        return value


def command_line(base: Base, values: dict, runs: Path) -> str:
    """The command that trains `values`: the base and what differs from it. A file that is still to be written holds
    it all."""
    differing = changes(base, values) if base.kind in ("preset", "clone") else {}
    settings = ["--set " + shlex.quote(f"{k}={'' if new is None else new}") for k, (_, new) in differing.items()]
    return " ".join([f"python -m workbench train {shlex.quote(base.source(runs))}", *settings])


def changes_html(base: Base, values: dict, lang: str) -> str:
    """A chip for each option that differs from the base, with a button that sets it back; marks their fields."""
    differing = changes(base, values)
    if not differing:
        return ""
    chips = "".join(
        f"<span class='wb-chip'><code>{name}</code> {escape(_short(old))} → {escape(_short(new))}"
        f" <button type='button' data-reset='{name}' title='{escape(say('reset_option', lang, name=name), quote=True)}'"
        f" aria-label='{escape(say('reset_option', lang, name=name), quote=True)}'>↺</button></span>"
        for name, (old, new) in differing.items()
    )
    everything = ""
    if len(differing) > 1:
        everything = f" <button type='button' class='wb-link' data-reset='*'>{escape(say('reset_all', lang))}</button>"
    marks = ",".join(f"#opt-{name}" for name in differing)  # names of options: letters and underscores
    title = escape(say("changed_from", lang, name=base.name))
    return (
        f"<div class='wb-chips'><b>{title}</b> {chips}{everything}</div>"
        f"<style>{marks} {{ box-shadow: inset 3px 0 0 var(--primary-500) !important; }}</style>"
    )


# a click on a chip's button tells which option is set back, `*` for all
RESET_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-reset]');
  if (button) trigger('click', {reset: button.dataset.reset});
});
"""


def _short(value) -> str:
    text = "–" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:18]}…{text[-18:]}"


def draft(base: Base, values: dict) -> str:
    """The form as the browser keeps it over a reload."""
    return json.dumps({"base": asdict(base), "values": values}, ensure_ascii=False)


def from_draft(text) -> tuple[Base, dict] | None:
    """What `draft` made; None for anything else: the text comes from the browser."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_DRAFT:
        return None
    try:
        kept = files.parse_json(text)
        base, values = kept["base"], kept["values"]
        kind, name, old = base["kind"], base["name"], base["values"]
    except (UserError, KeyError, TypeError):
        return None
    if kind not in KINDS or not isinstance(name, str) or not isinstance(old, dict) or not isinstance(values, dict):
        return None
    return Base(kind, name[:200], _options(old)), _options(values)


def _options(values: dict) -> dict:
    """Those of `values` that are options with plain values."""
    return {
        name: value
        for name, value in values.items()
        if name in RunConfig.model_fields and (value is None or isinstance(value, str | int | float | bool))
    }


def import_name(values: dict) -> str:
    """A name for what was imported: the last part of its `output_dir`, its run's, or of its model."""
    for key in ("output_dir", "run_name", "model_name_or_path"):
        if name := str(values.get(key) or "").rstrip("/").split("/")[-1]:
            return slug(name)
    return "imported"
