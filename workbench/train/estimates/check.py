"""What would end a run after it was started, found before it is queued: names that the model does not have, a disk or a
memory that is too small."""

import math
import shutil
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.anatomy.units import memory
from workbench.models.cost.device import host as this_host
from workbench.models.cost.placement import check_host
from workbench.storage.workspace import Workspace
from workbench.train.estimates.outlook import Outlook, outlook

_BESIDE = 8 << 20  # bytes of a checkpoint beside its weights
GIB = 1 << 30


def check_start(config: RunConfig, workspace: Workspace, result: Outlook | None = None) -> list[Message]:
    """Warnings about a run that may not go well: memory that is probably too small, a disk that may fill.

    Args:
        result: what is to be expected of it, where that is known already.

    Raises:
        UserError: it cannot go well: a wrong `lora_target`, weights alone larger than the memory, no room for two
            checkpoints.
    """
    if not config.do_train or config.deepspeed:  # estimates are of a device that holds everything
        return []
    result = result or outlook(config, workspace, with_changes=False)
    if result.estimate is None:
        return []
    if result.unknown_modules is not None:
        raise UserError(result.unknown_modules)
    if config.finetuning_type in ("lora", "oft") and not config.adapter_name_or_path and result.unknown_targets:
        told = {"model": result.model.partition(" (")[0], "names": result.target_names}
        option = f"{config.finetuning_type}_target"
        raise UserError("lora_target_unknown", option=option, targets=list(result.unknown_targets), **told)
    device, parts = result.device, result.estimate.parts
    weights = sum(parts.get(name, 0) for name in ("weights", "constants"))
    if weights > device.memory:
        advice = Message("cost_smaller_model" if config.quantization_bit == 4 else "cost_use_4_bit")
        told = {"weights": memory(weights), "memory": memory(device.memory), "device": device.name}
        raise UserError("cost_impossible", **told, advice=advice)
    if device.gpu:
        check_host(result.estimate.facts.get("host_bytes", 0), free=this_host().memory)
    warnings = []
    if not result.fits_here:
        needed = {"total": memory(result.total), "memory": memory(device.memory), "device": device.name}
        warnings.append(Message("cost_too_large", **needed))
    one, count = checkpoint_bytes(result), checkpoints(config, result)
    free = _free(workspace, config)
    need = Message("checkpoints_need", count=count, size=one / GIB)
    if config.save_strategy != "no" and free < 2 * one:
        raise UserError("disk_too_small", free=free / GIB, need=need)
    if free < count * one:
        warnings.append(Message("disk_may_fill", free=free / GIB, need=need))
    return warnings


def checkpoint_bytes(result: Outlook) -> int:
    """Of one checkpoint: what is trained, and the optimizer's state."""
    if result.estimate is None:
        return 0
    parts = result.estimate.parts
    return result.estimate.facts.get("trained", 0) + parts.get("optimizer", 0) + _BESIDE


def checkpoints(config: RunConfig, result: Outlook) -> int:
    """How many will lie on the disk at the most, as far as the number of steps is known; the last one always."""
    steps = result.duration.steps if result.duration else 0
    count = 1
    if config.save_strategy == "steps" and steps:
        count = math.ceil(steps / config.every("save_steps", steps))
    elif config.save_strategy == "epoch":
        count = math.ceil(config.num_train_epochs)
    return min(count, (config.save_total_limit or count) + 1)


def _free(workspace: Workspace, config: RunConfig) -> int:
    """Bytes of the disk that the run writes to."""
    place = workspace.root / (config.output_dir or "")
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(Path(place)).free
