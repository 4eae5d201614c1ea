"""Start and stop runs as processes that outlive the page."""

import os
import signal
import subprocess
import sys
import time

from workbench.errors import UserError
from workbench.options import RunConfig
from workbench.runs import Run, create_run, list_runs
from workbench.state import process_alive
from workbench.train.supervise import preflight
from workbench.workspace import PROJECT, Workspace


def active_runs(workspace: Workspace) -> list[Run]:
    """Runs that have not ended, newest first."""
    return [run for run in list_runs(workspace) if run.state().active]


def launch(config: RunConfig, workspace: Workspace) -> Run:
    """Check a config, make its run directory, and start it detached.

    Raises:
        UserError: the config cannot work here, or another run is still going.
    """
    if active := active_runs(workspace):
        raise UserError(f"The run {active[0].id} is still going. Stop it first, or wait until it ends.")
    workspace.confine(config)
    preflight(config, workspace)
    run = create_run(workspace, config, confined=True)
    spawn(run, workspace)
    return run


def spawn(run: Run, workspace: Workspace) -> None:
    """Start the trainer of a run in a session of its own; returns once it has taken the run over, or died."""
    command = [
        sys.executable,
        "-m",
        "workbench",
        "train",
        str(run.path),
        "--workspace",
        str(workspace.root),
        "--quiet",
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    }
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(run.log, "ab"), env=environment,  # noqa: SIM115
        start_new_session=True, cwd=PROJECT)  # fmt: skip
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if run.stored_state().pid:
            return
        if process.poll() is not None:
            run.update(
                state="failed",
                reason="The trainer could not be started; the log says more.",
                ended=time.time(),
            )
            return
        time.sleep(0.05)


def stop(run: Run) -> str:
    """Ask a run to save a checkpoint and end. Returns a sentence saying what happens now.

    Only a process that is certainly the run's own is signalled (same pid and start time).
    """
    state = run.state()
    if not state.active:
        return f"{run.id} has ended already ({state.state})."
    if not state.pid:
        run.update(state="stopped", reason="Stopped before it started.", ended=time.time())
        return f"{run.id} had not started; it is stopped."
    if process_alive(state.pid, state.pid_started):
        os.kill(state.pid, signal.SIGTERM)
        if state.state == "running":
            return f"{run.id} saves a checkpoint and stops."
    return f"{run.id} stops."
