"""The model card of an export: front matter as Hugging Face reads it, then base, data, options, losses and probes.

What is not known is left out. Beside the card lies `.export.json`, by which the workbench knows its exports again.
"""

import json
import time
from pathlib import Path
from typing import Any

import yaml

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.models.anatomy.folder import MAX_CARD
from workbench.models.download import HUB_ID
from workbench.runs.run import Run, run_named
from workbench.storage import files
from workbench.storage.workspace import DEMO_MODEL, Workspace

MARK = ".export.json"
_OF_BASE = ("license", "license_name", "license_link", "language")  # of the base's card, which hold for the export
_SHOWN = ("loss", "eval_loss")
_MAX_REPORT = 16 << 20
_WORDS = {
    "safetensors": "the model with its adapters merged in, if any, in the model's own precision",
    "bnb-4bit": "4-bit weights as bitsandbytes packs them, for transformers",
    "lora": "an adapter for PEFT",
}
_USE = {
    "safetensors": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")""",
    "lora": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")""",
}
_USE["bnb-4bit"] = _USE["safetensors"]


def write_card(
    folder: Path, name: str, kind: str, base: str, source: Path, adapters: dict[str, float], workspace: Workspace
) -> None:
    """Write the card and the mark of an export into its folder.

    Args:
        kind: the format.
        base: the base model as the user named it; `source` is the folder of its files.
        adapters: the adapters and their weights.
    """
    text = card(name, kind, base, source, adapters, workspace)
    (folder / "README.md").write_text(text, encoding="utf-8")
    mark = {"format": kind, "base": base, "adapters": adapters, "created": time.time()}
    (folder / MARK).write_text(json.dumps(mark, ensure_ascii=False, indent=1), encoding="utf-8")


def card(name: str, kind: str, base: str, source: Path, adapters: dict[str, float], workspace: Workspace) -> str:
    """The whole README.md."""
    merged = "Adapters" if kind in ("lora", "gguf-lora") else "Merged adapters"
    front = _front(kind, base, source, adapters, workspace)
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip()]
    lines += ["---", "", f"# {name}", "", f"Written by QLoRA Workbench as {kind}: {_WORDS.get(kind, 'for llama.cpp')}."]
    lines += ["", f"- Base: {base}"]
    lines += [f"- {merged}: " + (", ".join(f"{key} × {value:g}" for key, value in adapters.items()) or "none")]
    lines += ["- License: the base model's holds.", ""]
    if kind in _USE:
        lines += ["```python", _USE[kind].format(name=name), "```", ""]
    for named in adapters or [base]:  # a base alone may be of a run that trained all weights
        if run := run_named(workspace, named.split("/")[0]):
            lines += _about_run(named, run, base, workspace)
    return "\n".join(lines).rstrip() + "\n"


def _front(kind: str, base: str, source: Path, adapters: dict[str, float], workspace: Workspace) -> dict[str, Any]:
    """The card's metadata: https://huggingface.co/docs/hub/model-cards."""
    own = _base_metadata(source)
    found: dict[str, Any] = {key: own[key] for key in _OF_BASE if own.get(key)}
    if own_run := run_named(workspace, base):
        base = str(own_run.config_values().get("model_name_or_path") or "")
    known = f"HuggingFaceTB/{DEMO_MODEL}" if base == DEMO_MODEL else base
    if HUB_ID.fullmatch(known) and not Path(known).is_dir():
        changed = "finetune" if adapters or own_run else "quantized"
        found["base_model"] = known
        if adapters or own_run or kind != "safetensors":  # else a copy, for which hubs have no word
            found["base_model_relation"] = "adapter" if kind in ("lora", "gguf-lora") else changed
    library = "peft" if kind == "lora" else "gguf" if kind.startswith("gguf") else "transformers"
    tags = ["qlora-workbench", *(["lora"] if adapters else []), *([] if kind in ("safetensors", "lora") else [kind])]
    return found | {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}


def _base_metadata(source: Path) -> dict:
    """The front matter of the base's own card; empty where there is none that can be read."""
    try:
        with files.open_regular(source / "README.md") as opened:
            text = opened.read(MAX_CARD).decode("utf-8", "replace")
        values = files.parse_yaml(text[3:].partition("\n---")[0], "README.md") if text.startswith("---") else {}
    except (UserError, OSError):
        return {}
    return values if isinstance(values, dict) else {}


def _about_run(adapter: str, run: Run, base: str, workspace: Workspace) -> list[str]:
    values = run.config_values()
    lines = [f"## {adapter}", "", f"- Data: {values.get('dataset') or '–'}", *_losses(run.metrics)]
    checkpoint = adapter.partition("/")[2]
    if probed := _probes(run, checkpoint, base, workspace):
        lines += ["", "| probe set | passed | inconsistent | base model passed |", "| --- | --- | --- | --- |", *probed]
    changed = {key: value for key, value in values.items() if _differs(key, value)}
    lines += ["", "```yaml", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())]
    return [*lines, "```", ""]


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


def _probes(run: Run, checkpoint: str, base: str, workspace: Workspace) -> list[str]:
    """Rows of a table: the reports that `uncertainty/probes.py` keeps with a run, beside the base's."""
    of_base = {r["set"]: r for r in _reports(workspace.root / "probes") if r["model"] == base}
    rows = []
    for report in _reports(run.path / "probes"):
        if report["model"].partition("/")[2] != checkpoint:
            continue
        before = of_base.get(report["set"])
        name, inconsistent = report["set"].replace("|", " "), report["verdicts"].count("inconsistent")
        rows.append(f"| {name} | {_passed(report)} | {inconsistent} | {_passed(before) if before else '–'} |")
    return rows


def _passed(report: dict) -> str:
    return f"{report['verdicts'].count('pass')} of {len(report['verdicts'])}"


def _reports(folder: Path) -> list[dict]:
    return [report for file in sorted(folder.glob("*.json")) if (report := _report(file))]


def _report(file: Path) -> dict | None:
    """Set, model and verdicts of a probe report; None for a file that is none."""
    try:
        values = files.read_object(file, _MAX_REPORT)
        verdicts = [str(result["verdict"]) for result in values["results"]]
        return {"set": Path(str(values["set"])).stem, "model": str(values["model"]), "verdicts": verdicts}
    except (OSError, UserError, KeyError, TypeError):
        return None
