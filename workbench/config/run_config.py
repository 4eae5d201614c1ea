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

from workbench.config.options import EngineConfig, ModelOptions, RunConfig
from workbench.config.type_errors import type_error
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files
from workbench.storage.files import shown

REPORTERS = ("tensorboard", "wandb", "trackio", "swanlab")
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


_OF_OWN_ENGINE = ("quantization_bit", "flash_attn", "rope_scaling", "cpu_weights")
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


def conflicts(config: RunConfig) -> list[Message]:
    """Sentences for combinations that cannot work, found without loading anything."""
    c, problems = config, []

    def check(wrong: bool, sentence: Message) -> None:
        if wrong:
            problems.append(sentence)

    if c.adapter_name_or_path and not c.model_name_or_path:
        problems.append(Message("adapter_without_base"))
    else:
        check(not c.model_name_or_path, Message("model_empty"))
    check(not c.dataset and not c.tokenized_path, Message("dataset_empty"))
    check(not c.do_train, Message("nothing_to_do"))
    check(c.fp16 and c.bf16, Message("fp16_and_bf16"))
    check(
        (c.packing or c.neat_packing) and c.cutoff_len == 0,
        Message("packing_without_length"),
    )
    try:
        shares = c.shares()
        check(
            bool(shares) and c.mix_strategy == "concat",
            Message("shares_but_concat"),
        )
        check(
            bool(shares) and len(shares) != len(split_names(c.dataset)),
            Message("shares_count"),
        )
    except ValueError:
        problems.append(Message("shares_wrong", value=c.interleave_probs))
    check(
        c.finetuning_type == "full" and c.quantization_bit is not None,
        Message("full_quantized"),
    )
    check(
        c.finetuning_type == "full" and bool(c.adapter_name_or_path),
        Message("full_adapter"),
    )
    problems += method_conflicts(c)
    problems += optimizer_conflicts(c)
    check(c.train_on_prompt and c.mask_history, Message("prompt_and_history"))
    check(c.val_size > 0 and bool(c.eval_dataset), Message("two_evaluations"))
    check(
        c.eval_strategy != "no" and not c.val_size and not c.eval_dataset,
        Message("nothing_to_evaluate", strategy=c.eval_strategy),
    )
    check(
        c.early_stopping_steps is not None and c.eval_strategy == "no",
        Message("stopping_without_evaluation"),
    )
    problems += step_conflicts(c)
    check(c.warmup_steps > 0 and c.warmup_ratio > 0, Message("two_warmups"))
    check(
        c.use_dora and c.loraplus_lr_ratio is not None,
        Message("dora_and_loraplus"),
    )
    for name in split_names(c.report_to):
        if name not in (*REPORTERS, "none", "all"):
            problems.append(Message("reporter_unknown", name=name, known=REPORTERS))
    for name in split_names(c.devices):
        if not (name.isdigit() or name in ("auto", "cpu")):
            problems.append(Message("devices_wrong", value=c.devices))
            break
    return problems


def step_conflicts(c: RunConfig) -> list[Message]:
    """Of when a run logs, evaluates and saves."""
    found = []
    for name in ("eval_steps", "save_steps", "logging_steps"):
        value = getattr(c, name)
        if value is not None and value > 1 and value != int(value):
            found.append(Message("steps_not_whole", option=name, value=value))
    if c.eval_on_each_dataset and len(split_names(c.eval_dataset)) < 2:
        found.append(Message("each_of_several"))
    if not c.load_best_model_at_end:
        return found
    often, seldom = c.eval_steps or c.logging_steps, c.save_steps
    if c.eval_strategy == "no":
        found.append(Message("best_without_evaluation"))
    elif c.save_strategy != c.eval_strategy:
        found.append(Message("best_strategies", save=c.save_strategy, evaluate=c.eval_strategy))
    elif c.eval_strategy == "steps" and ((often < 1) != (seldom < 1) or seldom < often or not _divides(often, seldom)):
        found.append(Message("best_steps", save=seldom, evaluate=often))
    return found


def _divides(small: float, large: float) -> bool:
    return abs(large / small - round(large / small)) < 1e-9


def method_conflicts(c: RunConfig) -> list[Message]:
    """Of `finetuning_type` and what only some of its ways can do."""
    method, quantized = c.finetuning_type, c.quantization_bit is not None
    several = len(split_names(c.adapter_name_or_path)) > 1
    found = {
        "freeze_quantized": method == "freeze" and quantized,
        "freeze_adapter": method == "freeze" and bool(c.adapter_name_or_path),
        "freeze_nothing": c.freeze_trainable_layers == 0 and (method == "freeze" or c.use_llama_pro),
        "llama_pro_method": c.use_llama_pro and method not in ("freeze", "lora"),
        "oft_both_sizes": method == "oft" and c.oft_rank > 0 and c.oft_block_size not in (0, 32),
        "oft_no_size": method == "oft" and c.oft_rank == 0 and c.oft_block_size == 0,
        "loraplus_method": c.loraplus_lr_ratio is not None and method != "lora",
        "pissa_method": c.pissa_init and method != "lora",
        "pissa_quantized": c.pissa_init and quantized,
        "pissa_dora": c.pissa_init and c.use_dora,
        "pissa_adapter": c.pissa_init and bool(c.adapter_name_or_path) and not c.create_new_adapter,
        "new_adapter_of_none": c.create_new_adapter and not c.adapter_name_or_path,
        "new_adapter_method": method == "oft" and (c.create_new_adapter or several),
        "new_adapter_dora": c.use_dora and c.create_new_adapter,
        "streaming_steps": c.streaming and c.max_steps <= 0,
        "streaming_packing": c.streaming and (c.packing or c.neat_packing),
        "streaming_tokenized": c.streaming and bool(c.tokenized_path),
        "streaming_share": c.streaming and 0 < c.val_size < 1,
        "new_tokens_adapter": c.new_tokens and bool(c.adapter_name_or_path),
        "adapters_quantized": quantized and (several or (c.create_new_adapter and bool(c.adapter_name_or_path))),
    }
    return [Message(code) for code, wrong in found.items() if wrong]


# `use_…` and the package on PyPI that it needs: (name of the module, name of the package)
OPTIMIZERS = {
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "badam": ("badam", "badam"),
    "adam_mini": ("adam_mini", "adam-mini"),
    "muon": ("", ""),
}
_BASES = {  # `optim` that it can be built on, where it can be another than AdamW
    "galore": ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor"),
    "badam": ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"),
}


def chosen_optimizer(c: RunConfig) -> str:
    """`galore`, `apollo`, `badam`, `adam_mini` or `muon`; empty where `optim` alone says it."""
    return next((name for name in OPTIMIZERS if getattr(c, f"use_{name}")), "")


def layerwise(c: RunConfig) -> bool:
    """Whether each layer makes its step within the backward pass."""
    return (c.use_galore and c.galore_layerwise) or (c.use_apollo and c.apollo_layerwise)


def plain_steps(c: RunConfig) -> str:
    """Why the steps of a run must be transformers' own, as a message's code; empty where they need not be."""
    if layerwise(c):
        return "plain_layerwise"
    if c.streaming:
        return "plain_streaming"
    return "plain_badam" if c.use_badam else ""


def optimizer_conflicts(c: RunConfig) -> list[Message]:
    """Of the optimizers with options of their own."""
    used = [f"use_{name}" for name in OPTIMIZERS if getattr(c, f"use_{name}")]
    if not used:
        return []
    found, one = [], chosen_optimizer(c)
    if len(used) > 1:
        found.append(Message("optimizers_several", names=used))
    if c.loraplus_lr_ratio is not None:
        found.append(Message("optimizer_loraplus", name=used[0]))
    if one in ("galore", "apollo", "badam") and c.finetuning_type not in ("full", "freeze"):
        found.append(Message("optimizer_method", name=used[0]))
    bases = _BASES.get(one, ("adamw_torch", "adamw_torch_fused"))
    if c.optim not in bases:
        found.append(Message("optimizer_base", name=used[0], optim=c.optim, known=bases))
    if layerwise(c) and c.gradient_accumulation_steps > 1:
        found.append(Message("layerwise_accumulation", name=f"{one}_layerwise"))
    if layerwise(c) and c.fp16:
        found.append(Message("layerwise_fp16", name=f"{one}_layerwise"))
    return found


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
