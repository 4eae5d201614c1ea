"""Runs that are not for this machine alone: given to Slurm, or trained over several hosts. For pages and commands."""

import subprocess
import time
from collections.abc import Callable

from workbench.config.options import RunConfig
from workbench.data.preflight import preflight
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import job
from workbench.runs.run import Run, create_run
from workbench.storage.workspace import Workspace
from workbench.train import queue, slurm
from workbench.train.nodes import CHECK_SECONDS, Nodes, check_nodes, named_places, parse_nodes

Check = Callable[[RunConfig, Workspace], None]


def submit(
    config: RunConfig,
    workspace: Workspace,
    wishes: slurm.Wishes,
    *,
    check: Check = preflight,
    confined: bool = False,
    started_by: str = "",
    notes: dict[str, str] | None = None,
) -> tuple[Run, str]:
    """Check a config, make its run, and give it to Slurm: the run, and the number of the job.

    Args:
        check: looks at model and data; a page lets its data worker do that.
        confined: hold the config's paths inside the allowed folders, and what is asked of sbatch to what does no harm:
            for what comes from a page.
        notes: of the run, such as its group.

    Raises:
        UserError: a wish cannot stand in a batch file, there is no Slurm here or it does not take the job (the run is
            `failed` then), or the config cannot work.
    """
    workspace.check_writable()
    if confined:
        wishes.confine()
        workspace.confine(config)
    wishes.check()
    slurm.check_slurm()
    if wishes.nodes > 1:
        check_nodes(config)
    check(config, workspace)
    run = create_run(workspace, config, confined=confined, started_by=started_by, host="", slurm=slurm.SUBMITTING)
    _note(run, notes)
    return run, slurm.submit(run, workspace, wishes)


def launch_over(
    hosts: str,
    config: RunConfig,
    workspace: Workspace,
    *,
    check: Check = preflight,
    started_by: str = "",
    notes: dict[str, str] | None = None,
) -> Run:
    """Check a page's config and the hosts, make the run, and start it there: `HOST1,HOST2:4`, this one first. The
    process outlives the caller. Takes as long as the hosts take to answer.

    Raises:
        UserError: a host cannot be reached or does not go with the others, or the config cannot work. There is no run
            then.
    """
    workspace.check_writable()
    workspace.confine(config)
    places = parse_nodes(hosts)
    check_nodes(config)
    check(config, workspace)
    Nodes(places, workspace, "ssh").close()  # the process connects anew
    run = create_run(workspace, config, confined=True, started_by=started_by, host="")  # in nobody's queue
    _note(run, notes)
    _start_over(run, workspace, named_places(places))
    return run


def resume(run: Run, workspace: Workspace, *, checkpoint: str = "", overrides: dict | None = None) -> Message:
    """Let a run that has ended go on where it was trained: over its hosts, or in this host's queue (`queue.resume`).

    Raises:
        UserError: as `queue.resume`; a host cannot be reached or does not go with the others, or this is not the first
            of them. Then nothing has changed.
    """
    named = run.stored_state().nodes
    if not named:
        return queue.resume(run, workspace, checkpoint=checkpoint, overrides=overrides)
    run.check_ended("run_going_stop")
    Nodes(parse_nodes(named), workspace, "ssh").close()  # the process connects anew
    said = queue.resume(run, workspace, checkpoint=checkpoint, overrides=overrides, over_hosts=True)
    _start_over(run, workspace, named)
    return Message("run_goes_on_over", id=run.id, start=said.values["start"], hosts=named)


def _start_over(run: Run, workspace: Workspace, named: str) -> None:
    """Start the process that trains over these hosts; returns when it has taken the run."""
    arguments = ["train", run.path, "--workspace", workspace.root, "--quiet", "--nodes", named]
    process = job.start(run, "workbench", *arguments, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 2 * CHECK_SECONDS
    while time.monotonic() < deadline and not run.stored_state().pid:
        if process.poll() is not None:
            state = run.stored_state()
            if state.state == "queued":
                run.update(state="failed", reason=Message("trainer_not_started"), ended=time.time())
            if state.state == "failed":
                raise UserError(state.reason)
            break
        time.sleep(0.05)


def _note(run: Run, notes: dict[str, str] | None) -> None:
    if given := {key: text for key, text in (notes or {}).items() if text}:
        run.set_notes(**given)
