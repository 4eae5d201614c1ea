"""Fine-tune language models in 4 bits and talk to the result. Exit codes: 0 done, 2 bad input, 1 failure."""

import atexit
import gc
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench import __version__
from workbench.cli import anatomy, costs, evaluation, examine, imports, models, storage, submit, sweep
from workbench.cli.data import data_app
from workbench.cli.shared import (
    WORKSPACE,
    JsonOption,
    Language,
    WorkspaceOption,
    check_run,
    from_environment,
    language,
    speak,
    tell,
    told_here,
)
from workbench.cli.users import users_app
from workbench.errors import UserError
from workbench.messages.message import Message, stored
from workbench.storage.workspace import Workspace

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override an option: --set lora_rank=16.")]
app.add_typer(data_app, name="data")
app.add_typer(users_app, name="user")
models.add_commands(app)
anatomy.add_commands(app)
costs.add_commands(app)
examine.add_commands(app)
evaluation.add_commands(app)
imports.add_commands(app)
storage.add_commands(app)
sweep.add_commands(app)
submit.add_commands(app)


def main() -> None:
    """Run a command; a UserError becomes one sentence on stderr and exit code 2."""
    speak(from_environment())
    atexit.register(gc.freeze)  # no last walk through what a process has loaded as it ends: with torch a whole second
    try:
        app()
    except UserError as error:
        tell(Message("error_line", error=error), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    lang: Annotated[
        Language | None, typer.Option("--lang", help="Print in English or Chinese (default: as the terminal asks).")
    ] = None,
) -> None:
    if lang:
        speak(lang.value)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def page(context: typer.Context):
    """Start the page; `workbench page --help` lists its options."""
    from workbench.ui.main import main as start

    sys.exit(start(context.args, language()))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, a preset's name, or a run directory to run again.")],
    set_: SetOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write only the run's log.")] = False,
    group: Annotated[str, typer.Option("--group", help="The group of runs that it joins.")] = "",
    hosts: Annotated[
        str, typer.Option("--nodes", help="Hosts that share the workspace, this one first: HOST1,HOST2:SLOTS.")
    ] = "",
    through: Annotated[str, typer.Option("--through", help="How other hosts are reached: ssh or srun.")] = "ssh",
    print_: Annotated[bool, typer.Option("--print", help="Only print the line of each host (--nodes).")] = False,
    from_queue: Annotated[str, typer.Option(hidden=True)] = "",
):
    """Fine-tune in the foreground. Ctrl-C saves a checkpoint and stops."""
    from workbench.cli import nodes as several
    from workbench.config.presets import config_file
    from workbench.config.run_config import load_run_config
    from workbench.data.preflight import preflight
    from workbench.runs.run import Run, create_run, group_name
    from workbench.runs.state import own_process, state_word
    from workbench.train import queue, slurm
    from workbench.train.supervise import supervise

    places = several.places_of(hosts, through)
    if print_:
        several.print_lines(places, config, Workspace(workspace))
        return
    space = Workspace(workspace).create()
    if (config / "run.yaml").is_file():
        if set_:
            raise UserError("set_on_run")
        run = Run(config.absolute())
        state = run.state()
        if slurm.is_own_job(state.slurm):
            slurm.take_over(run)
        elif state.active and state.pid:
            raise UserError("run_going", id=run.id)
        elif state.slurm:
            slurm.take_back(run, state)
        with slurm.failure_told(run):
            parsed = load_run_config(config / "run.yaml")
            from_queue = from_queue or slurm.given_devices(run, parsed)
            preflight(parsed, space)
            nodes = several.connected(places, parsed, space, through)
    else:
        parsed = load_run_config(config_file(config, space), set_ or [])
        check_run(parsed, space)
        nodes = several.connected(places, parsed, space, through)
        run = create_run(space, parsed, state="starting", **own_process())  # not queued: nobody else may start it
    if group := group_name(group):
        run.set_notes(group=group)
    if not quiet:
        tell(Message("run_directory", path=run.path))
    if nodes and not quiet:
        several.print_lines(nodes.places, run.path, space, nodes.port)
    several.remember(run, nodes, through)
    with several.closing(nodes):
        code = supervise(run, parsed, space, echo=not quiet, from_queue=from_queue, nodes=nodes)
    queue.start_queued(space)  # this run's devices are free now
    state = run.stored_state()
    if not quiet and state.reason:
        message = Message("state_and_reason", state=state_word(state.state), reason=state.reason)
        tell(message, file=sys.stderr if code else sys.stdout)
    raise typer.Exit(code)


@app.command()
def presets(json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """List the presets: the workspace's own, then the bundled ones."""
    from workbench.config.presets import list_presets

    listed = list_presets(Workspace(workspace))
    if json_:
        print(
            json.dumps(
                [{"name": p.name, "purpose": p.purpose, "memory": p.memory, "values": p.values} for p in listed],
                ensure_ascii=False,
            )
        )
    else:
        for preset in listed:
            print(f"{preset.name:28} {preset.purpose} ({preset.memory})" if preset.purpose else preset.name)


@app.command()
def runs(
    group: Annotated[str, typer.Option("--group", help="Only those of a group.")] = "",
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """List the runs, newest first."""
    from workbench.runs.run import list_runs
    from workbench.runs.state import state_word
    from workbench.train import slurm

    slurm.look(Workspace(workspace))
    rows = [(run, run.state()) for run in list_runs(Workspace(workspace)) if group in ("", run.notes().get("group"))]
    if json_:
        listed = [{"id": r.id, "path": str(r.path), **vars(s), "messages": s.messages()} for r, s in rows]
        print(json.dumps(listed))
    elif not rows:
        tell(Message("no_runs", folder=workspace))
    else:
        for run, state in rows:
            values = {"step": state.step, "total": state.total_steps, "reason": state.reason}
            tell(Message("run_line", id=run.id, state=state_word(state.state), **values))


@app.command()
def show(run_id: str, json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """Everything about one run: state, last figures, checkpoints, options."""
    from workbench.runs.metrics import summary
    from workbench.runs.run import find_run, folder_bytes
    from workbench.runs.state import state_word
    from workbench.train import slurm
    from workbench.train.estimates import record
    from workbench.ui.monitor import estimate_line

    slurm.look(Workspace(workspace))
    run = find_run(Workspace(workspace), run_id)
    state = run.state()
    details = {
        "id": run.id,
        "path": str(run.path),
        **vars(state),
        "messages": state.messages(),
        "notes": run.notes(),
        "last": summary(run.metrics)[0],
        "estimate": record.read(run),
        "bytes": folder_bytes(run.path),
        "checkpoints": [p.name for p in run.checkpoints()],
        "config": run.config_values(),
    }
    if json_:
        print(json.dumps(details, ensure_ascii=False))
        return
    tell(
        Message(
            "run_head",
            id=run.id,
            state=state_word(state.state),
            step=state.step,
            total=state.total_steps,
            reason=state.reason or state.warning,
        )
    )
    last = {
        k: v
        for k, v in details["last"].items()
        if k in ("loss", "eval_loss", "lr", "throughput", "peak_memory", "elapsed_time")
    }
    print("  ".join(f"{key} {value}" for key, value in (last | details["notes"]).items()))
    if expected := estimate_line(run, language()):
        print(expected)
    names = details["checkpoints"] or Message("none")
    tell(Message("run_files", size=details["bytes"] / 2**20, path=run.path, names=names))
    for key, value in details["config"].items():
        print(f"  {key}: {value}")


@app.command()
def stop(
    run_id: Annotated[str, typer.Argument()] = "",
    group: Annotated[str, typer.Option("--group", help="All runs of this group instead.")] = "",
    workspace: WorkspaceOption = WORKSPACE,
):
    """Let a run save a checkpoint and stop; a second time: kill it. A queued one leaves the queue."""
    from workbench.runs.run import find_run
    from workbench.train import queue
    from workbench.train import sweep as sweeps

    if group:
        taken, stopped = sweeps.stop(Workspace(workspace), group)
        tell(Message("group_stopped", group=group, taken=taken, stopped=stopped))
        return
    tell(queue.stop(find_run(Workspace(workspace), run_id), Workspace(workspace)))


@app.command()
def resume(
    run_id: str,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="A step, or checkpoint-STEP (default: the last).")
    ] = "",
    set_: SetOption = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Let a run that has ended go on in the background, from its last whole checkpoint or another one, over the hosts
    that it was trained over (ssh).

    More epochs for a finished run: --set num_train_epochs=5.
    """
    from workbench.config.run_config import parse_overrides
    from workbench.runs.run import find_run
    from workbench.train import elsewhere

    space = Workspace(workspace)
    tell(elsewhere.resume(find_run(space, run_id), space, checkpoint=checkpoint, overrides=parse_overrides(set_ or [])))


@app.command("note")
def note_(
    run_id: str,
    title: Annotated[str | None, typer.Option("--title", help="A name to show instead of the id.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="A note.")] = None,
    tags: Annotated[str | None, typer.Option("--tags", help="Words, separated by spaces.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="Runs that belong together have the same.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Name a run, group it, write something about it; without options: print what is written."""
    from workbench.runs.run import find_run

    run = find_run(Workspace(workspace), run_id)
    given = {"title": title, "note": text, "tags": tags, "group": group}
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        run.set_notes(**changes)
    print(json.dumps(run.notes(), ensure_ascii=False))


@app.command()
def delete(
    run_id: str,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Delete a run that has ended, with all its files."""
    from workbench.runs.run import find_run
    from workbench.train import queue

    space = Workspace(workspace)
    run = find_run(space, run_id)
    if not yes:
        typer.confirm(told_here(Message("delete_run_sure", id=run.id)), abort=True)
    tell(queue.delete(run, space))


queue_app = typer.Typer(no_args_is_help=True, help="Runs that wait for a free device: add, list, move.")
app.add_typer(queue_app, name="queue")


@queue_app.command("add")
def queue_add(
    config: Annotated[Path, typer.Argument(help="A YAML file or a preset's name.")],
    set_: SetOption = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Start a run in the background, or queue it while its devices are busy. Prints its id."""
    from workbench.config.presets import config_file
    from workbench.config.run_config import load_run_config
    from workbench.runs.run import create_run
    from workbench.train import queue

    space = Workspace(workspace).create()
    parsed = load_run_config(config_file(config, space), set_ or [])
    check_run(parsed, space)
    run = create_run(space, parsed)
    queue.start_queued(space)
    print(run.id)


@queue_app.command("list")
def queue_list(json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """The queued runs in the order in which they will start."""
    from workbench.train import queue

    waiting = [run.id for run in queue.queue(Workspace(workspace))]
    print(json.dumps(waiting) if json_ else "\n".join(waiting) or told_here(Message("queue_empty")))


@queue_app.command("move")
def queue_move(run_id: str, places: int, workspace: WorkspaceOption = WORKSPACE):
    """Move a queued run: `move ID -- -1` one place toward the front, `move ID 1` one toward the end."""
    from workbench.runs.run import find_run
    from workbench.train import queue

    space = Workspace(workspace)
    tell(queue.move(find_run(space, run_id), space, places))


@app.command()
def options():
    """Print the table of all options (docs/options.md)."""
    from workbench.config.fields import options_table

    print(options_table(), end="")


@app.command()
def datasets(dataset_dir: str = "data", json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """List the datasets of a folder; those that cannot be read with the reason."""
    from workbench.data.registry import registries
    from workbench.storage.workspace import dataset_folder

    space = Workspace(workspace)
    listed = registries(dataset_folder(dataset_dir, space), space).values()
    if json_:
        print(json.dumps([_as_json(d) for d in listed]))
    else:
        for d in listed:
            print(f"{d.name:24} {told_here(d.problem) or d.path or d.hub}")


def _as_json(d) -> dict:
    """A dataset of the list, for JSON."""
    return {"name": d.name, "path": str(d.path or d.hub or ""), "problem": d.problem, "message": stored(d.problem)}
