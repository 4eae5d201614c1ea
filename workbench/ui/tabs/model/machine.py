"""The models on this machine: their sizes, whether they are whole, and how one is deleted."""

import shutil
from html import escape

from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.models.anatomy.folder import Folder, look
from workbench.models.anatomy.units import memory
from workbench.runs.run import list_states
from workbench.storage.workspace import Workspace
from workbench.ui.catalogue import say

MOST = 200  # models that are listed


def models(workspace: Workspace) -> list[Folder]:
    """The model folders of the workspace by name, also those whose download has not come to its config yet."""
    if not workspace.models.is_dir():
        return []
    paths = sorted(p for p in workspace.models.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [look(path) for path in paths[:MOST]]


def machine_html(found: list[Folder], lang: str) -> str:
    """A table of them."""
    if not found:
        return f"<p class='wb-sub'>{escape(say('machine_none', lang))}</p>"
    head = "".join(f"<th>{escape(say(f'machine_{key}', lang))}</th>" for key in ("name", "size", "state"))
    rows = "".join(
        f"<tr><td>{escape(one.path.name)}</td><td>{memory(one.bytes)}</td><td>{escape(_state(one, lang))}</td></tr>"
        for one in found
    )
    table = f"<table class='wb-table' id='machine-table'><tr>{head}</tr>{rows}</table>"
    return f"<div class='wb-wide' tabindex='0'>{table}</div>"


def _state(one: Folder, lang: str) -> str:
    if one.problems or not (one.path / "config.json").is_file():
        return say("machine_part", lang)
    return say("machine_whole" if one.whole else "machine_config", lang)


def delete(name: str, workspace: Workspace, engine: Engine) -> None:
    """Delete a model of the workspace with all its files; of a link only the link.

    Raises:
        UserError: there is none of that name; it is loaded, or a run that has not ended uses it; files cannot be
            removed.
    """
    workspace.check_writable()
    here = {p.name: p for p in workspace.models.iterdir() if p.is_dir() and not p.name.startswith(".")}
    path = here.get(name)  # a name of the list, never a path
    if path is None:
        raise UserError("model_not_here", name=str(name)[:100], known=sorted(here)[:20])
    state = engine.state()
    if engine.model == name and state is not None and state.active:
        raise UserError("model_loaded", name=name)
    for item in list_states(workspace):
        used = str(item.run.config_values().get("model_name_or_path") or "") if item.state.active else ""
        if used.rstrip("/").split("/")[-1] == name:
            raise UserError("model_in_run", name=name, id=item.run.id)
    try:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except OSError as error:
        raise UserError("model_not_deleted", name=name, reason=error.strerror or str(error)) from None
