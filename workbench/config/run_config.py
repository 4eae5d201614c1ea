"""Read, check and write run configs: flat YAML with LLaMA-Factory's keys.

Everything that can be known to be wrong before anything is loaded is found here. Messages have three parts:
what is wrong, what exists, what to do.
"""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from workbench.config.options import EngineConfig, ModelOptions, RunConfig
from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.files import shown

REPORTERS = ("tensorboard", "wandb", "trackio", "swanlab")
_NO_EFFECT = {  # LLaMA-Factory keys that are read and need nothing done
    "overwrite_cache": "cached tokens are used only while data, template and options are the same",
    "ddp_timeout": "only with distributed training",
    "include_num_input_tokens_seen": "tokens are always counted",
    "preprocessing_batch_size": "rows are read as a stream",
    "logging_dir": "logs lie in the run's folder",
    "use_fast_tokenizer": "transformers 5 always uses the fast tokenizer",
    "save_only_model": "checkpoints stay resumable",
    "booster": "the fastest installed path is used",
}


_COMPARED = 2000  # known names that one is compared with: more would take seconds


def unused_key_reason(key: str) -> str | None:
    """Why a known LLaMA-Factory key is accepted without effect, or None if it is not such a key."""
    return _NO_EFFECT.get(key)


def nearest(name: str, known) -> str:
    """A clause such as ` Did you mean 'lora_rank'?`, or an empty text when nothing is close."""
    close = difflib.get_close_matches(name[:80], list(itertools.islice(known, _COMPARED)), 1, 0.7)
    return f" Did you mean '{close[0]}'?" if close else ""


def _sentence(error: Mapping[str, Any], model: type[ModelOptions]) -> str:
    key = shown(".".join(str(part) for part in error["loc"]), 80) or "config"
    if error["type"] == "extra_forbidden":
        return f"Unknown option '{key}'.{nearest(key, model.model_fields)} All options: docs/options.md."
    given = error.get("input")
    value = shown(given) if isinstance(given, str | dict | list) else given
    message = error["msg"].replace("Input should", "it should").removeprefix("Value error, ")
    return f"{key}: {value!r} does not fit: {message}."


# The type of config that `validated` is asked for.
Config = TypeVar("Config", bound=ModelOptions)


def validated(values: dict, model: type[Config] = RunConfig, *, where: str = "") -> Config:  # type: ignore[assignment]
    """`values` as a checked config.

    Raises:
        UserError: one line for every unknown key, wrong type, value out of range or impossible combination.
    """
    prefix = f"{where}: " if where else ""
    kept = {k: v for k, v in values.items() if k not in _NO_EFFECT or k in model.model_fields}
    try:
        config = model(**{str(k): v for k, v in kept.items()})
    except ValidationError as error:
        lines = list(dict.fromkeys(_sentence(e, model) for e in error.errors()))
        raise UserError(prefix + "\n".join(lines)) from None
    if isinstance(config, RunConfig) and (problems := conflicts(config)):
        raise UserError(prefix + "\n".join(problems))
    if isinstance(config, EngineConfig) and not config.model_name_or_path:
        raise UserError(prefix + "Choose a model first (model_name_or_path is empty).")
    return config


def coerced(key: str, value, model: type[ModelOptions] = RunConfig):
    """`value` as the type of option `key`, without regard to the other options. Raises UserError."""
    try:
        return getattr(model(**{key: value}), key)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], model)) from None


def conflicts(config: RunConfig) -> list[str]:
    """Sentences for combinations that cannot work, found without loading anything."""
    c, problems = config, []

    def check(wrong: bool, sentence: str) -> None:
        if wrong:
            problems.append(sentence)

    if c.adapter_name_or_path and not c.model_name_or_path:
        problems.append(
            "adapter_name_or_path is set without its base. Set model_name_or_path to the model it was trained on."
        )
    else:
        check(not c.model_name_or_path, "model_name_or_path is empty. Choose a model.")
    check(not c.dataset, "dataset is empty. Choose at least one dataset.")
    check(not c.do_train, "do_train is false: there is nothing to do. Set it to true.")
    check(c.fp16 and c.bf16, "fp16 and bf16 are both on. Keep one, or neither to let the device decide.")
    check(
        (c.packing or c.neat_packing) and c.cutoff_len == 0,
        "packing needs a length to fill. Set cutoff_len, for example 2048.",
    )
    try:
        shares = c.shares()
        check(
            bool(shares) and c.mix_strategy == "concat",
            "interleave_probs is set, but mix_strategy is concat. Set it to interleave_over.",
        )
        check(
            bool(shares) and len(shares) != len(split_names(c.dataset)),
            "interleave_probs should name one share for each dataset.",
        )
    except ValueError:
        problems.append(
            f"interleave_probs: {c.interleave_probs!r} does not fit: it should be shares above 0, such as 0.7,0.3."
        )
    check(
        c.finetuning_type == "full" and c.quantization_bit is not None,
        "Quantized weights cannot be trained in full. Set finetuning_type to lora, or remove quantization_bit.",
    )
    check(
        c.finetuning_type == "full" and bool(c.adapter_name_or_path),
        "An adapter cannot be continued with finetuning_type full. Set it to lora.",
    )
    check(c.train_on_prompt and c.mask_history, "train_on_prompt and mask_history exclude each other. Keep one.")
    check(c.val_size > 0 and bool(c.eval_dataset), "val_size and eval_dataset are both set. Keep one.")
    check(
        c.eval_strategy != "no" and not c.val_size and not c.eval_dataset,
        f"eval_strategy is {c.eval_strategy}, but there is nothing to evaluate on. Set val_size or eval_dataset.",
    )
    check(
        c.early_stopping_steps is not None and c.eval_strategy == "no",
        "early_stopping_steps needs evaluations. Set eval_strategy and val_size, or remove it.",
    )
    check(c.warmup_steps > 0 and c.warmup_ratio > 0, "warmup_steps and warmup_ratio are both set. Keep one.")
    check(
        c.use_dora and c.loraplus_lr_ratio is not None,
        "use_dora and loraplus_lr_ratio do not work together. Keep one.",
    )
    for name in split_names(c.report_to):
        if name not in (*REPORTERS, "none", "all"):
            problems.append(f"report_to: unknown '{name}'. It can be none, {', '.join(REPORTERS)}.")
    for name in split_names(c.devices):
        if not (name.isdigit() or name in ("auto", "cpu")):
            problems.append(f"devices: '{c.devices}' does not fit. It can be auto, cpu, or GPU ids such as 0,1.")
            break
    return problems


def split_names(text: str | None) -> list[str]:
    """`'a, b'` as `['a', 'b']`."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        UserError: missing or unreadable file, broken YAML (with its line), or something else than `key: value`.
    """
    try:
        text = files.read_text(Path(path), files.MAX_YAML)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}. Presets are listed by: python -m workbench presets") from None
    except files.Unreadable as error:
        raise UserError(f"{path} cannot be read as text: {error.reason}") from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str = "YAML") -> dict:
    """The mapping in a YAML text. Raises UserError as `read_yaml` does."""
    try:
        values = files.parse_yaml(text, where)
    except files.Unreadable as error:
        raise UserError(f"{error} It should hold lines of the form 'key: value'.") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} should hold lines of the form 'key: value', but holds {type(values).__name__}.")
    written = files.parse_yaml(text, where, as_written=True)
    return {key: _as_written(key, value, written.get(str(key))) for key, value in values.items()}


def _as_written(key, value, written):
    """A value from YAML; of an option that is text, what was written (`007` is not 7, a date not a date)."""
    field = RunConfig.model_fields.get(str(key)) or EngineConfig.model_fields.get(str(key))
    plain = value is not None and not isinstance(value, list | dict) and isinstance(written, str)
    return written if plain and field is not None and field.annotation in (str, str | None) else value


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A checked RunConfig from a YAML file and `key=value` overrides. Raises UserError."""
    return validated(read_yaml(path) | parse_overrides(overrides), where=str(path))


def parse_overrides(items: Sequence[str]) -> dict:
    """`['lora_rank=16']` as a mapping; values are read as YAML scalars. Raises UserError."""
    values = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item!r} should have the form key=value, for example --set lora_rank=16.")
        try:
            parsed = files.parse_yaml(value) if value else None
            written = files.parse_yaml(value, as_written=True) if value else None
        except files.Unreadable:
            parsed = written = value
        text = value.strip() if isinstance(parsed, dict) else written  # a sentence with a colon is no mapping
        option = RunConfig.model_fields.get(key.strip()) or EngineConfig.model_fields.get(key.strip())
        if isinstance(parsed, dict) and option is not None and option.annotation in (str, str | None):
            parsed = text
        values[key.strip()] = _as_written(key.strip(), parsed, text)
    return values


def changed_values(config: ModelOptions) -> dict:
    """The options that differ from their defaults, in the order of their definition."""
    fields = type(config).model_fields
    return {k: v for k, v in config.model_dump().items() if v != fields[k].get_default()}


def to_yaml(values: dict) -> str:
    """Flat YAML, keys in the given order, readable numbers."""
    plain = {k: int(v) if isinstance(v, float) and v.is_integer() and abs(v) < 1e9 else v for k, v in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False)
