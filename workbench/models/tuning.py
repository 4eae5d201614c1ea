"""A model made ready for its way of tuning: `finetuning_type` of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from workbench.config.conflicts import keeps_float32
from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.models.adapters import add_lora, add_oft, continue_adapter
from workbench.models.freezing import chosen_names
from workbench.models.host_weights import check_not_streamed
from workbench.models.locate import locate_adapters
from workbench.storage.workspace import Workspace

PISSA_FILE = "pissa_init.safetensors"
ADAPTERS = ("lora", "oft")  # what is saved is a PEFT adapter; of the others, the whole model


def rounds_steps(model, config: RunConfig) -> bool:
    """Whether weights are trained in bfloat16 themselves, with none in float32 beside them: `full` and `freeze` on a
    GPU with `pure_bf16`, or with steps within the backward pass. (Of adapters, and on the CPU, what is trained is
    float32; ZeRO, and BAdam of the block that it trains, keep float32 weights.)"""
    beside = keeps_float32(config) or config.deepspeed or (config.use_badam and config.badam_mode == "layer")
    if config.finetuning_type in ADAPTERS or beside:
        return False
    return any(p.requires_grad and p.is_cuda and p.dtype is torch.bfloat16 for p in model.parameters())


def tuned(model, config: RunConfig, workspace: Workspace, folder: Path, log: Callable[[str], None]):
    """`model` with what the run trains: whole weights, or adapters (then it is a PeftModel).

    Args:
        folder: of the run. What adapters start from, where that cannot be made again, is kept there.

    Raises:
        UserError: names that the model does not have, adapters that do not fit.
    """
    check_not_streamed(model, split_names(config.additional_target))
    if config.finetuning_type == "full":
        return model
    if config.finetuning_type == "freeze":
        return _freeze(model, config, log)
    given = locate_adapters(config.adapter_name_or_path, workspace)
    if given and not config.create_new_adapter and len(given) == 1:
        made = continue_adapter(model, config, given[0])
    elif config.finetuning_type == "oft":
        made = add_oft(model, config, log)
    else:
        _take_start(config, folder)
        made = add_lora(model, config, log, given, folder / PISSA_FILE)
    trainable, total = made.get_nb_trainable_parameters()
    kind = str(made.active_peft_config.peft_type.value).replace("LORA", "LoRA")
    log(f"{kind}: {trainable:,} trainable parameters of {total:,} ({100 * trainable / total:.2f} %).")
    return made


def _take_start(config: RunConfig, folder: Path) -> None:
    """Of another run's checkpoint that is gone on with: what PiSSA took out of the weights for it."""
    own = folder / PISSA_FILE
    other = Path(config.resume_from_checkpoint or ".").parent / PISSA_FILE
    if config.pissa_init and not own.is_file() and other.is_file():
        partial = folder / f".{PISSA_FILE}.tmp"
        shutil.copyfile(other, partial)
        partial.replace(own)


def _freeze(model, config: RunConfig, log: Callable[[str], None]):
    layers = int(model.config.get_text_config().num_hidden_layers)
    named = dict(model.named_parameters())
    chosen = chosen_names(named, layers, config) | {name for name in named if name.startswith("score.")}
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    count, total = sum(named[name].numel() for name in chosen), sum(p.numel() for p in named.values())
    log(f"Freeze: {count:,} trainable parameters of {total:,} ({100 * count / total:.2f} %).")
    return model
