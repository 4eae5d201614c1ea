"""Read, check and write run configs: flat YAML with LLaMA-Factory's keys.

Everything that can be known to be wrong before anything is loaded is found here. Messages have three parts:
what is wrong, what exists, what to do.
"""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from workbench.config.conflicts import conflicts
from workbench.config.options import EngineConfig, ModelOptions, RunConfig
from workbench.config.type_errors import type_error
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files
from workbench.storage.files import shown

_NO_EFFECT = {  # LLaMA-Factory keys that are read and need nothing done
    "overwrite_cache": "why_token_cache",
    "ddp_timeout": "why_distributed",
    "include_num_input_tokens_seen": "why_counted",
    "preprocessing_batch_size": "why_stream",
    "logging_dir": "why_logs",
    "use_fast_tokenizer": "why_fast_tokenizer",
    "save_only_model": "why_resumable",
    "booster": "why_fastest",
    "pissa_convert": "why_pissa_plain",
    "predict_with_generate": "why_generates",
}


_COMPARED = 2000  # known names that one is compared with: more would take seconds


def unused_key_reason(key: str) -> str | None:
    """Why a known LLaMA-Factory key is accepted without effect, or None if it is not such a key."""
    return Message(_NO_EFFECT[key]) if key in _NO_EFFECT else None


def nearest(name: str, known) -> str:
    """A clause such as ` Did you mean 'lora_rank'?`, or an empty text when nothing is close."""
    close = difflib.get_close_matches(name[:80], list(itertools.islice(known, _COMPARED)), 1, 0.7)
    return Message("did_you_mean", name=close[0]) if close else ""


def _sentence(error: Mapping[str, Any], model: type[ModelOptions]) -> Message:
    key = shown(".".join(str(part) for part in error["loc"]), 80) or "config"
    if error["type"] == "extra_forbidden":
        return Message("option_unknown", key=key, guess=nearest(key, model.model_fields))
    given = error.get("input")
    value = shown(given) if isinstance(given, str | dict | list) else given
    problem = type_error(error)
    return Message("option_wrong", key=key, reason=Message("value_wrong", value=repr(value), problem=problem))


def unfit_reason(error: UserError) -> str:
    """What an error of `coerced` says, without the option's name."""
    message = error.message
    return message.values["reason"] if isinstance(message, Message) and message.code == "option_wrong" else message


# The type of config that `validated` is asked for.
Config = TypeVar("Config", bound=ModelOptions)


def validated(values: dict, model: type[Config] = RunConfig, *, where: str = "") -> Config:  # type: ignore[assignment]
    """`values` as a checked config.

    Raises:
        UserError: one line for every unknown key, wrong type, value out of range or impossible combination.
    """
    kept = {k: v for k, v in values.items() if k not in _NO_EFFECT or k in model.model_fields}
    try:
        config = model(**{str(k): v for k, v in kept.items()})
    except ValidationError as error:
        problems = list(dict.fromkeys(_sentence(e, model) for e in error.errors()))
    else:
        problems = conflicts(config) if isinstance(config, RunConfig) else []
        if isinstance(config, EngineConfig):
            problems = engine_conflicts(config)
        if not problems:
            return config
    lines = Message("lines", problems=problems)
    raise UserError(Message("at_place", place=where, problem=lines) if where else lines)


def coerced(key: str, value, model: type[ModelOptions] = RunConfig):
    """`value` as the type of option `key`, without regard to the other options. Raises UserError."""
    try:
        return getattr(model(**{key: value}), key)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], model)) from None


_OF_OWN_ENGINE = ("quantization_bit", "weights_on", "flash_attn", "rope_scaling", "cpu_weights")
_OF_STARTED_ENGINE = ("tensor_parallel_size", "gpu_memory_utilization", "max_model_len")
_URL = re.compile(r"https?://[^\s/@?#\\]+(/[^\s@?#\\]*)?")  # without a name and a password, which would be shown


def engine_conflicts(config: EngineConfig) -> list[Message]:
    """Sentences for what cannot be loaded as asked for, found without loading anything."""
    c, problems = config, []

    def check(names: Sequence[str], code: str) -> None:
        changed = [name for name in names if getattr(c, name) != EngineConfig.model_fields[name].default]
        if changed:
            problems.append(Message(code, names=changed))

    if not c.model_name_or_path:
        problems.append(Message("engine_model_empty"))
    if c.engine_url is not None and not _URL.fullmatch(c.engine_url):
        problems.append(Message("engine_url_wrong"))
    if c.external:
        check(_OF_OWN_ENGINE, "engine_only_own")
    else:
        check(_OF_STARTED_ENGINE, "engine_only_others")
    if c.engine_url is not None:
        check((*_OF_STARTED_ENGINE, "infer_dtype"), "engine_runs_already")
    return problems


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        UserError: missing or unreadable file, broken YAML (with its line), or something else than `key: value`.
    """
    try:
        text = files.read_text(Path(path), files.MAX_YAML)
    except FileNotFoundError:
        raise UserError("config_missing", path=path) from None
    except files.Unreadable as error:
        raise UserError("not_text", what=path, reason=error.reason) from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str = "YAML") -> dict:
    """The mapping in a YAML text. Raises UserError as `read_yaml` does."""
    try:
        values = files.parse_yaml(text, where)
    except files.Unreadable as error:
        raise UserError("yaml_advice", problem=error) from None
    if not isinstance(values, dict):
        raise UserError("yaml_not_pairs", what=where, kind=type(values).__name__)
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
            raise UserError("override_form", item=item)
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
