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
_SPELLINGS = {"flash_attn": {"true": "fa2", "false": "disabled", "off": "disabled"}}  # of older versions
_RENAMED = {
    "max_length": "cutoff_len",
    "evaluation_strategy": "eval_strategy",
    "checkpoint_dir": "adapter_name_or_path",
    "lora_target_modules": "lora_target",
    "template_name": "template",
}


@dataclass
class Imported:
    """What an import brought: `values` for a RunConfig, and `(key, value, why)` of what it could not take over."""

    values: dict = field(default_factory=dict)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)


def import_text(text: str) -> Imported:
    """Read a command or a YAML text.

    Raises:
        UserError: the text is empty or neither a command nor YAML.
    """
    if len(text) > MAX_IMPORT:
        raise UserError(
            f"The text has {len(text):,} characters; at most {MAX_IMPORT:,} are imported. Paste one command or one YAML"
            " file."
        )
    if not text.strip():
        raise UserError("There is nothing to import. Paste a llamafactory-cli command or a YAML file.")
    cleaned = _DASHES.sub("--", text.translate(_FULL_WIDTH))
    if re.search(r"(?<!\S)--[A-Za-z]", cleaned):
        return _from_pairs(*_command_pairs(cleaned))
    if re.search(r"\bllamafactory-cli\s+train\s+\S+\.(ya?ml|json)", cleaned):
        raise UserError(
            "This command only names a YAML file. Paste the file's content instead, or import the file by its path."
        )
    values = parse_yaml(cleaned, where="The pasted text")
    return _from_pairs([(str(k), v) for k, v in values.items()], {})


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
            value = " ".join(values) if values else "true"
        pairs.append((key.replace("-", "_"), value.rstrip(",.;") if equals == "" else value))
    return pairs, environment


def _from_pairs(pairs: Sequence[tuple[str, Any]], environment: dict[str, str]) -> Imported:
    result = Imported()
    for name, value in environment.items():
        if name == "CUDA_VISIBLE_DEVICES" and re.fullmatch(r"\d+(,\d+)*", value):
            result.values["devices"] = value
        else:
            result.left_out.append((name, value, "environment variable: set it in the shell that starts the workbench"))
    for key, value in pairs:
        shown = files.shown(value)
        if not key:
            result.left_out.append(("", shown, "not an option"))
            continue
        key = _RENAMED.get(key, key)
        if reason := unused_key_reason(key):
            result.left_out.append((key, shown, reason))
        elif key not in RunConfig.model_fields:
            result.left_out.append((key, shown, f"not an option here.{nearest(key, RunConfig.model_fields)}"))
        else:
            try:
                result.values[key] = coerced(key, _SPELLINGS.get(key, {}).get(shown.lower(), value))
            except UserError as error:
                result.left_out.append((key, shown, str(error).removeprefix(f"{key}: ")))
    return result
