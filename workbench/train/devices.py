"""Devices as slots: each GPU is one, and without GPUs the CPU is. Which a run may take, and which are free."""

import os
from pathlib import Path

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.runs import hosts
from workbench.runs.run import list_states
from workbench.runs.state import process_alive
from workbench.storage.workspace import Workspace
from workbench.train import job_slots


def slots() -> list[str]:
    """Names of the devices of this machine: the GPUs that may be used, else `cpu`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    else:
        # the second where the first is not there: WSL, some containers
        cards = list(Path("/proc/driver/nvidia/gpus").glob("*")) or list(Path("/dev").glob("nvidia[0-9]*"))
        names = [str(number) for number in range(len(cards))]
    return names or ["cpu"]


def wanted_slots(config: dict, available: list[str]) -> tuple[list[str], int]:
    """`(slots that a run may take, how many of them it needs)`, from its options."""
    devices = str(config.get("devices") or "auto")
    if devices == "cpu" or available == ["cpu"]:
        return ["cpu"], 1
    if devices == "all":
        return available, len(available)
    if devices == "auto":
        return available, len(available) if config.get("device_map") == "auto" else 1
    named = [part.strip() for part in devices.split(",") if part.strip()]
    return named, len(named)


def check_devices(config: RunConfig) -> None:
    """Raise UserError for devices that this machine does not have: such a run would train on the CPU."""
    available = slots()
    unknown = [name for name in split_names(config.devices) if name not in (*available, "cpu", "auto", "all")]
    if unknown:
        raise UserError("devices_missing", names=unknown, known=available)


def assign(queued: list[tuple[list[str], int]], busy: set[str]) -> list[list[str]]:
    """For each queued run the slots that it gets now, in the order of the queue; an empty list: it waits.

    A run that waits for several slots keeps those behind it from taking them one by one.
    """
    taken, result = set(busy), []
    for may, needs in queued:
        free = [slot for slot in may if slot not in taken]
        result.append(free[:needs] if len(free) >= needs else [])
        taken.update(result[-1] or may)
    return result


def busy_slots(workspace: Workspace) -> set[str]:
    """Slots of the jobs and runs that are going on this host, also of a run that has said its last word but whose
    process is still there."""
    here = hosts.name()
    listed = list_states(workspace)
    states = [item.state for item in listed if item.state.pid and item.state.host == here and not item.settled]
    going = [s for s in states if s.active or process_alive(s.pid, s.pid_started, s.boot)]
    return {slot for s in going for slot in (s.devices or ",".join(slots())).split(",")} | {*job_slots.held(workspace)}


def free_devices(config: RunConfig, workspace: Workspace) -> str:
    """The devices of a run that was started past the queue: free ones if there are any."""
    machine = slots()
    allowed, needed = wanted_slots(config.model_dump(), machine)
    busy = busy_slots(workspace)
    return ",".join(sorted(allowed, key=lambda slot: slot in busy)[:needed])
