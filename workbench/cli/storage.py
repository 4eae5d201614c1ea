"""Commands about the disk: what the cache holds, and clearing it."""

import json
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, JsonOption, WorkspaceOption, tell
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.workspace import Workspace


def add_commands(app: typer.Typer) -> None:
    """Put this module's commands into the command line."""
    app.command()(cache)


def cache(
    clear: Annotated[
        list[str] | None, typer.Option("--clear", help="A part to delete, or `all`. Repeatable. It is made again.")
    ] = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """What the workspace's cache takes of the disk: tokenized datasets, 4-bit weights, compiled code; --clear PART."""
    from workbench.runs.run import active_runs
    from workbench.storage.cache import clear as delete
    from workbench.storage.cache import parts

    place = Workspace(workspace)
    known = [part.name for part in parts(place)]
    wanted = known if clear and "all" in clear else list(dict.fromkeys(clear or []))
    if unknown := [name for name in wanted if name not in known]:
        raise UserError("cache_part", names=unknown, known=known or Message("none_yet"))
    if wanted and (going := active_runs(place)):
        raise UserError("cache_in_use", id=going[0].id)
    for name in wanted:
        tell(Message("cache_cleared", name=name, size=delete(place, name) / 2**30))
    listed = parts(place)
    if json_:
        print(json.dumps([{"name": p.name, "bytes": p.bytes, "count": p.count} for p in listed]))
    elif not wanted:
        for part in listed:
            print(f"{part.name:12} {part.bytes / 2**30:8.2f} GiB {part.count:6}")
        tell(Message("cache_total", size=sum(part.bytes for part in listed) / 2**30, folder=place.cache))
