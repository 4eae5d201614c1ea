"""`workbench estimate`: memory and time of a run before it starts; what was measured by earlier ones, and forgetting
it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, JsonOption, Language, WorkspaceOption, language, speak
from workbench.storage.workspace import Workspace


def add_commands(app: typer.Typer) -> None:
    """Put this module's command into the command line."""
    app.command()(estimate)


def estimate(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file, a preset's name, or a run directory; none: all presets.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override an option: --set lora_rank=16.")] = None,
    memory_: Annotated[
        float | None,
        typer.Option("--gpu", help="Of a GPU with so many GB, not of this machine; of as many as devices names."),
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Forget what earlier runs measured.")] = False,
    lang: Annotated[Language | None, typer.Option("--lang", help="Print in English or Chinese.")] = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Memory, cards that it fits, what saves most, and time of a run, without loading anything."""
    from workbench.config.option import split_names
    from workbench.config.presets import config_file
    from workbench.config.run_config import load_run_config
    from workbench.models.cost.device import Device, card_memory
    from workbench.train.estimates import history
    from workbench.train.estimates.outlook import outlook
    from workbench.ui.catalogue import say
    from workbench.ui.costs import view

    if lang:
        speak(lang.value)
    space = Workspace(workspace)
    if forget:
        count = history.forget(space)
        print(say("cost_forgotten", language(), runs=count))
        if config is None:
            return
    device = Device(f"{memory_:g} GB", card_memory(memory_), True) if memory_ else None  # type: ignore[arg-type]
    if config is None:
        _presets(space, device, json_)
        return
    file = config / "run.yaml" if (config / "run.yaml").is_file() else config_file(config, space)
    options = load_run_config(file, set_ or [])
    if device is not None:
        device = replace(device, count=max(1, len(split_names(options.devices))))
    result = outlook(options, space, device)
    if json_:
        print(json.dumps(view.as_json(result, language()), ensure_ascii=False))
        return
    print(result.model)
    for name, size in view.rows(result, language()):
        print(f"  {size / view.GIB:>8.2f} GiB  {name}")
    if result.estimate is not None:
        print(view.total_line(result, language()))
        print(view.cards_line(result, language()))
    for line in view.details(result, language()):
        print(line)
    if result.changes:
        print(say("cost_changes", language()))
        for change in result.changes:
            print(f"  --set {' --set '.join(view.options_text(change).split(', '))}")
            print(f"    {view.change_line(change, result.fits_here, language())}")


def _presets(space: Workspace, device, json_: bool) -> None:
    from workbench.train.estimates.presets import for_machine
    from workbench.ui.catalogue import say
    from workbench.ui.costs import view

    found = for_machine(space, device)
    if json_:
        listed = [
            {"preset": preset.name, "recommended": recommended, **(view.as_json(result, language()) if result else {})}
            for preset, result, recommended in found
        ]
        print(json.dumps(listed, ensure_ascii=False))
        return
    for preset, result, recommended in found:
        name, size, here, time = view.preset_row(preset, result, language())
        mark = f"★ {say('cost_recommended', language())}" if recommended else ""
        print(f"{name:28} {size:>10}  {here:14} {time:>10}  {mark}".rstrip())
