"""What lies beside a GGUF: a Modelfile for Ollama and a model card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.config.options import RunConfig
from workbench.models.gguf.chat_form import chat_form, trims
from workbench.runs.run import run_named
from workbench.storage.workspace import Workspace

_SHOWN = ("loss", "eval_loss")


def modelfile(file: str, tokenizer: Any, stops: Sequence[str], drop_bos: bool) -> str:
    """An Ollama Modelfile for a GGUF with a whole model."""
    lines = [f"FROM ./{file}"]
    form = chat_form(tokenizer, drop_bos) if tokenizer.chat_template else None
    if form and '"""' not in form.go() + (form.system or ""):
        lines.append(
            "# From the model's chat template; for messages. Tools and thoughts are in the GGUF's own template."
        )
        if trims(tokenizer):
            lines.append("# The model's template takes the space around a message away; this one does not.")
        lines.append(f'TEMPLATE """{form.go()}"""')
        if form.system:
            lines.append(f'SYSTEM """{form.system}"""')
    elif tokenizer.chat_template:
        lines.append(
            "# No TEMPLATE: the model's chat template has no form in Ollama's language that would be the same."
        )
        lines.append("# It is in the GGUF as it is (tokenizer.chat_template), where llama.cpp's programs find it.")
    else:
        lines.append("# No TEMPLATE: the model has no chat template.")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"


def lora_modelfile(file: str, base: str) -> str:
    """An Ollama Modelfile for a LoRA alone."""
    return "\n".join(
        [
            f"# The base as GGUF goes here: workbench export {base} --name base --format gguf-f16",
            "FROM ./base-f16.gguf",
            f"ADAPTER ./{file}",
            "",
        ]
    )


def card(name: str, file: str, kind: str, base: str, adapters: dict[str, float], workspace: Workspace) -> str:
    """A short model card: base, adapters, and of those that are runs here their data, options and last losses."""
    merged = "Adapters" if kind == "gguf-lora" else "Merged adapters"
    lines = [f"# {name}", "", f"`{file}`, written by QLoRA Workbench as {kind}.", "", f"- Base: {base}"]
    lines += [f"- {merged}: " + (", ".join(f"{key} × {value:g}" for key, value in adapters.items()) or "none")]
    lines += ["- License: the base model's holds.", ""]
    for adapter in adapters:
        run = run_named(workspace, adapter.split("/")[0])
        if run is None:
            continue
        values = run.config_values()
        lines += [f"## {adapter}", "", f"- Data: {values.get('dataset') or '–'}"]
        lines += _losses(run.metrics)
        changed = {key: value for key, value in values.items() if _differs(key, value)}
        lines += ["", "```yaml", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())]
        lines += ["```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _differs(key: str, value: Any) -> bool:
    field = RunConfig.model_fields.get(key)
    return field is not None and value != field.default


def _losses(log: Path) -> list[str]:
    """The last loss and evaluation loss of a run, with their steps."""
    last: dict[str, str] = {}
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    last |= {
                        key: f"{entry[key]:.4f} (step {entry['current_steps']})" for key in _SHOWN if entry.get(key)
                    }
                except (ValueError, KeyError, TypeError, AttributeError):  # a line that was cut off
                    continue
    except OSError:
        return []
    return [f"- Last {key.replace('_', ' ')}: {value}" for key, value in last.items()]
