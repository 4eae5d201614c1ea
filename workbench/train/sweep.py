"""A sweep: runs of one group that differ in chosen options. All are checked before any is queued; the group is stopped
as a whole."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from workbench.config.options import RunConfig
from workbench.config.sweep import words
from workbench.data.preflight import preflight
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import Run, create_run, delete_run, list_runs
from workbench.storage.workspace import Workspace
from workbench.train import queue
from workbench.train.devices import check_devices
from workbench.train.estimates.check import check_start
from workbench.train.estimates.outlook import outlook


def launch(
    configs: Sequence[RunConfig],
    changes: Sequence[dict[str, Any]],
    workspace: Workspace,
    group: str = "",
    check: Callable[[RunConfig, Workspace], None] = preflight,
    started_by: str = "",
    confined: bool = True,
) -> list[Run]:
    """Check all configs, make their runs, and start what finds a free device; the rest waits in the queue.

    Args:
        changes: what each config changes, in the same order.
        confined: hold the configs' paths inside the allowed folders, for those that come from a page.
        group: the name of the group; made of the time if empty. Another sweep may have had it.

    Raises:
        UserError: one of the configs cannot work here (it says which), or a run could not be written. Nothing is queued
            then.
    """
    workspace.check_writable()
    for config, change in zip(configs, changes, strict=True):
        try:
            if confined:
                workspace.confine(config)
            check_devices(config)
            check(config, workspace)
            check_start(config, workspace)
        except UserError as error:
            raise UserError("sweep_member", changes=words(change), problem=error.message) from None
    group = group or f"sweep {datetime.now():%Y-%m-%d %H:%M:%S}"
    made: list[Run] = []
    with queue.queue_lock(workspace):  # nobody starts the first before the last is there
        try:
            for config, change in zip(configs, changes, strict=True):
                run = create_run(workspace, config, confined=confined, started_by=started_by)
                made.append(run)
                run.set_notes(group=group, title=words(change)[:80], sweep=",".join(change))
        except (OSError, UserError) as error:
            for run in made:
                run.update(state="stopped", ended=0.0)
                delete_run(run)
            if isinstance(error, UserError):
                raise
            raise UserError("run_not_written", reason=error.strerror or error) from None
    queue.start_queued(workspace)
    return made


def seconds(configs: Sequence[RunConfig], workspace: Workspace) -> float:
    """How long all runs take one after the other, as far as it can be told; 0: it cannot."""
    total = 0.0
    for config in configs:
        duration = outlook(config, workspace, with_changes=False).duration
        if duration is None or not duration.seconds:
            return 0.0
        total += duration.seconds
    return total


def told_time(seconds_: float) -> Message:
    """How long a sweep takes, for a sentence."""
    if not seconds_:
        return Message("sweep_time_unknown")
    if seconds_ < 5400:
        return Message("sweep_minutes", count=max(1, round(seconds_ / 60)))
    return Message("sweep_hours", count=seconds_ / 3600)


def of_group(workspace: Workspace, group: str) -> list[Run]:
    """The runs of a group, oldest first."""
    return [run for run in list_runs(workspace)[::-1] if group and run.notes().get("group") == group]


def stop(workspace: Workspace, group: str, mine: Callable[[Run], bool] = lambda run: True) -> tuple[int, int]:
    """Take the queued runs of a group out of the queue, then stop those that are going.

    Args:
        mine: whether a run may be stopped by who asks.

    Returns:
        How many were taken out, and how many were stopped.
    """
    runs = [run for run in of_group(workspace, group) if run.state().active and mine(run)]
    waiting = [run for run in runs if not run.state().pid]
    for run in waiting:  # first, so that none of them starts when a device is free
        queue.stop(run, workspace, kill=False)
    going = [run for run in runs if run.state().active]
    for run in going:
        queue.stop(run, workspace, kill=False)
    return len(runs) - len(going), len(going)
