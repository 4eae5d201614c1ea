"""Fine-tune language models in 4 bits and talk to the result. Exit codes: 0 done, 2 bad input, 1 failure."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from workbench import __version__
from workbench.cli import examine, models
from workbench.cli.data import data_app
from workbench.cli.shared import WORKSPACE, JsonOption, WorkspaceOption
from workbench.errors import UserError
from workbench.storage.workspace import Workspace

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override an option: --set lora_rank=16.")]
app.add_typer(data_app, name="data")
models.add_commands(app)
examine.add_commands(app)


def main() -> None:
    """Run a command; a UserError becomes one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
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
) -> None:
    pass


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def page(context: typer.Context):
    """Start the page; `workbench page --help` lists its options."""
    from workbench.ui.main import main as start

    sys.exit(start(context.args))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, a preset's name, or a run directory to run again.")],
    set_: SetOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write only the run's log.")] = False,
    from_queue: Annotated[str, typer.Option(hidden=True)] = "",
):
    """Fine-tune in the foreground. Ctrl-C saves a checkpoint and stops."""
    from workbench.config.presets import config_file
    from workbench.config.run_config import load_run_config
    from workbench.data.preflight import preflight
    from workbench.runs.run import Run, create_run
    from workbench.runs.state import own_process
    from workbench.train import queue
    from workbench.train.devices import check_devices
    from workbench.train.supervise import supervise

    space = Workspace(workspace).create()
    if (config / "run.yaml").is_file():
        if set_:
            raise UserError("--set does not change a run that exists. Copy its run.yaml and train that.")
        run = Run(config.absolute())
        if run.state().active and run.stored_state().pid:
            raise UserError(f"The run {run.id} is still going.")
        parsed = load_run_config(config / "run.yaml")
        preflight(parsed, space)
    else:
        parsed = load_run_config(config_file(config, space), set_ or [])
        preflight(parsed, space)
        check_devices(parsed)
        run = create_run(space, parsed, state="starting", **own_process())  # not queued: nobody else may start it
    if not quiet:
        print(f"Run directory: {run.path}")
    code = supervise(run, parsed, space, echo=not quiet, from_queue=from_queue)
    queue.start_queued(space)  # this run's devices are free now
    state = run.stored_state()
    if not quiet and state.reason:
        print(f"{state.state}: {state.reason}", file=sys.stderr if code else sys.stdout)
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
def runs(json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """List the runs, newest first."""
    from workbench.runs.run import list_runs

    rows = [(run, run.state()) for run in list_runs(Workspace(workspace))]
    if json_:
        print(json.dumps([{"id": run.id, "path": str(run.path), **vars(state)} for run, state in rows]))
    elif not rows:
        print(f"No runs yet in {workspace}. Start one: python -m workbench train smollm2-demo")
    else:
        for run, state in rows:
            print(f"{run.id:44} {state.state:9} step {state.step}/{state.total_steps}  {state.reason}")


@app.command()
def show(run_id: str, json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """Everything about one run: state, last figures, checkpoints, options."""
    from workbench.runs.metrics import MetricsReader
    from workbench.runs.run import find_run, folder_bytes

    run = find_run(Workspace(workspace), run_id)
    reader = MetricsReader(run.metrics)
    reader.update()
    details = {
        "id": run.id,
        "path": str(run.path),
        **vars(run.state()),
        "notes": run.notes(),
        "last": reader.last,
        "bytes": folder_bytes(run.path),
        "checkpoints": [p.name for p in run.checkpoints()],
        "config": run.config_values(),
    }
    if json_:
        print(json.dumps(details, ensure_ascii=False))
        return
    print(
        f"{details['id']}  {details['state']}  step {details['step']}/{details['total_steps']} "
        f" {details['reason'] or details['warning']}"
    )
    last = {
        k: v
        for k, v in reader.last.items()
        if k in ("loss", "eval_loss", "lr", "throughput", "peak_memory", "elapsed_time")
    }
    print("  ".join(f"{key} {value}" for key, value in (last | details["notes"]).items()))
    print(
        f"{details['bytes'] / 2**20:.1f} MiB in {run.path}; checkpoints: {', '.join(details['checkpoints']) or 'none'}"
    )
    for key, value in details["config"].items():
        print(f"  {key}: {value}")


@app.command()
def stop(run_id: str, workspace: WorkspaceOption = WORKSPACE):
    """Let a run save a checkpoint and stop; a second time: kill it. A queued one leaves the queue."""
    from workbench.runs.run import find_run
    from workbench.train import queue

    print(queue.stop(find_run(Workspace(workspace), run_id), Workspace(workspace)))


@app.command()
def resume(
    run_id: str,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="A step, or checkpoint-STEP (default: the last).")
    ] = "",
    set_: SetOption = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Let a run that has ended go on in the background, from its last whole checkpoint or another one.

    More epochs for a finished run: --set num_train_epochs=5.
    """
    from workbench.config.run_config import parse_overrides
    from workbench.runs.run import find_run
    from workbench.train import queue

    space = Workspace(workspace)
    print(queue.resume(find_run(space, run_id), space, checkpoint=checkpoint, overrides=parse_overrides(set_ or [])))


@app.command("note")
def note_(
    run_id: str,
    title: Annotated[str | None, typer.Option("--title", help="A name to show instead of the id.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="A note.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Name a run or write something about it; without options: print what is written."""
    from workbench.runs.run import find_run

    run = find_run(Workspace(workspace), run_id)
    changes = {key: value for key, value in (("title", title), ("note", text)) if value is not None}
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
        typer.confirm(f"Delete {run.id} and all its files?", abort=True)
    print(queue.delete(run, space))


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
    from workbench.data.preflight import preflight
    from workbench.runs.run import create_run
    from workbench.train import queue
    from workbench.train.devices import check_devices

    space = Workspace(workspace).create()
    parsed = load_run_config(config_file(config, space), set_ or [])
    check_devices(parsed)
    preflight(parsed, space)
    run = create_run(space, parsed)
    queue.start_queued(space)
    print(run.id)


@queue_app.command("list")
def queue_list(json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """The queued runs in the order in which they will start."""
    from workbench.train import queue

    waiting = [run.id for run in queue.queue(Workspace(workspace))]
    print(json.dumps(waiting) if json_ else "\n".join(waiting) or "The queue is empty.")


@queue_app.command("move")
def queue_move(run_id: str, places: int, workspace: WorkspaceOption = WORKSPACE):
    """Move a queued run: `move ID -- -1` one place toward the front, `move ID 1` one toward the end."""
    from workbench.runs.run import find_run
    from workbench.train import queue

    space = Workspace(workspace)
    print(queue.move(find_run(space, run_id), space, places))


def named_file(name: str, source: str) -> str | None:
    """The text of a file that an imported command names: seen from here, or from the command's file or a folder above
    it."""
    given = Path(source) if source != "-" and len(source) < 1000 and "\n" not in source else None
    folders = [Path()] + (list(given.resolve().parents)[:6] if given and given.is_file() else [])
    for folder in folders:
        if (folder / name).is_file():
            try:
                return (folder / name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{folder / name} cannot be read as text: {error}.") from None
    return None


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(help="A whole llamafactory-cli command, a file with one, a YAML file, or - for stdin."),
    ],
    json_: JsonOption = False,
):
    """Turn a LLaMA-Factory command or YAML into a config: YAML on stdout, what was left out on stderr."""
    from workbench.config.llamafactory import import_text
    from workbench.config.run_config import to_yaml

    if source == "-":
        text = sys.stdin.read()
    elif len(source) < 1000 and "\n" not in source and Path(source).is_file():
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source} cannot be read as text: {error}.") from None
    else:
        text = source
    result = import_text(text, lambda name: named_file(name, source))
    if json_:
        print(json.dumps(asdict(result), ensure_ascii=False))
        return
    if result.purpose != "train":
        print(f"# this is for {'chatting' if result.purpose == 'chat' else 'exporting'}:\n{result.command()}")
    else:
        print(to_yaml(result.values), end="")
    if result.defaults:
        print("# LLaMA-Factory's defaults for what was left out")
        print(to_yaml(result.defaults), end="")
    for key, value, why in result.left_out:
        print(f"Not taken over: {key or 'text'} = {value} ({why})", file=sys.stderr)


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
        print(json.dumps([{"name": d.name, "path": str(d.path or d.hub or ""), "problem": d.problem} for d in listed]))
    else:
        for d in listed:
            print(f"{d.name:24} {d.problem or d.path or d.hub}")
