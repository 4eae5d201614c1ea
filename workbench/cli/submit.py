"""The command that gives a run to Slurm."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, WorkspaceOption, tell
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.workspace import Workspace


def add_commands(app: typer.Typer) -> None:
    """Put this module's command into the command line."""
    app.command()(submit)


def submit(
    config: Annotated[
        Path, typer.Argument(help="A YAML file, a preset's name, or the directory of a run that has ended.")
    ],
    slurm: Annotated[bool, typer.Option("--slurm", help="As a job of Slurm (the only kind so far).")] = False,
    partition: Annotated[str, typer.Option("--partition", help="As sbatch has it.")] = "",
    account: Annotated[str, typer.Option("--account", help="As sbatch has it.")] = "",
    time: Annotated[str, typer.Option("--time", help="As sbatch has it. Before it is up, a checkpoint is saved.")] = "",
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of each node.")] = 0,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Nodes that train together.")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", min=0, help="CPU cores of each node.")] = 0,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", help='More for sbatch: --sbatch "--constraint=a100". Repeatable.'),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option("--setup", help='Shell before it: --setup "module load cuda". Repeatable.'),
    ] = None,
    print_: Annotated[bool, typer.Option("--print", help="Only print the batch file.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override an option: --set lora_rank=16.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Give a run to Slurm: its batch file lies in the run's folder. Prints the run's id."""
    from workbench.config.presets import config_file
    from workbench.config.run_config import load_run_config, parse_overrides
    from workbench.data.preflight import preflight
    from workbench.runs.run import Run
    from workbench.train import elsewhere, queue
    from workbench.train import slurm as jobs
    from workbench.train.nodes import check_nodes

    if not slurm:
        raise UserError("submit_where")
    wishes = jobs.Wishes(partition, account, time, nodes, gpus, cpus, tuple(sbatch or ()), tuple(setup or ()))
    wishes.check()
    space = Workspace(workspace)
    again = (config / "run.yaml").is_file()
    if print_:
        run = Run(config.absolute()) if again else Run(space.runs / "RUN")
        if not again:
            load_run_config(config_file(config, space), set_ or [])
        print(jobs.batch_file(run, space, wishes), end="")
        return
    jobs.check_slurm()
    space.create()
    parsed = load_run_config(config / "run.yaml" if again else config_file(config, space), [] if again else set_ or [])
    if again:
        if nodes > 1:
            check_nodes(parsed)
        preflight(parsed, space)
        run = Run(config.absolute())
        queue.resume(run, space, overrides=parse_overrides(set_ or []), in_slurm=True)
        job = jobs.submit(run, space, wishes)
    else:
        run, job = elsewhere.submit(parsed, space, wishes)
    print(run.id)
    tell(Message("slurm_submitted", job=job))
