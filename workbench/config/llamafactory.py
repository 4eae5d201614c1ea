"""Read a LLaMA-Factory command line, or its YAML, into our options.

Covered: whole commands as copied from a blog (prompts, backslashes, line breaks lost or kept, environment
prefixes, full-width punctuation, typographic dashes and quotes), `llamafactory-cli train`, `src/train.py`,
torchrun and accelerate in front, `--key value`, `--key=value`, bare flags, and flat YAML. Nothing is executed.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.config import foreign
from workbench.config.options import RunConfig
from workbench.config.run_config import coerced, nearest, parse_yaml, unused_key_reason
from workbench.errors import UserError
from workbench.storage import files

MAX_IMPORT = 64 << 10  # characters
_FULL_WIDTH = {ord("\u3000"): " ", ord("\u00a0"): " ", ord("\u200b"): None, ord("\ufeff"): None}
_FULL_WIDTH |= {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # ！ to ～, ， ＝ ＼ － and letters
_FULL_WIDTH |= {ord(a): b for a, b in zip("“”„‘’‚、。", "\"\"\"''',.", strict=True)}
_DASHES = re.compile(r"(?<!\S)(?:[—–―−]{1,2}|-[—–―−]|--)(?=[A-Za-z])")
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=\S*")
_PROGRAM = re.compile(
    r"llamafactory-cli|lmf|(\S*/)?python3?|\S*\.py|accelerate|torchrun|deepspeed|launch|train|sudo|env|nohup|-m"
)
_LISTS = ("report_to", "lora_target", "dataset", "eval_dataset", "additional_target", "adapter_name_or_path")
_SPELLINGS = {"flash_attn": {"true": "fa2", "false": "disabled", "off": "disabled"}}  # of older versions
_RENAMED = {
    "max_length": "cutoff_len",
    "evaluation_strategy": "eval_strategy",
    "checkpoint_dir": "adapter_name_or_path",
    "lora_target_modules": "lora_target",
    "template_name": "template",
}


# keys whose values are looked at one by one
_ONE_BY_ONE = ("quantization_method", "ignore_pad_token_for_loss", "enable_thinking")


@dataclass
class Imported:
    """What an import brought: `values` for a RunConfig, `(key, value, why)` of what it could not take over, and
    `defaults`: LLaMA-Factory's own for options that it leaves out, where ours are others."""

    values: dict = field(default_factory=dict)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    defaults: dict = field(default_factory=dict)


def import_text(text: str) -> Imported:
    """Read a command or a YAML text.

    Raises:
        UserError: the text is empty or neither a command nor YAML; it is for another kind of run than those offered
            here, or asks for something that changes the result and cannot be done.
    """
    if len(text) > MAX_IMPORT:
        raise UserError(
            f"The text has {len(text):,} characters; at most {MAX_IMPORT:,} are imported. Paste one command or one YAML"
            " file."
        )
    if not text.strip():
        raise UserError("There is nothing to import. Paste a llamafactory-cli command or a YAML file.")
    cleaned = _DASHES.sub("--", text.translate(_FULL_WIDTH))
    lines = [line for line in cleaned.splitlines() if not line.lstrip().startswith("#")]
    if not any(re.match(r"\s*[\w.]+\s*:(\s|$)", line) for line in lines):
        command = re.search(r"\b(?:llamafactory-cli|lmf)\s+(\w+)", cleaned)
        if command and command[1] in foreign.COMMANDS:
            raise UserError(f"This is a command for {foreign.COMMANDS[command[1]]}. Nothing is imported.")
        if re.search(r"\btrain(_bash)?(\.py)?\s+\S+\.(ya?ml|json)\b", cleaned):
            raise UserError(
                "This command only names a YAML file. Paste the file's content instead, or import the file by its path."
            )
    if any(re.search(r"(?<!\S)--[A-Za-z]", line) for line in lines):
        return _from_pairs(*_command_pairs("\n".join(lines)))
    values = parse_yaml(cleaned, where="The pasted text")
    if any(str(key).startswith(("top.", "train.")) for key in values):
        raise UserError(
            "These are settings that LLaMA Board saved for itself. Paste the command that its Preview button shows."
        )
    return _from_pairs([(str(k), v) for k, v in values.items()], {})


def _check_kind(values: dict[str, Any]) -> None:
    """Raise UserError for what is not supervised fine-tuning as it can be done here: it must not become that."""
    stage = str(values.get("stage") or "sft").lower()
    if stage != "sft":
        what = foreign.STAGES.get(stage, "a stage that is not known here")
        raise UserError(f"stage: {stage} is {what}, which is not offered yet; here is sft. Nothing is imported.")
    method = str(values.get("finetuning_type") or "lora").lower()
    if method not in ("lora", "full"):
        raise UserError(f"finetuning_type: {method} is not offered yet; here are lora and full. Nothing is imported.")
    for key, purpose in foreign.PURPOSES.items():
        if key in values:
            raise UserError(f"This file is for {purpose} ({key}). Nothing is imported.")
    trains = "do_train" in values and not foreign.is_off(values["do_train"])
    if not trains and not foreign.is_off(values.get("do_predict")):
        raise UserError("This file is for prediction (do_predict), not for training. Nothing is imported.")
    about_model = "model_name_or_path" in values and ("template" in values or "adapter_name_or_path" in values)
    if about_model and not trains and not {"dataset", "stage", "dataset_dir"} & values.keys():
        raise UserError(
            "This file names a model but no dataset and no do_train: it is for chatting, which the Chat tab does."
            " Nothing is imported."
        )
    method = str(values.get("quantization_method") or "bnb").lower()
    if method not in ("bnb", "bitsandbytes"):
        raise UserError(f"quantization_method: {method} is not offered; here is bnb. Take it out to import the rest.")
    for key, what in foreign.CHANGING.items():
        if not foreign.is_off(values.get(key)):
            raise UserError(
                f"{key}: {files.shown(values[key], 80)} asks for {what}, which changes the result and is not offered."
                " Take it out of the text to import the rest."
            )
    for key, value in values.items():
        known = key in RunConfig.model_fields or foreign.harmless(key) or unused_key_reason(key)
        if key.startswith(("use_", "enable_")) and not known and key not in _ONE_BY_ONE and not foreign.is_off(value):
            raise UserError(
                f"{key}: {files.shown(value, 80)} switches something on that is not known here. Take it out of the text"
                " to import the rest."
            )
    if "ignore_pad_token_for_loss" in values and foreign.is_off(values["ignore_pad_token_for_loss"]):
        raise UserError("ignore_pad_token_for_loss: false is not offered. Take it out to import the rest.")
    if "enable_thinking" in values and foreign.is_off(values["enable_thinking"]):
        raise UserError("enable_thinking: false is not offered yet. Take it out to import the rest.")


def _defaults(values: dict) -> dict:
    """LLaMA-Factory's defaults for options that `values` leaves out, where ours are others."""
    defaults = dict(foreign.DEFAULTS)
    if "lora_alpha" not in values:
        defaults["lora_alpha"] = 2 * int(values.get("lora_rank", defaults["lora_rank"]))
    if "max_steps" in values:
        del defaults["num_train_epochs"]
    fields = RunConfig.model_fields
    return {key: value for key, value in defaults.items() if key not in values and fields[key].default != value}


def _command_pairs(text: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """`[(key, value)]` and the environment prefix of a command line."""
    text = re.sub(r"\\(?=\s|$)|\^(?=\s*\n)|`(?=\s*\n)", " ", text)  # line continuations, also when the break is lost
    text = re.sub(r"^\s*(```\w*|[$#>]\s)", " ", text, flags=re.MULTILINE).replace("```", " ")
    try:
        words = shlex.split(text, comments=False)
    except ValueError as error:
        raise UserError(f"The command cannot be read: {error}. Check its quotation marks.") from None
    environment, pairs, index = {}, [], 0
    while index < len(words) and not words[index].startswith("--"):
        word = words[index]
        if _ENVIRONMENT.fullmatch(word):
            name, _, value = word.partition("=")
            environment[name] = value
        elif not _PROGRAM.fullmatch(word) and word not in ("export", "set", "&&", ";"):
            pairs.append(("", word))
        index += 1
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("--"):
            if not _PROGRAM.fullmatch(word):
                pairs.append(("", word))
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            values = []
            while index < len(words) and not words[index].startswith("--"):
                values.append(words[index])
                index += 1
            while len(values) > 1 and _PROGRAM.fullmatch(values[-1]):  # `torchrun --nproc_per_node 2 src/train.py --…`
                values.pop()
            joint = "," if key.replace("-", "_") in _LISTS else " "
            value = joint.join(values) if values else "true"
        value = _expanded(value.rstrip(",.;") if equals == "" else value, environment)
        pairs.append((key.replace("-", "_"), value))
    used = {name for name in environment if f"${name}" in text or f"${{{name}}}" in text}
    return pairs, {name: value for name, value in environment.items() if name not in used}


def _expanded(value: str, variables: dict[str, str]) -> str:
    """A value with the variables that the same text sets. Raises UserError: one that it does not set."""

    def replace(match: re.Match) -> str:
        name = match[1] or match[2]
        if name not in variables:
            raise UserError(f"The command uses ${name}, which the text does not set. Put its value there.")
        return variables[name]

    for _ in range(4):  # variables may be made of others
        value = re.sub(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))", replace, value)
    return value


def _from_pairs(pairs: Sequence[tuple[str, Any]], environment: dict[str, str]) -> Imported:
    result = Imported()
    for name, value in environment.items():
        if name == "CUDA_VISIBLE_DEVICES" and re.fullmatch(r"\d+(,\d+)*", value):
            result.values["devices"] = value
        else:
            result.left_out.append((name, value, "environment variable: set it in the shell that starts the workbench"))
    given = {_RENAMED.get(key, key): value for key, value in pairs if key}
    _check_kind(given)
    both = {key for key, _ in pairs}
    for key, value in pairs:
        shown = files.shown(value)
        if not key:
            result.left_out.append(("", shown, "not an option"))
            continue
        if key in _RENAMED and _RENAMED[key] in both:
            result.left_out.append((key, shown, f"{_RENAMED[key]} is given, too, and counts"))
            continue
        key = _RENAMED.get(key, key)
        if key in foreign.CHANGING or key in _ONE_BY_ONE:
            result.left_out.append((key, shown, "as it is here anyway"))
            continue
        if key not in RunConfig.model_fields and (reason := foreign.harmless(key)):
            result.left_out.append((key, shown, reason))
            continue
        if reason := unused_key_reason(key):
            result.left_out.append((key, shown, reason))
        elif key not in RunConfig.model_fields:
            result.left_out.append((key, shown, f"not an option here.{nearest(key, RunConfig.model_fields)}"))
        else:
            try:
                result.values[key] = coerced(key, _SPELLINGS.get(key, {}).get(shown.lower(), value))
            except UserError as error:
                result.left_out.append((key, shown, str(error).removeprefix(f"{key}: ")))
    if {"stage", "do_train"} & result.values.keys():  # its own file or command, not some options
        result.defaults = _defaults(result.values)
    return result
