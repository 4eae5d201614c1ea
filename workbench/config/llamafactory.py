"""Read a LLaMA-Factory command line, or its YAML, into our options.

Covered: whole commands as copied from a blog (prompts, backslashes, line breaks lost or kept, environment
prefixes, full-width punctuation, typographic dashes and quotes), `llamafactory-cli train`, `src/train.py`,
torchrun and accelerate in front, `--key value`, `--key=value`, bare flags, and flat YAML. Nothing is executed.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.config import accelerate_file, deepspeed_file, foreign, launchers, llamafactory_v1
from workbench.config.options import EngineConfig, RunConfig, literal_choices
from workbench.config.run_config import coerced, nearest, parse_overrides, parse_yaml, unfit_reason, unused_key_reason
from workbench.config.stage_options import STAGES
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

MAX_IMPORT = 64 << 10  # characters
_FULL_WIDTH = {ord("\u3000"): " ", ord("\u00a0"): " ", ord("\u200b"): None, ord("\ufeff"): None}
_FULL_WIDTH |= {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # ！ to ～, ， ＝ ＼ － and letters
_FULL_WIDTH |= {ord(a): b for a, b in zip("“”„‘’‚、。", "\"\"\"''',.", strict=True)}
_DASHES = re.compile(r"(?<!\S)(?:[—–―−]{1,2}|-[—–―−]|--)(?=[A-Za-z])")
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=\S*")
_PROGRAM = re.compile(
    r"llamafactory-cli|lmf|(\S*/)?python3?|\S*\.py|accelerate|torchrun|torch\.distributed\.(run|launch)|deepspeed|launch|train|sudo|env|nohup|-m"
)
_LISTS = (
    "report_to", "lora_target", "oft_target", "dataset", "eval_dataset", "additional_target", "adapter_name_or_path",
    "freeze_trainable_modules", "freeze_extra_modules",
)  # fmt: skip
_SPELLINGS = {"flash_attn": {"true": "fa2", "false": "disabled", "off": "disabled"}}  # of older versions
# values that are not offered, what computes the same here, and why
_OTHERWISE = {("flash_attn", name): ("auto", "why_fa4") for name in ("fa4", "flash_attention_4")}
_CONFIG_FILE = re.compile(r"\baccelerate\s+launch\b[^;|&]*?--config_file[ =]+(\S+)")
_RENAMED = {
    "max_length": "cutoff_len",
    "evaluation_strategy": "eval_strategy",
    "checkpoint_dir": "adapter_name_or_path",
    "lora_target_modules": "lora_target",
    "template_name": "template",
    "num_layer_trainable": "freeze_trainable_layers",
    "name_module_trainable": "freeze_trainable_modules",
}


# a command that names a file, and what it sets beside it
_NAMED = re.compile(
    r"\b(?:train(?:_bash)?(?:\.py)?|(?:llamafactory-cli|lmf)\s+\w+)\s+(\S+\.(?:ya?ml|json))((?:\s+[\w.]+=\S+)*)"
)
# keys whose values are looked at one by one
_ONE_BY_ONE = ("quantization_method", "ignore_pad_token_for_loss")


@dataclass
class Imported:
    """What an import brought.

    Attributes:
        values: for a RunConfig; of a file for chatting or exporting, for an EngineConfig.
        left_out: `(key, value, why)` of what it could not take over.
        lost: keys of these that would have changed something.
        defaults: LLaMA-Factory's own for options that it leaves out, where ours are others.
        purpose: `train`, `chat` or `export`.
        name: of the model that an export writes.
    """

    values: dict = field(default_factory=dict)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    defaults: dict = field(default_factory=dict)
    purpose: str = "train"
    name: str = ""

    def leave(self, key: str, value: str, why: str, *, lost: bool = False) -> None:
        """Note what is not taken over. `lost`: it would have changed something."""
        self.left_out.append((key, value, why))
        if lost:
            self.lost.append(key or value)

    def command(self) -> str:
        """The command that chats with or exports the model of such a file."""
        model, adapter = self.values.get("model_name_or_path"), self.values.get("adapter_name_or_path")
        words = ["python", "-m", "workbench", "serve" if self.purpose == "chat" else "export", str(model)]
        words += ["--name", self.name] if self.name else []
        words += ["--adapter", str(adapter)] if adapter else []
        for key, value in self.values.items():
            if key not in ("model_name_or_path", "adapter_name_or_path"):
                words += ["--set", f"{key}={value}"]
        return shlex.join(words)


def import_text(text: str, read: Callable[[str], str | None] = lambda name: None) -> Imported:
    """Read a command or a YAML text.

    Args:
        read: the text of a YAML file that a command names, None where there is none or it may not be read.

    Raises:
        UserError: the text is empty or neither a command nor YAML; it is for another kind of run than those offered
            here, or asks for something that changes the result and cannot be done.
    """
    if len(text) > MAX_IMPORT:
        raise UserError("import_too_long", count=len(text), most=MAX_IMPORT)
    if not text.strip():
        raise UserError("import_empty")
    cleaned = _DASHES.sub("--", text.translate(_FULL_WIDTH))
    lines = [line for line in cleaned.splitlines() if not line.lstrip().startswith("#")]
    if not any(re.match(r"\s*[\w.]+\s*:(\s|$)", line) for line in lines):
        command = "\n".join(lines)
        called = re.search(r"\b(?:llamafactory-cli|lmf)\s+(\w+)", command)
        word = called[1] if called else "train"
        purpose = foreign.COMMANDS.get(word, "train")
        if purpose == "eval":
            raise UserError("import_benchmark")
        if named := _NAMED.search(command):
            result = _from_file(named[1], shlex.split(named[2]), word, read)
            return _launched(command, result, read)
        if script := re.search(r"\bpython3?\s+(\S*\bscripts/\S+\.py)\b", command):
            raise UserError("import_script", script=script[1])
    else:
        purpose = word = ""
    if any(re.search(r"(?<!\S)--[A-Za-z]", line) for line in lines):
        pairs, environment = _command_pairs("\n".join(lines))
        if llamafactory_v1.is_form(dict(pairs)):
            given = {key: value for key, value in pairs if key}
            return llamafactory_v1.fill(_set_by(environment), given, word, read)
        return _from_pairs(pairs, environment, purpose, read)
    values = parse_yaml(cleaned, where=Message("import_pasted"))
    if llamafactory_v1.is_form(values):
        return llamafactory_v1.fill(Imported(), values, word, read)
    if accelerate_file.is_form(values):
        accelerate_file.fill(part := Imported(), values, read)
        return part
    if deepspeed_file.is_form(values):
        deepspeed_file.fill(part := Imported(), values, read)
        return part
    if _is_tokens(values):
        return _from_tokens(values)
    _check_schema(values)
    if any(str(key).startswith(("top.", "train.")) for key in values):
        raise UserError("import_board")
    return _from_pairs([(str(k), v) for k, v in values.items()], {}, purpose, read)


def _from_file(name: str, overrides: list[str], word: str, read: Callable[[str], str | None]) -> Imported:
    """What `WORD NAME.yaml key=value …` means. Raises UserError: the file cannot be read here."""
    text = read(name)
    if text is None:
        raise UserError("import_names_file", name=name)
    values = parse_yaml(text, where=name)
    if llamafactory_v1.is_form(values):
        return llamafactory_v1.fill(Imported(), values | parse_overrides(overrides), word, read)
    _check_schema(values)
    purpose, changed = foreign.COMMANDS.get(word, "train"), values | parse_overrides(overrides)
    return _from_pairs([(str(key), value) for key, value in changed.items()], {}, purpose, read)


def _launched(command: str, result: Imported, read: Callable[[str], str | None]) -> Imported:
    """What was read of a file, with the devices that the command before it and a config of accelerate say."""
    pairs, environment = _command_pairs(command)
    first = _set_by(environment, _of_launcher(pairs))
    named = _CONFIG_FILE.search(command)
    text = read(named[1]) if named else None
    if named and text is not None:
        accelerate_file.fill(result, parse_yaml(text, where=named[1]), read)
    elif named:
        result.leave("config_file", files.shown(named[1]), Message("why_accelerate_unread"), lost=True)
    result.values |= first.values
    result.left_out += first.left_out
    result.lost += first.lost
    return result


def _is_tokens(values: dict) -> bool:
    """Whether it is a file for `new_special_tokens_config`: special tokens, each with a description."""
    return bool(values) and all(
        isinstance(value, str) and re.fullmatch(r"[<\[].+[>\]]", str(key)) for key, value in values.items()
    )


def _from_tokens(values: dict) -> Imported:
    """Special tokens of a file: what LLaMA-Factory makes of them unless it is told to use the descriptions."""
    result = Imported(values={"add_special_tokens": ",".join(map(str, values))})
    result.leave("", files.shown(next(iter(values.values())), 60), Message("why_descriptions"))
    return result


def _check_schema(values: dict) -> None:
    """Raise UserError for a YAML that is no file of options, so that its keys are not told one by one."""
    keys = {_RENAMED.get(str(key), str(key)) for key in values}
    known = {"task", "export_dir", *_ONE_BY_ONE, *RunConfig.model_fields, *foreign.CHANGING}
    known |= {*foreign.FOR_ANSWERS, *foreign.GENERATION}
    boards = any(key.startswith(("top.", "train.")) for key in keys)
    if keys and not boards and not any(key in known or foreign.harmless(key) or unused_key_reason(key) for key in keys):
        listed = sorted(files.shown(key, 30) for key in keys)[:3]
        raise UserError("import_no_key", keys=listed)


def _purpose(values: dict[str, Any]) -> str:
    """What a file is for that does not say so in a command: train, chat, export, or eval."""
    if "export_dir" in values:
        return "export"
    if "task" in values:
        return "eval"
    trains = not foreign.is_off(values.get("do_train"))
    about_model = "model_name_or_path" in values and ("template" in values or "adapter_name_or_path" in values)
    of_training = {"dataset", "stage", "dataset_dir", "do_predict"} & values.keys()
    if "infer_backend" in values or (about_model and not trains and not of_training):
        return "chat"
    return "train"


def _check_kind(values: dict[str, Any]) -> None:
    """Raise UserError for what cannot be done here as it is meant: it must not become something else."""
    stage = str(values.get("stage") or "sft").lower()
    if stage not in STAGES:
        what = Message(foreign.STAGES.get(stage, "stage_unknown"))
        raise UserError("import_stage", stage=stage, what=what, known=STAGES)
    method = str(values.get("finetuning_type") or "lora").lower()
    if method not in literal_choices(RunConfig.model_fields["finetuning_type"].annotation):
        raise UserError("import_method", method=method)
    _check_quantization(values)
    whole = method in ("full", "freeze")
    for key in foreign.CHANGING:
        if not foreign.is_off(values.get(key)) and not (whole and key == "pure_bf16"):
            raise UserError("import_changing", key=key, value=files.shown(values[key], 80), what=foreign.asked(key))
    for key, value in values.items():
        known = key in RunConfig.model_fields or foreign.harmless(key) or unused_key_reason(key)
        if key.startswith(("use_", "enable_")) and not known and key not in _ONE_BY_ONE and not foreign.is_off(value):
            raise UserError("import_unknown_switch", key=key, value=files.shown(value, 80))
    if "ignore_pad_token_for_loss" in values and foreign.is_off(values["ignore_pad_token_for_loss"]):
        raise UserError("import_pad_loss")


def _predicts(result: Imported, given: dict[str, Any]) -> None:
    """Of a file or command that predicts: whether it trains, too, and that it does not draw where it says so."""
    if foreign.is_off(given.get("do_train")):
        result.values["do_train"] = False
    if "do_sample" in given and foreign.is_off(given["do_sample"]):
        result.values["temperature"] = 0.0
        result.left_out = [left for left in result.left_out if left[0] != "do_sample"]


def _defaults(values: dict) -> dict:
    """LLaMA-Factory's defaults for options that `values` leaves out, where ours are others."""
    predicts = not foreign.is_off(values.get("do_predict"))
    defaults = dict(foreign.DEFAULTS if values.get("do_train", True) else {}) | (
        foreign.PREDICTION_DEFAULTS if predicts else {}
    )
    if not values.get("do_train", True):
        return {key: value for key, value in defaults.items() if key not in values}
    if "lora_alpha" not in values:
        defaults["lora_alpha"] = 2 * int(values.get("lora_rank", defaults["lora_rank"]))
    if "max_steps" in values:
        del defaults["num_train_epochs"]
    fields = RunConfig.model_fields
    return {key: value for key, value in defaults.items() if key not in values and fields[key].default != value}


def _command_pairs(text: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """`[(key, value)]` and the environment prefix of a command line."""
    text = re.sub(r"\\(?=\s|$)|\^(?=\s*\n)|`(?=\s*\n)", " ", text)  # line continuations, also when the break is lost
    text = re.sub(r"^\s*set\s+[-+]\w+\s*$", "", text, flags=re.MULTILINE)  # `set -x`
    text = re.sub(r"^\s*(```\w*|[$#>]\s)", " ", text, flags=re.MULTILINE).replace("```", " ")
    try:
        words = shlex.split(text, comments=False)
    except ValueError as error:
        raise UserError("import_quotes", problem=error) from None
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
            raise UserError("import_variable", name=name)
        return variables[name]

    for _ in range(4):  # variables may be made of others
        value = re.sub(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))", replace, value)
    return value


def _of_launcher(pairs: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """The options of the program that launches another: of values in a row the first, the rest is what it launches."""
    return {key: (str(value).split() or [""])[0] for key, value in pairs if key in launchers.KEYS}


def _set_by(environment: dict[str, str], launcher: dict[str, str] | None = None) -> Imported:
    """What the environment prefix of a command sets, and the options of the program that launches it."""
    result = Imported()
    devices, left = launchers.launch((launcher or {}) | environment)
    if devices:
        result.values["devices"] = devices
    for key, value, why, lost in left:
        result.leave(key, value, why, lost=lost)
    for name, value in environment.items():
        if name not in launchers.KEYS:
            result.leave(name, value, Message("why_environment"))
    return result


def _from_pairs(
    pairs: Sequence[tuple[str, Any]], environment: dict[str, str], purpose: str, read: Callable[[str], str | None]
) -> Imported:
    result = _set_by(environment, _of_launcher(pairs))
    pairs = [(key, value) for key, value in pairs if key not in launchers.KEYS]
    given = {_RENAMED.get(key, key): value for key, value in pairs if key}
    purpose = purpose if purpose not in ("", "train") else _purpose(given)
    if purpose == "eval":
        raise UserError("import_benchmark")
    if purpose != "train":
        return _for_answers(pairs, given, purpose, result)
    _check_kind(given)
    both = {key for key, _ in pairs}
    if not foreign.is_off(given.get("pure_bf16")):
        result.values["bf16"] = True
    for key, value in pairs:
        shown = files.shown(value)
        if not key:
            result.leave("", shown, Message("why_no_option"), lost=True)
            continue
        if key in _RENAMED and _RENAMED[key] in both:
            result.leave(key, shown, Message("why_given_too", key=_RENAMED[key]))
            continue
        key = _RENAMED.get(key, key)
        if key == "deepspeed":  # below, when the rest is known
            continue
        if (key in foreign.CHANGING and key not in RunConfig.model_fields) or key in _ONE_BY_ONE:
            result.leave(key, shown, Message("why_anyway"))
            continue
        if key in foreign.PREDICTION_DEFAULTS and foreign.is_off(given.get("do_predict")):
            result.leave(key, shown, Message("why_prediction"))
            continue
        if key not in RunConfig.model_fields and (reason := foreign.harmless(key)):
            result.leave(key, shown, reason)
            continue
        if reason := unused_key_reason(key):
            result.leave(key, shown, reason)
        elif key not in RunConfig.model_fields:
            result.leave(key, shown, Message("why_not_here", guess=nearest(key, RunConfig.model_fields)), lost=True)
        else:
            if (key, shown.lower()) in _OTHERWISE:
                value, why = _OTHERWISE[key, shown.lower()]
                result.leave(key, shown, Message(why))
            try:
                result.values[key] = coerced(key, _SPELLINGS.get(key, {}).get(shown.lower(), value))
            except UserError as error:
                result.leave(key, shown, unfit_reason(error), lost=True)
    if foreign.MEDIA_TEMPLATES.search(str(given.get("template", "")).lower()):
        why = Message("why_media_template")
        result.leave("template", files.shown(given["template"]), why, lost=True)
        result.values.pop("template", None)
    if not foreign.is_off(given.get("do_predict")):
        _predicts(result, given)
    if not foreign.is_off(given.get("deepspeed")):
        deepspeed_file.fill(result, given["deepspeed"], read)
    if {"stage", "do_train"} & result.values.keys():  # its own file or command, not some options
        result.defaults = _defaults(result.values)
    return result


def _for_answers(pairs: Sequence[tuple[str, Any]], given: dict[str, Any], purpose: str, result: Imported) -> Imported:
    """A file or command that is for chatting with a model, or for exporting it.

    Raises:
        UserError: it exports in a way that is not offered.
    """
    result.purpose = purpose
    if purpose == "export":
        result.values.pop("devices", None)
    _check_quantization(given)
    if not given.get("model_name_or_path"):
        raise UserError("import_chat_no_model" if purpose == "chat" else "import_export_no_model")
    if purpose == "export":
        if not foreign.is_off(given.get("export_quantization_bit")):
            raise UserError("import_gptq")
        result.name = re.split(r"[/\\]", str(given.get("export_dir") or "").rstrip("/\\"))[-1] or "exported"
    for key, value in pairs:
        key, shown = _RENAMED.get(key, key) if key != "max_length" else key, files.shown(value)
        if not key or key in ("export_dir", "quantization_method"):
            continue
        if key in EngineConfig.model_fields:
            try:
                if (key, shown.lower()) in _OTHERWISE:
                    value, why = _OTHERWISE[key, shown.lower()]
                    result.leave(key, shown, Message(why))
                value = _SPELLINGS.get(key, {}).get(shown.lower(), value)
                result.values[key] = coerced(key, value, EngineConfig)
            except UserError as error:
                result.leave(key, shown, unfit_reason(error), lost=True)
        elif key in foreign.GENERATION:
            result.leave(key, shown, Message(foreign.GENERATION[key]), lost=True)
        elif key in foreign.FOR_ANSWERS:
            result.leave(key, shown, Message(foreign.FOR_ANSWERS[key]))
        elif reason := foreign.harmless(key):
            result.leave(key, shown, reason)
        else:
            result.leave(key, shown, Message("why_no_engine_option"), lost=True)
    if foreign.MEDIA_TEMPLATES.search(str(given.get("template", "")).lower()):
        result.leave("template", files.shown(given["template"]), Message("why_media_sent"), lost=True)
        result.values.pop("template", None)
    return result


def _check_quantization(values: dict[str, Any]) -> None:
    """Raise UserError where a quantization is asked for that is not offered."""
    method = str(values.get("quantization_method") or "bnb").lower()
    if method not in ("bnb", "bitsandbytes"):
        raise UserError("import_quantization", method=method)
