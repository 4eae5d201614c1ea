"""LLaMA-Factory's v1 form (`model`, `train_dataset`, `peft_config` and other groups) as our options.

Names, meanings and defaults are those of LLaMA-Factory 0.9.5: `src/llamafactory/v1/config`, the plugins that read the
groups, and the trainer. Words are codes of `workbench.messages.imports`.
"""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workbench.config import deepspeed_file, foreign
from workbench.config.options import SCHEDULERS, EngineConfig, RunConfig
from workbench.config.run_config import coerced, nearest, unfit_reason
from workbench.config.v1_datasets import datasets_of
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

if TYPE_CHECKING:
    from workbench.config.llamafactory import Imported

GROUPS = (
    "peft_config", "quant_config", "dist_config", "kernel_config", "init_config", "optim_config", "lr_scheduler_config",
)  # fmt: skip
# its defaults for what a file leaves out: no schedule, and torch's AdamW, which decays weights
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 42,
    "cutoff_len": 2048,
    "bf16": True,
    "plot_loss": False,
}
_LORA_DEFAULTS: dict[str, Any] = {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target": "all"}
_LORA = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target",
    "modules_to_save": "additional_target",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
_FREEZE = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
_OF_MODEL = ("model", "trust_remote_code", "template", "flash_attn")
# keys that `_Form` looks at one by one
_ONE_BY_ONE = (
    *_OF_MODEL, *GROUPS, "train_dataset", "micro_batch_size", "global_batch_size", "batching_strategy",
    "enable_activation_checkpointing", "save_steps", "save_epochs", "resume_from_checkpoint",
)  # fmt: skip
_FLASH = {"flash_attention2": "flash_attention_2"}  # as its examples spell it
_COMMANDS = {"train": "sft", "sft": "sft", "dpo": "dpo", "rm": "rm"}
_HARMLESS = {
    "model_class": "why_v1_class",
    "batching_workers": "why_speed",
    "full_determinism": "why_always",
    "save_ckpt_as_hf": "why_resumable",
    "sample_backend": "why_prediction",
    "max_new_tokens": "why_prediction",
    "eval_dataset": "why_v1_eval",
}
# groups that say where and how fast a run computes
_WHERE = {"dist_config": "why_one_gpu", "kernel_config": "why_speed", "init_config": "why_loading"}


def is_form(values: dict) -> bool:
    """Whether a mapping is in the form of v1."""
    marks = {"train_dataset", "model_class", "sample_backend", "micro_batch_size", *GROUPS}
    return "model" in values and "model_name_or_path" not in values and bool(marks & values.keys())


def fill(
    result: "Imported", values: dict[str, Any], command: str = "", read: Callable[[str], str | None] = lambda name: None
) -> "Imported":
    """Put what `values` ask for into `result`, and return it.

    Args:
        command: the word after `llamafactory-cli`, which says the stage; empty where only a file is known.
        read: the text of a file that `values` name, None where there is none or it may not be read.

    Raises:
        UserError: a group is none, or it asks for something that changes the result and cannot be done.
    """
    form = _Form(result, _nested(values), read)
    if command == "merge" or (not command and form.groups["peft_config"].get("export_dir")):
        result.purpose = "export"
    elif command == "chat" or (not command and not values.get("train_dataset")):
        result.purpose = "chat"
    form.model_options()
    if result.purpose == "train":
        form.run_options(command)
    else:
        form.answer_options()
    if foreign.MEDIA_TEMPLATES.search(str(values.get("template", "")).lower()):
        code = "why_media_template" if result.purpose == "train" else "why_media_sent"
        result.leave("template", files.shown(values["template"]), Message(code), lost=True)
        result.values.pop("template", None)
    return result


class _Form:
    """The values of a file, and what they have come to so far."""

    def __init__(self, result: "Imported", values: dict[str, Any], read: Callable[[str], str | None]):
        self.result, self.values, self.read = result, values, read
        self.groups = {name: _group(name, values.get(name)) for name in GROUPS}

    def take(self, option: str, value, key: str = "") -> None:
        """One option of ours, from a key of the file; null stands for its default."""
        if value is None:
            return
        model: type[RunConfig] | type[EngineConfig] = RunConfig if self.result.purpose == "train" else EngineConfig
        try:
            self.result.values[option] = coerced(option, value, model)
        except UserError as error:
            self.leave(key or option, value, unfit_reason(error), lost=True)

    def leave(self, key: str, value, why: Message | str, *, lost: bool = False) -> None:
        self.result.leave(key, files.shown(value, 200), why, lost=lost)

    def model_options(self) -> None:
        """What is needed to load the model, whatever for."""
        if not self.values.get("model") and self.result.purpose != "train":
            raise UserError("import_export_no_model" if self.result.purpose == "export" else "import_chat_no_model")
        self.take("model_name_or_path", self.values.get("model"), "model")
        for key in ("trust_remote_code", "template"):
            self.take(key, self.values.get(key))
        attention = self.values.get("flash_attn")
        self.take("flash_attn", _FLASH.get(str(attention), attention))
        adapters = self.groups["peft_config"].get("adapter_name_or_path")
        self.take("adapter_name_or_path", ",".join(map(str, adapters)) if isinstance(adapters, list) else adapters)
        self._quantization(dict(self.groups["quant_config"]))

    def _quantization(self, group: dict[str, Any]) -> None:
        if not group:
            return
        name = str(group.pop("name")).lower()
        if name not in ("bnb", "auto"):
            raise UserError("import_quantization", method=name)
        bits = group.pop("quantization_bit", None)
        self.take("quantization_bit", 4 if bits is None and name == "bnb" else bits, "quant_config.quantization_bit")
        for key in ("double_quantization", "quantization_type"):
            self.take(key, group.pop(key, None), f"quant_config.{key}")
        dtype = group.pop("compute_dtype", None)
        if dtype is not None:
            self.leave("quant_config.compute_dtype", dtype, Message("why_v1_dtype"), lost=str(dtype) != "bfloat16")
        self._rest("quant_config", group)

    def answer_options(self) -> None:
        """Of a file or command for chatting with a model or exporting it."""
        result, peft = self.result, dict(self.groups["peft_config"])
        if result.purpose == "export":
            result.name = re.split(r"[/\\]", str(peft.get("export_dir") or "").rstrip("/\\"))[-1] or "exported"
        for key, value in peft.items():
            if key == "infer_dtype":
                self.take(key, value, f"peft_config.{key}")
            elif key not in ("name", "adapter_name_or_path", "export_dir") and value is not None:
                known = key in foreign.FOR_ANSWERS
                code = foreign.FOR_ANSWERS[key] if known else "why_unused"
                self.leave(f"peft_config.{key}", value, Message(code))
        for key, value in self.values.items():
            if key == "max_new_tokens" and result.purpose == "chat":
                self.leave(key, value, Message("why_generation"), lost=True)
            elif key not in (*_OF_MODEL, "peft_config", "quant_config") and value is not None:
                self.leave(key, value, Message("why_own_engine" if key == "sample_backend" else "why_unused"))

    def run_options(self, command: str) -> None:
        """Of a run."""
        result, values = self.result, self.values
        model_class = str(values.get("model_class") or "llm")
        if model_class not in ("llm", "cls"):
            raise UserError("import_changing", key="model_class", value=model_class, what=Message("asks_model_class"))
        datasets = datasets_of(values["train_dataset"], self.read)
        for key, value in datasets.options.items():
            self.take(key, value, "train_dataset")
        for left in datasets.left_out:
            self.leave(*left[:3], lost=left[3])
        stage = _COMMANDS.get(command)
        if stage is None or command == "train":
            stage = "rm" if model_class == "cls" else "dpo" if datasets.pairs else "sft"
            self.leave("stage", stage, Message("why_v1_stage"))
        result.values |= {"stage": stage, "do_train": True}
        self._method(dict(self.groups["peft_config"]))
        self._batches()
        self._optimizer(dict(self.groups["optim_config"]))
        self._schedule(dict(self.groups["lr_scheduler_config"]))
        self._saving()
        if (checkpointing := values.get("enable_activation_checkpointing")) is not None:
            self.take("disable_gradient_checkpointing", foreign.is_off(checkpointing))
        for key, code in _WHERE.items():
            zero = key == "dist_config" and self.groups[key].get("name") == "deepspeed"
            if zero and self.groups[key].get("config_file"):
                deepspeed_file.fill(result, str(self.groups[key]["config_file"]), self.read, f"{key}.config_file")
            elif values.get(key) is not None:
                self.leave(key, self.groups[key], Message(code))
        if self.groups["dist_config"].get("dcp_path"):
            self.leave("dist_config.dcp_path", self.groups["dist_config"]["dcp_path"], Message("why_v1_dcp"), lost=True)
        for key, value in values.items():
            if key not in _ONE_BY_ONE and value is not None:
                self._other(key, value)
        self._defaults()

    def _method(self, group: dict[str, Any]) -> None:
        name = str(group.pop("name", "full")).lower()
        if name not in ("lora", "freeze", "full"):
            raise UserError("import_method", method=name)
        self.result.values["finetuning_type"] = name
        group.pop("adapter_name_or_path", None)
        names = _LORA if name == "lora" else {key: key for key in _FREEZE}
        for key, option in names.items():
            self.take(option, group.pop(key, None), f"peft_config.{key}")
        floats = group.pop("cast_trainable_params_to_fp32", None)
        if floats is not None:
            lost = not foreign.is_off(floats)
            self.leave("peft_config.cast_trainable_params_to_fp32", floats, Message("why_v1_floats"), lost=lost)
        for key in [key for key in group if key.startswith("export_") or key == "infer_dtype"]:
            self.leave(f"peft_config.{key}", group.pop(key), Message("why_unused"))
        self._rest("peft_config", group)

    def _batches(self) -> None:
        """One process takes all micro-batches of a step, one after the other."""
        micro, whole = self.values.get("micro_batch_size"), self.values.get("global_batch_size")
        self.take("per_device_train_batch_size", micro, "micro_batch_size")
        if whole is not None:
            size = self.result.values.get("per_device_train_batch_size", 1)
            if (number := _number(whole)) > 0 and number % size == 0:
                self.take("gradient_accumulation_steps", int(number) // size, "global_batch_size")
            else:
                self.leave("global_batch_size", whole, Message("why_v1_batch", size=size), lost=True)
        strategy = str(self.values.get("batching_strategy") or "normal")
        if strategy in ("dynamic_batching", "dynamic_padding_free"):
            self.result.values["packing"] = True
            # epochs are counted as if a step had `global_batch_size` rows, and are several times as long
            lost = strategy == "dynamic_batching" or _number(self.values.get("max_steps")) <= 0
            code = "why_v1_padded_budget" if strategy == "dynamic_batching" else "why_v1_budget"
            self.leave("batching_strategy", strategy, Message(code), lost=lost)
        elif strategy in ("normal", "padding_free"):
            if "batching_strategy" in self.values:
                self.leave("batching_strategy", strategy, Message("why_speed"))
        else:
            self.leave("batching_strategy", strategy, Message("why_not_here", guess=""), lost=True)

    def _optimizer(self, group: dict[str, Any]) -> None:
        if not group:
            return
        name = str(group.pop("name")).lower()
        if name not in ("adamw", "muon"):
            raise UserError("import_changing", key="optim_config", value=name, what=Message("asks_own_optimizer"))
        if name == "muon":
            self.result.values["use_muon"] = True
            if not group.pop("nesterov", True) or group.pop("ns_steps", 5) != 5 or group.pop("momentum", 0.95) != 0.95:
                what = Message("asks_optimizer")
                raise UserError(
                    "import_changing", key="optim_config", value=files.shown(self.groups["optim_config"]), what=what
                )
        prefix = "adamw_" if name == "muon" else ""
        self.take("weight_decay", group.pop("wd" if name == "muon" else "weight_decay", 0.1 if prefix else 0.0))
        betas = group.pop(f"{prefix}betas", (0.9, 0.95) if prefix else None)
        if isinstance(betas, list | tuple) and len(betas) == 2:
            self.take("adam_beta1", betas[0], "optim_config.betas")
            self.take("adam_beta2", betas[1], "optim_config.betas")
        if _number(epsilon := group.pop(f"{prefix}eps", 1e-8)) != 1e-8:
            what = Message("asks_epsilon")
            raise UserError("import_changing", key="optim_config.eps", value=files.shown(epsilon), what=what)
        for key in ("foreach", "fused"):
            group.pop(key, None)
        self._rest("optim_config", group)

    def _schedule(self, group: dict[str, Any]) -> None:
        if not group:
            return
        name = str(group.pop("name")).lower()
        if name not in SCHEDULERS:
            raise UserError("import_changing", key="lr_scheduler_config", value=name, what=Message("asks_own_schedule"))
        self.result.values["lr_scheduler_type"] = name
        self.take("warmup_ratio", group.pop("warmup_ratio", None), "lr_scheduler_config.warmup_ratio")
        steps = group.pop("num_warmup_steps", group.pop("warmup_steps", None))
        self.take("warmup_steps", steps, "lr_scheduler_config.warmup_steps")
        self._rest("lr_scheduler_config", group)

    def _saving(self) -> None:
        epochs, steps = self.values.get("save_epochs"), self.values.get("save_steps")
        limited = _number(self.values.get("max_steps")) > 0
        total = _number(self.values.get("num_train_epochs")) or DEFAULTS["num_train_epochs"]
        if epochs == 1:
            self.result.values["save_strategy"] = "epoch"
        elif epochs is not None and not limited and 0 < _number(epochs) < total:
            self.result.values["save_strategy"] = "steps"
            self.take("save_steps", _number(epochs) / total, "save_epochs")
        elif epochs is not None:
            self.leave("save_epochs", epochs, Message("why_v1_epochs"), lost=True)
        elif steps:
            self.result.values["save_strategy"] = "steps"
            self.take("save_steps", steps)
        if (start := self.values.get("resume_from_checkpoint")) is not None:
            self.leave("resume_from_checkpoint", start, Message("why_v1_resume"), lost=True)

    def _other(self, key: str, value) -> None:
        if key in _HARMLESS:
            self.leave(key, value, Message(_HARMLESS[key]))
        elif isinstance(value, dict) or key in ("ld_alpha", "mtp_config"):
            raise UserError("import_unknown_switch", key=key, value=files.shown(value, 80))
        elif key in foreign.CHANGING and not foreign.is_off(value):
            raise UserError("import_changing", key=key, value=files.shown(value, 80), what=foreign.asked(key))
        elif key in RunConfig.model_fields:
            self.take(key, value)
        elif reason := foreign.harmless(key):
            self.leave(key, value, reason)
        elif key.startswith(("use_", "enable_")) and not foreign.is_off(value):
            raise UserError("import_unknown_switch", key=key, value=files.shown(value, 80))
        else:
            self.leave(key, value, Message("why_not_here", guess=nearest(key, RunConfig.model_fields)), lost=True)

    def _rest(self, name: str, group: dict[str, Any]) -> None:
        """What a group has beside the keys that are known."""
        for key, value in group.items():
            if value is not None:
                self.leave(f"{name}.{key}", value, Message("why_not_here", guess=""), lost=True)

    def _defaults(self) -> None:
        """Its defaults for options that the file leaves out, where ours are others."""
        values, fields = self.result.values, RunConfig.model_fields
        defaults = DEFAULTS | (_LORA_DEFAULTS if values["finetuning_type"] == "lora" else {})
        if values.get("max_steps", -1) > 0:
            del defaults["num_train_epochs"]
        self.result.defaults = {k: v for k, v in defaults.items() if k not in values and fields[k].default != v}


def _number(value) -> float:
    """A value as a number; 0 for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values in which `peft_config.r` of a command has become part of its group."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, dot, rest = str(key).partition(".")
        if dot and group in GROUPS and isinstance(nested.get(group), dict):
            nested[group] = nested[group] | {rest: value}
        else:
            nested[str(key)] = value
    return nested


def _group(name: str, given) -> dict[str, Any]:
    """The mapping of a group; empty where there is none. Raises UserError: it is no mapping with a name."""
    if isinstance(given, str) and given.lstrip().startswith("{"):  # of a command
        try:
            given = json.loads(given)
        except ValueError:
            raise UserError("import_v1_group", key=name, value=files.shown(given, 80)) from None
    if given is None or given == {}:
        return {}
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UserError("import_v1_group", key=name, value=files.shown(given, 80))
    return {str(key): value for key, value in given.items()}
