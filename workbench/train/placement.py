"""What `weights_on: auto` means for a run or a chat on this machine, decided before anything is loaded."""

import os
from collections.abc import Callable
from typing import TypeVar

from workbench.config.conflicts import why_not_shared, why_on_card
from workbench.config.options import EngineConfig, ModelOptions, RunConfig
from workbench.errors import UserError
from workbench.models.anatomy.units import memory
from workbench.models.cost.device import Device, device_for
from workbench.models.cost.known import config_of
from workbench.models.cost.placement import check_host
from workbench.storage.workspace import Workspace
from workbench.train import launch
from workbench.train.estimates.outlook import Outlook, chat_outlook, outlook

Kind = TypeVar("Kind", bound=ModelOptions)


def placed(config: RunConfig, workspace: Workspace, log: Callable[[str], None]) -> RunConfig:
    """A run's options with `weights_on: card`, `host` or `shared`; says so where `auto` is not `card`.

    Raises:
        UserError: `host` or `shared` cannot be done: with these options, by so many processes, with the memory that is
            free.
    """
    wanted, alone = config.weights_on, launch.count() == 1
    if wanted == "card":
        return config
    if wanted == "shared" and alone:
        raise UserError("shared_alone")
    if wanted == "host" and not alone:
        raise UserError("host_with", what="several processes")
    what = why_on_card(config) if alone else why_not_shared(config)
    if what:
        if wanted == "shared":
            raise UserError("shared_with", what=what)
        if wanted == "host":
            raise UserError("host_with", what=what)
        return config.model_copy(update={"weights_on": "card"})
    count = launch.count()
    return _decided(
        config, workspace, lambda card: outlook(config, workspace, card, with_changes=False, processes=count), log
    )


def placed_chat(config: EngineConfig, workspace: Workspace, log: Callable[[str], None]) -> EngineConfig:
    """The same of a model that is loaded for chat."""
    split = "," in config.devices
    what = "several GPUs" if split else "quantization_bit: 8" if config.quantization_bit == 8 else ""
    if config.weights_on == "card" or what:
        if what and config.weights_on == "host":
            raise UserError("host_with", what=what)
        return config.model_copy(update={"weights_on": "card"})
    return _decided(config, workspace, lambda card: chat_outlook(config, "", workspace, card), log)


def fits_from_host(config: EngineConfig, workspace: Workspace, free: float) -> bool:
    """Whether a model for chat will have its layers' weights in host memory, and what stays fits into `free` GiB of the
    card. Raises UserError: the host has no room for them."""
    result = chat_outlook(config, "", workspace)
    if result.estimate is None or not result.device.gpu or result.estimate.facts.get("weights_on") != "host":
        return False
    check_host(result.estimate.facts["host_bytes"])
    return result.total - result.estimate.parts["cache"] <= free * 2**30


def _decided(
    config: Kind, workspace: Workspace, expected: Callable[[Device], Outlook], log: Callable[[str], None]
) -> Kind:
    device, facts = _device(config.devices), {}  # type: ignore[attr-defined]
    if config.weights_on == "auto" and not device.gpu:
        return config.model_copy(update={"weights_on": "card"})
    try:
        if (estimate := expected(device).estimate) is not None:
            facts = estimate.facts
    except (UserError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        log(f"There is no estimate of what this takes: {' '.join(str(error).split())[:200]}")
    chosen = facts.get("weights_on") or ("card" if config.weights_on == "auto" else config.weights_on)
    if chosen in ("host", "shared"):
        packing = 0 if _packed_already(config, workspace) else facts.get("packing_bytes", 0)
        # to be divided a model is read by all processes of a host at once
        check_host(facts.get("host_bytes", 0) * (launch.count_here() if chosen == "shared" else 1), packing)
        if config.weights_on == "auto":
            where = {
                "host": "stay in host memory (weights_on: host)",
                "shared": f"are divided among {launch.count()} devices (weights_on: shared)",
            }[chosen]
            log(
                f"By the estimate the weights do not fit into the {memory(device.memory)} of {device.name}: those of"
                f" the layers ({memory(facts['host_bytes'])}) {where}."
            )
    return config.model_copy(update={"weights_on": chosen})


def _packed_already(config: ModelOptions, workspace: Workspace) -> bool:
    """Whether the model's files hold weights in 4 bits."""
    try:
        return bool(config_of(config.model_name_or_path or "", workspace).config.get("quantization_config"))
    except UserError:
        return False


def _device(devices: str) -> Device:
    """The GPU that this process sees, where it is told one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return device_for(devices)
    names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return device_for(",".join(names) or "cpu")
