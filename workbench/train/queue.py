"""The queue and the life of runs: start, stop, resume, reorder. Runs are processes that outlive the page.

Queued runs are started by whoever looks next: the page,
the command line, or the supervisor of a run that has just ended. A lock on the workspace lets one look at a time, and
a run's own lock makes a second process of the same run impossible.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.config.run_config import to_yaml, validated
from workbench.data.preflight import preflight
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import hosts, job
from workbench.runs.heartbeat import ask_stop
from workbench.runs.run import Run, create_run, delete_run, list_states, step_of
from workbench.runs.state import StateDirectory, process_alive, state_word
from workbench.storage.files import write_atomically
from workbench.storage.locks import is_held, locked
from workbench.storage.workspace import Workspace
from workbench.train import job_slots, slurm
from workbench.train.devices import assign, busy_slots, check_devices, slots, wanted_slots
from workbench.train.estimates.check import check_start

JOB_LOOK = 1.0  # seconds between two looks of a job that waits


def queue(workspace: Workspace) -> list[Run]:
    """The runs that are queued on this host, in the order in which they will start."""
    here = hosts.name()
    queued = [item for item in list_states(workspace) if item.state.state == "queued" and not item.state.pid]
    waiting = [item for item in queued if item.state.host == here and not item.state.slurm]
    return [item.run for item in sorted(waiting, key=lambda item: (item.state.position, item.run.id))]


def queue_lock(workspace: Workspace):
    """Held by whoever starts, moves or takes out queued runs."""
    return locked(workspace.create().root / ".queue.lock")


def launch(
    config: RunConfig,
    workspace: Workspace,
    parent: str = "",
    check: Callable[[RunConfig, Workspace], None] = preflight,
    started_by: str = "",
    group: str = "",
) -> Run:
    """Check a config, make its run directory, and start it, or queue it while its devices are busy.

    Args:
        check: looks at model and data; a page lets its data worker do that.
        started_by: the user who starts it.
        group: the group of runs that it belongs to; none if empty.

    Raises:
        UserError: the config cannot work here.
    """
    workspace.check_writable()
    workspace.confine(config)
    check_devices(config)
    check(config, workspace)
    check_start(config, workspace)
    run = create_run(workspace, config, confined=True, started_by=started_by)
    if named := {key: text for key, text in (("parent", parent), ("group", group)) if text}:
        run.set_notes(**named)
    start_queued(workspace)
    return run


def start_queued(workspace: Workspace) -> list[Run]:
    """Start the queued runs whose devices are free; returns them."""
    if not queue(workspace):
        return []
    started = []
    with queue_lock(workspace):
        waiting = _in_turn(workspace)
        for (_, run, _), given in zip(
            waiting, assign([wish for *_, wish in waiting], busy_slots(workspace)), strict=True
        ):
            if run is not None and given and not is_held(run.path / ".lock"):  # somebody may be starting it by hand
                _spawn(run, workspace, ",".join(given))
                started.append(run)
    return started


Waiting = tuple[float, Run | None, tuple[list[str], int]]


def _in_turn(workspace: Workspace) -> list[Waiting]:
    """Queued runs and, as None, jobs that wait for a device: `(position, run, wish)` in the order of their turn."""
    available = slots()
    runs: list[Waiting] = [
        (run.stored_state().position, run, wanted_slots(run.config_values(), available)) for run in queue(workspace)
    ]
    jobs: list[Waiting] = [(position, None, (available, 1)) for position, _ in job_slots.waiting(workspace)]
    return sorted(runs + jobs, key=lambda entry: entry[0])


def job_waits_for(wish: tuple[list[str], int], workspace: Workspace, position: float) -> tuple[list[str], list[str]]:
    """`(slots that a job gets now, ids of the runs and jobs that it waits for)`; it came at `position`."""
    before = [entry for entry in _in_turn(workspace) if entry[0] < position]
    busy = busy_slots(workspace)
    given = assign([*(wish_ for *_, wish_ in before), wish], busy)[-1]
    if given:
        return given, []
    return [], [*_holders(wish[0], workspace), *(run.id for _, run, _ in before if run is not None)]


def take_slots(directory: StateDirectory, devices: str, workspace: Workspace) -> str:
    """Wait until a job has its device, telling what for in its state; the devices that it then has.

    Args:
        devices: `auto`, `cpu`, or GPUs, as an engine's option.
    """
    position, told, waits = time.time(), None, True
    directory.update(position=position)
    while waits:
        with queue_lock(workspace):
            given, holders = job_waits_for(wanted_slots({"devices": devices}, slots()), workspace, position)
            if given:
                directory.update(devices=",".join(given), phase="")
                waits = False
        if waits:
            if holders != told:
                directory.update(phase=Message("job_waits", ids=holders) if holders else Message("job_waits_device"))
                told = holders
            time.sleep(JOB_LOOK)
    return ",".join(given)


def _holders(wanted: list[str], workspace: Workspace) -> list[str]:
    """Ids of the runs and jobs on any of these devices, the oldest first."""
    here, listed = hosts.name(), list_states(workspace)
    going = [item for item in listed if item.state.active and item.state.pid and item.state.host == here]
    runs = [item.run.id for item in going if {*(item.state.devices or ",".join(wanted)).split(",")} & {*wanted}]
    jobs = job_slots.held(workspace)
    return runs[::-1] + list(dict.fromkeys(jobs[slot] for slot in wanted if slot in jobs))


def _spawn(run: Run, workspace: Workspace, devices: str) -> None:
    """Start the trainer of a run in a session of its own; returns once it has taken the run over, or died."""
    state = run.stored_state()
    process = job.start(
        run,
        "workbench",
        "train",
        run.path,
        "--workspace",
        workspace.root,
        "--quiet",
        "--from-queue",
        devices,
        stdout=subprocess.DEVNULL,
        cwd=state.cwd if Path(state.cwd or "-").is_dir() else None,
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if run.stored_state().pid:
            return
        if process.poll() is not None and run.stored_state().state == "queued" and not is_held(run.path / ".lock"):
            run.update(state="failed", reason=Message("trainer_not_started"), ended=time.time())
            return
        time.sleep(0.02)


def waits_for(run: Run, workspace: Workspace) -> tuple[int, list[str]]:
    """`(place in the queue from 1 on, ids of the runs and jobs on the devices that it may take)`; place 0: it does not
    wait."""
    waiting = queue(workspace)
    if run not in waiting:
        return 0, []
    wanted, _ = wanted_slots(run.config_values(), slots())
    return waiting.index(run) + 1, _holders(wanted, workspace)


def stop(run: Run, workspace: Workspace, *, kill: bool | None = None) -> Message:
    """Ask a run to save a checkpoint and end; asked again, it is killed. Returns a sentence saying what happens now.

    Only a process that is certainly the run's own is signaled (same pid and start). One of another host is asked
    through a file.

    Args:
        kill: whether asking again kills the run; by default it does. A page that asks its user first says which.
    """
    workspace.check_writable()
    state = run.state()
    if not state.active:
        return Message("run_ended_already", id=run.id, state=state_word(state.state))
    if state.slurm and not state.pid:
        return _cancel(run, state.slurm, workspace)
    if not state.pid:
        with queue_lock(workspace):
            state = run.state()
            if not state.pid:
                if state.active:
                    run.update(state="stopped", reason=Message("taken_out"), ended=time.time())
                return Message("run_taken_out", id=run.id)
    again = (run.path / ".stopping").exists()
    if again and kill is False:
        return Message("run_is_stopping", id=run.id)
    if not hosts.is_here(state.boot):
        try:
            (run.path / ".stopping").touch()
            ask_stop(run.path)
        except OSError as error:  # another user's folder
            raise UserError("run_stop_unwritten", id=run.id, host=state.host, reason=error.strerror) from None
        return Message("run_kill_asked" if again else "run_stop_asked", id=run.id, host=state.host)
    trainer_alone = not _alive(state.pid, state.pid_started, state.boot) or state.pid == state.trainer_pid
    if trainer_alone and _alive(state.trainer_pid, state.trainer_started, state.boot):  # its supervisor is gone
        (run.path / ".stopping").touch()
        os.kill(state.trainer_pid, signal.SIGKILL if again else signal.SIGTERM)
        if again:
            _wait_until(lambda: not _alive(state.trainer_pid, state.trainer_started, state.boot))
            run.update(state="stopped", reason=Message("killed_by_stop"), ended=time.time())
            return Message("run_killed", id=run.id)
        return Message("run_stopping", id=run.id)
    if _alive(state.pid, state.pid_started, state.boot):
        (run.path / ".stopping").touch()
        os.kill(state.pid, signal.SIGTERM)
        if again:
            return Message("run_killed", id=run.id)
        if state.state == "running":
            return Message("run_stopping", id=run.id)
    return Message("run_stops", id=run.id)


def _cancel(run: Run, job: str, workspace: Workspace) -> Message:
    """Take a run that has not begun out of Slurm."""
    slurm.cancel(job)
    with queue_lock(workspace):
        state = run.state()
        if state.active and not state.pid:
            run.update(state="stopped", reason=Message("slurm_cancelled", id=run.id, job=job), ended=time.time())
    return Message("slurm_cancelled", id=run.id, job=job)


def _alive(pid: int | None, started: float | None, boot: str) -> bool:
    return bool(pid) and started is not None and process_alive(pid, started, boot)


def _wait_until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def resume(
    run: Run,
    workspace: Workspace,
    *,
    checkpoint: str = "",
    overrides: dict | None = None,
    in_slurm: bool = False,
    over_hosts: bool = False,
) -> Message:
    """Queue a run that has ended to go on from a checkpoint, its last one by default. Returns what happens, in a
    sentence.

    Args:
        checkpoint: `checkpoint-N`, or N.
        overrides: options to change, such as more epochs; the old file stays beside the new one.
        in_slurm, over_hosts: it is given to Slurm or started over several hosts next, and is in no queue here.

    Raises:
        UserError: the run is going, has no such checkpoint, does not go with the options, or needs code that this
            server does not run.
    """
    workspace.check_writable()
    if workspace.confined:  # the run may be of a time, or of a command line, that allowed more
        kept = run.config_values()
        workspace.check_code(kept.get("trust_remote_code") or kept.get("trust_reward_code"))
    with queue_lock(workspace):
        run.check_ended("run_going_stop")
        checkpoints = run.checkpoints()
        name = checkpoint if not checkpoint.isdigit() else f"checkpoint-{checkpoint}"
        if name and name not in [p.name for p in checkpoints]:
            names = [p.name for p in checkpoints] or Message("none")
            raise UserError("checkpoint_missing", id=run.id, name=checkpoint, names=names)
        if overrides:
            text = to_yaml(validated(run.config_values() | overrides).model_dump(exclude_unset=True))
            shutil.copyfile(
                run.path / "run.yaml", run.path / f"run-until-{step_of(checkpoints[-1]) if checkpoints else 0}.yaml"
            )
            write_atomically(run.path / "run.yaml", text)
        name = name or (checkpoints[-1].name if checkpoints else "")
        run.update(
            state="queued",
            pid=None,
            pid_started=None,
            boot="",
            host="" if in_slurm or over_hosts else hosts.name(),
            slurm=slurm.SUBMITTING if in_slurm else "",
            ended=None,
            exit_code=None,
            reason="",
            phase="",
            progress=0.0,
            resume=name,
            position=time.time(),
            devices="",
            trainer_pid=None,
            trainer_started=None,
        )
    if not (in_slurm or over_hosts):
        start_queued(workspace)
    state = run.state()
    waits = state.state == "queued" and not state.pid
    return Message("run_waits" if waits else "run_goes_on", id=run.id, start=name or Message("the_beginning"))


def delete(run: Run, workspace: Workspace) -> Message:
    """Delete a run with all its files. Raises UserError while it has not ended."""
    workspace.check_writable()
    delete_run(run)
    return Message("run_deleted", id=run.id)


def move(run: Run, workspace: Workspace, places: int) -> Message:
    """Move a queued run toward the front (negative) or the end of the queue."""
    workspace.check_writable()
    with queue_lock(workspace):
        order = queue(workspace)
        state = run.state()
        if state.state == "queued" and not state.pid and state.host != hosts.name():
            raise UserError("queued_elsewhere", id=run.id, host=state.host or "Slurm")
        if run not in order:
            raise UserError("not_in_queue", id=run.id, state=state_word(run.state().state))
        old = order.index(run)
        new = min(max(0, old + places), len(order) - 1)
        order.insert(new, order.pop(old))
        positions = sorted(other.stored_state().position for other in order)
        for number, other in enumerate(order):
            other.update(position=positions[number] + number * 1e-6)
    return Message("place_in_queue", id=run.id, place=new + 1, total=len(order))
