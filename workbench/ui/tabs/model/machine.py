"""The models on this machine: their sizes, whether they are whole, how one is deleted; downloads."""

import shutil
import time
from html import escape

from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.models.anatomy.folder import Folder, look
from workbench.models.anatomy.units import memory
from workbench.models.download import check_name
from workbench.models.export.listing import exported
from workbench.runs import job
from workbench.runs.run import list_states
from workbench.storage.workspace import Workspace, slug
from workbench.ui.catalogue import say
from workbench.ui.notes import note, told

MOST = 200  # models that are listed
_SHOWN_SECONDS = 600.0  # how long it is told what became of a download


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


def loadable(one: Folder) -> bool:
    """Whether a folder is, or may become, a model: no GGUF and no adapter that was exported."""
    return (one.path / "config.json").is_file() or exported(one.path) is None


def _state(one: Folder, lang: str) -> str:
    if mark := exported(one.path):
        return say("machine_export" if loadable(one) else "machine_export_elsewhere", lang, format=mark.format)
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
    for directory in job.jobs(workspace, "download")[:1]:
        if directory.state().active and directory.id.partition("-download-")[2] == slug(name):
            raise UserError("model_in_download", name=name)
    try:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except OSError as error:
        raise UserError("model_not_deleted", name=name, reason=error.strerror or str(error)) from None


def start_download(name, workspace: Workspace) -> str:
    """Begin to fetch a model, as a job that goes on without the page; returns its name.

    Raises:
        UserError: that is no name of a hub's model; another download is going.
    """
    name = check_name(str(name or ""))
    short = name.split("/")[-1]
    job.start_job(workspace, "download", short, "workbench", "download", name, "--workspace", workspace.root)
    return name


def stop_download(workspace: Workspace) -> None:
    """Stop the newest download; what came stays, and the next one of that model goes on."""
    workspace.check_writable()
    for directory in job.jobs(workspace, "download")[:1]:
        job.stop_job(directory)


def download_html(workspace: Workspace, lang: str) -> tuple[str, bool]:
    """How far the newest download is, or what became of it, and whether it is going."""
    newest = next(iter(job.jobs(workspace, "download")), None)
    state = newest.state() if newest else None
    if newest is None or state is None or (state.ended or time.time()) < time.time() - _SHOWN_SECONDS:
        return "", False
    if not state.active:
        return note(told(state.reason, lang) or state.state, "ok" if state.state == "finished" else "bad"), False
    words = say("model_downloading", lang, name=newest.id.partition("-download-")[2], phase=told(state.phase, lang))
    bar = f"<div class='wb-bar' style='margin-top:6px'><div style='width:{100 * state.progress:.0f}%'></div></div>"
    return f"<div class='wb-note warn'>{escape(words)}{bar}</div>", True
