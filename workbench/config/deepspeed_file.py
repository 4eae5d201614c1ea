"""A config of DeepSpeed as options: the JSON that `deepspeed` names in LLaMA-Factory's files, and transformers' too.

How ZeRO spreads what a run holds over devices changes no result. What would change one is taken over where there is an
option for it, else listed as lost. "auto" stands for what the run says.
"""

import json
from collections.abc import Callable
from typing import Any

from workbench.config import foreign
from workbench.config.conflicts import zero_conflicts
from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.config.run_config import coerced, unfit_reason
from workbench.config.zero import block_of, zero_of
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

Left = tuple[str, str, Message | str, bool]  # (key, value, why, lost)

LISTED = 50  # keys that are not known
_TAKEN = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "bf16.enabled": "bf16",
    "bfloat16.enabled": "bf16",
    "fp16.enabled": "fp16",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps",
}
_OPTIMIZERS = ("adam", "adamw")  # DeepSpeed's Adam decays weights as AdamW does
# as transformers names them for DeepSpeed
_SCHEDULERS = {"warmuplr": "constant_with_warmup", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}
# how it computes, talks and logs; blocks and single keys
_HARMLESS = frozenset((
    "_comment", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print", "dump_state",
    "wall_clock_breakdown", "memory_breakdown", "comms_config", "comms_logger", "monitor_config", "tensorboard",
    "wandb", "csv_monitor", "comet", "flops_profiler", "aio", "checkpoint", "communication_data_type",
    "prescale_gradients", "disable_allgather", "activation_checkpointing", "tensor_parallel", "autotuning", "nebula",
    "timers", "compile", "graph_harvesting", "seq_parallel_communication_data_type", "dataloader_drop_last",
))  # fmt: skip
_HARMLESS_PARTS = frozenset((
    "fp16.loss_scale", "fp16.loss_scale_window", "fp16.initial_scale_power", "fp16.hysteresis", "fp16.min_loss_scale",
    "fp16.auto_cast", "fp16.consecutive_hysteresis", "bf16.immediate_grad_update", "scheduler.params.total_num_steps",
    "optimizer.params.torch_adam", "optimizer.params.adam_w_mode",
))  # fmt: skip
# of `zero_optimization`, what computes something else (ZeRO++ quantizes what is exchanged)
_COARSER = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def is_form(values: dict) -> bool:
    """Whether these are the keys of such a config."""
    return "zero_optimization" in values or "train_micro_batch_size_per_gpu" in values


def asked(config: dict[str, Any], method: str) -> tuple[dict[str, Any], list[Left]]:
    """What a config of DeepSpeed asks of a run: `(options, what is not taken over)`.

    Args:
        config: the JSON's object.
        method: the run's `finetuning_type`; empty where it is not known.

    Raises:
        UserError: a block is none, or there is no such stage of ZeRO.
    """
    options: dict[str, Any] = {}
    left, unknown = _of_zero(block_of(config, "zero_optimization"), method), []
    for key, value in _flat({key: value for key, value in config.items() if key != "zero_optimization"}):
        if value in ("auto", None) or key.split(".")[0] in _HARMLESS or key in _HARMLESS_PARTS:
            continue
        if option := _TAKEN.get(key):
            _take(options, left, option, key, value)
        elif key == "optimizer.params.betas" and isinstance(value, list) and len(value) == 2:
            for option, beta in zip(("adam_beta1", "adam_beta2"), value, strict=True):
                if beta != "auto":
                    _take(options, left, option, key, beta)
        elif key == "scheduler.type" and str(value).lower() in _SCHEDULERS:
            options["lr_scheduler_type"] = _SCHEDULERS[str(value).lower()]
        elif not (
            (key == "optimizer.type" and str(value).lower() in _OPTIMIZERS)
            or (key == "optimizer.params.eps" and value == 1e-8)
            or (key == "scheduler.params.warmup_min_lr" and value == 0)
        ):
            why = Message("why_zero_batch") if key == "train_batch_size" else Message("why_not_here", guess="")
            unknown.append((key, files.shown(value), why, True))
    left += unknown[:LISTED]
    if len(unknown) > LISTED:
        left.append(("", "", Message("why_zero_more", count=len(unknown) - LISTED), True))
    return options, left


def _of_zero(zero: dict[str, Any], method: str) -> list[Left]:
    """What it says of which parts of the model, its gradients and the optimizer each device holds."""
    stage = zero.get("stage", 0)
    if not isinstance(stage, int) or isinstance(stage, bool) or not 0 <= stage <= 3:
        raise UserError("import_deepspeed", problem=Message("zero_no_stage", stage=files.shown(stage, 40)))
    code = "why_one_gpu" if stage == 3 else "why_zero_whole" if stage else "why_zero_off"
    if stage and method == "full":
        code = "why_zero_full"
    if stage == 3 and method in ("lora", "oft"):
        code = "why_zero_shared"
    left: list[Left] = [("zero_optimization.stage", str(stage), Message(code), False)]
    for key, code in (("offload_optimizer", "why_zero_optimizer"), ("offload_param", "why_zero_weights")):
        device = block_of(zero, key).get("device", "none")
        if device not in ("none", None):
            left.append((f"zero_optimization.{key}", files.shown(device, 40), Message(code), False))
    for key in _COARSER:
        if not foreign.is_off(zero.get(key)):
            left.append((f"zero_optimization.{key}", files.shown(zero[key]), Message("why_zero_coarser"), True))
    return left


def _for_full(config: dict[str, Any], values: dict[str, Any]) -> str:
    """`deepspeed` of a run that trains all weights; empty where ZeRO is off or does not go with the other options."""
    try:  # within a YAML file there may be keys and values that JSON does not have
        text = json.dumps({"zero_optimization": zero_of(json.dumps(config, default=str, skipkeys=True))})
    except UserError:
        return ""
    return "" if zero_conflicts(RunConfig.model_construct(**values | {"deepspeed": text})) else text


def _take(options: dict[str, Any], left: list[Left], option: str, key: str, value) -> None:
    try:
        options[option] = coerced(option, value)
    except UserError as error:
        left.append((key, files.shown(value), unfit_reason(error), True))


def _flat(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """`(optimizer.params.lr, value)` for what lies in the blocks of optimizer, scheduler and precision; other keys with
    all that they hold."""
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        if name in ("bf16", "bfloat16", "fp16"):
            found += ((f"{name}.{key}", inner) for key, inner in block_of(config, name).items())
        elif name in ("optimizer", "scheduler"):
            for key, inner in (block := block_of(config, name)).items():
                parts = block_of(block, "params") if key == "params" else {}
                found += [(f"{name}.params.{k}", v) for k, v in parts.items()] or [(f"{name}.{key}", inner)]
        else:
            found.append((str(name), value))
    return [(key, value) for key, value in found if key not in ("optimizer.params", "scheduler.params")]


def fill(imported, given, read: Callable[[str], str | None], where: str = "deepspeed") -> None:
    """Put what a config says into an import; what that has of its own counts.

    Args:
        given: the object, its text, or the name of a file.
        read: the text of a file, None where there is none or it may not be read.
        where: how the notes call it.

    Raises:
        UserError: the text is no JSON object, or not one of DeepSpeed's.
    """
    config = given
    if isinstance(given, str):
        inline = given.lstrip().startswith("{")
        text = given if inline else read(given)
        if text is None:
            imported.leave(where, files.shown(given), Message("why_zero_unread"), lost=True)
            return
        if len(text) > files.MAX_YAML:
            raise files.Unreadable(files.shown(given), Message("has_more_mib", most=files.MAX_YAML >> 20))
        config = files.parse_json(text.lstrip("\ufeff"), where if inline else files.shown(given))
    if not isinstance(config, dict):
        raise UserError("import_deepspeed", problem=Message("not_json_object"))
    default = "lora" if "model_name_or_path" in imported.values else ""  # LLaMA-Factory's, of a whole run
    method = str(imported.values.get("finetuning_type", default))
    options, left = asked(config, method)
    if method == "full" and (text := _for_full(config, imported.values | options)):
        imported.values["deepspeed"] = text
        left = [note for note in left if note[3] or not note[0].startswith("zero_optimization.")]
    for option, value in options.items():
        if imported.values.setdefault(option, value) != value:
            key = next((name for name, taken in _TAKEN.items() if taken == option), option)
            imported.leave(f"{where}.{key}", files.shown(value), Message("why_given_too", key=option), lost=True)
    devices = split_names(str(imported.values.get("devices", "")))
    known = imported.values.get
    rows = len(devices) * known("per_device_train_batch_size", 0) * known("gradient_accumulation_steps", 0)
    for key, value, why, lost in left:
        if key != "train_batch_size" or value != str(rows):
            imported.leave(f"{where}.{key}" if key else where, value, why, lost=lost)
