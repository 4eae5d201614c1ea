"""The command that queues a sweep."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, WorkspaceOption, tell
from workbench.messages.message import Message
from workbench.storage.workspace import Workspace


def add_commands(app: typer.Typer) -> None:
    """Put this module's command into the command line."""
    app.command()(sweep)


def sweep(
    config: Annotated[Path, typer.Argument(help="A YAML file or a preset's name.")],
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="learning_rate=1e-4,2e-4. Repeatable: all combinations.")
    ] = None,
    random_: Annotated[
        list[str] | None,
        typer.Option("--random", help="learning_rate=1e-5:5e-4:log, lora_rank=8:64, or a list. Repeatable."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="How many runs are drawn.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same runs.")] = 1,
    group: Annotated[str, typer.Option("--group", help="The group's name.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which runs these would be.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override an option in all runs.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Queue several runs of one config that differ in chosen options, as one group. Prints their ids.

    All are checked before any is queued. To stop them all: workbench stop --group GROUP.
    """
    from workbench.config.presets import config_file
    from workbench.config.run_config import parse_overrides, read_yaml
    from workbench.config.sweep import changes_of, members, words
    from workbench.runs.run import group_name
    from workbench.train import sweep as sweeps

    space = Workspace(workspace).create()
    changes = changes_of(grid or [], random_ or [], trials, seed)
    configs = members(read_yaml(config_file(config, space)) | parse_overrides(set_ or []), changes)
    if dry_run:
        for one in changes:
            print(words(one))
        tell(Message("sweep_runs", count=len(configs), time=sweeps.told_time(sweeps.seconds(configs, space))))
        return
    for run in sweeps.launch(configs, changes, space, group_name(group), confined=False):
        print(run.id)
