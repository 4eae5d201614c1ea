"""Exports in the Chat tab: a job that writes base and adapters in a format, and may upload it; what was exported."""

import time
from html import escape

import gradio as gr

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.models.anatomy.units import memory
from workbench.models.export import FORMATS, WITHOUT_ADAPTERS
from workbench.models.export.listing import Exported, find_export, list_exports
from workbench.models.export.target import check_name
from workbench.models.locate import locate_adapter
from workbench.runs import job
from workbench.runs.run import run_named
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.notes import QUIET, middle, note, told
from workbench.ui.questions import asking
from workbench.ui.strings import language, t
from workbench.ui.tabs.model import machine

_SHOWN_SECONDS = 86_400.0  # for which the end of an export is shown
_COLUMNS = ("name", "size")


class ExportPanel:
    """Its widgets; `weights_of` reads the adapters and weights that the user wrote, or raises UserError."""

    def __init__(self, engine: Engine, weights_of):
        self.engine, self.workspace, self.weights_of = engine, engine.workspace, weights_of

    def build(self, model, weights, name, timer) -> None:
        """Lay the panel out under the components of model, adapters and name, and wire it."""
        self.format = gr.Dropdown(
            list(FORMATS),
            value="safetensors",
            label=t("export_as"),
            info=t("export_format_info"),
            elem_id="merge-format",
        )
        self.hub = gr.Textbox(label=t("export_hub"), info=t("export_hub_info"), max_lines=1, elem_id="merge-hub")
        self.private = gr.Checkbox(True, label=t("export_private"), elem_id="merge-private")
        with gr.Row():
            export = gr.Button(t("merge_export"), size="sm", elem_id="merge-export", min_width=90)
            halt = gr.Button(t("stop"), size="sm", elem_id="merge-stop", min_width=60)
        said = gr.HTML(elem_id="export-note")
        self.progress = gr.HTML(elem_id="merge-exported")
        self.table = gr.HTML(elem_id="export-table")
        with gr.Row(equal_height=True):
            self.which = gr.Dropdown([], value=None, label=t("export_which"), elem_id="export-which", scale=3)
            upload = gr.Button(t("export_upload"), size="sm", elem_id="export-upload", min_width=80)
            delete = gr.Button(t("export_delete"), size="sm", elem_id="export-delete", min_width=80)
        self.seen = gr.State(None)

        timer.tick(self._look, self.seen, [self.progress, self.table, self.which, self.seen], **QUIET)
        asked = [model, weights, name, self.format, self.hub, self.private]
        export.click(self._export, asked, said, show_progress="minimal", api_visibility="private")
        halt.click(self._stop, None, self.progress, **QUIET)
        upload.click(self._upload, [self.which, self.hub, self.private], said, **QUIET)
        delete.click(self._delete, self.which, [said, self.which], js=asking("model_delete_sure"), **QUIET)

    @people.needs("train")
    def _export(self, model, text, name, format_, hub, private, request: gr.Request):
        """Start a job that writes base and adapters into the workspace."""
        lang, hub = language(request), str(hub or "").strip()
        try:
            self.workspace.check_writable()
            if hub:
                people.check("admin")  # with the token of whoever runs the server
            # a run that trained all weights is a model; of another, adapters may have been forgotten
            model_alone = format_ == "safetensors" and run_named(self.workspace, model) is not None
            alone = (format_ in WITHOUT_ADAPTERS or model_alone) and not (text or "").strip()
            weights = {} if alone else self.weights_of(text, lang)
            if not (name or "").strip():
                raise UserError(say("merge_name_missing", lang))
            name = check_name(name)
            config = validated({"model_name_or_path": model}, EngineConfig)
            self.workspace.confine(config)
            if format_ == "bnb-4bit":  # the others are written without loading the model
                self.engine.check_room(config.model_copy(update={"quantization_bit": 4}))
            for adapter in weights:
                self.workspace.inside(locate_adapter(adapter, self.workspace), what="adapter")
            arguments = [model, "--name", name, "--format", format_, "--workspace", self.workspace.root]
            for adapter, weight in weights.items():
                arguments += ["--adapter", f"{adapter}={weight}"]
            if hub:
                arguments += [f"--push-to-hub={hub}", *(["--private"] if private else [])]
            job.start_job(self.workspace, "export", name, "workbench", "export", *arguments)
        except UserError as error:
            return note(told(error, lang), "bad")
        return ""

    @people.needs("train")
    def _upload(self, which, hub, private, request: gr.Request):
        """Start a job that uploads an export."""
        lang = language(request)
        try:
            people.check("admin")  # with the token of whoever runs the server
            if not which:
                raise UserError(say("export_which_none", lang))
            hub = str(hub or "").strip()
            if not hub:
                raise UserError(say("export_hub_none", lang))
            if hub.startswith("-"):  # it would be an option of the command
                raise UserError("upload_name", name=hub[:100])
            one = find_export(str(which), self.workspace)
            more = ["--workspace", self.workspace.root, *(["--private"] if private else [])]
            name = one.path.name
            job.start_job(self.workspace, "export", name, "workbench", "upload", name, hub, *more)
        except UserError as error:
            return note(told(error, lang), "bad")
        return ""

    @people.needs("train")
    def _delete(self, which, request: gr.Request):
        """Delete the export that was chosen, after the question."""
        lang = language(request)
        try:
            if not which:
                raise UserError(say("export_which_none", lang))
            newest = self._newest()
            if newest and newest.state().active and _name(newest) == str(which):
                raise UserError("job_going", id=newest.id)
            machine.delete(find_export(str(which), self.workspace).path.name, self.workspace, self.engine)
        except UserError as error:
            return note(told(error, lang), "bad"), gr.skip()
        return note(say("model_deleted", lang, name=which)), None

    @people.needs("train")
    def _stop(self, request: gr.Request):
        if newest := self._newest():
            job.stop_job(newest)
        return self._progress_html(language(request))

    def _newest(self):
        return next(iter(job.jobs(self.workspace, "export")), None)

    def _look(self, seen, request: gr.Request):
        """How far the newest job is, and the list of exports; each sent only when it has changed."""
        lang, exports = language(request), list_exports(self.workspace)
        fresh = self._progress_html(lang), exports_html(exports, lang)
        if seen == fresh:
            return [gr.skip()] * 4
        before = seen or (None, None)
        if before[1] == fresh[1]:
            return fresh[0], gr.skip(), gr.skip(), fresh
        return *fresh, gr.Dropdown(choices=[one.path.name for one in exports]), fresh

    def _progress_html(self, lang: str) -> str:
        """How far the newest export is, or what became of it; it goes on without this page."""
        newest = self._newest()
        state = newest.state() if newest else None
        if newest is None or state is None or (state.ended or time.time()) < time.time() - _SHOWN_SECONDS:
            return ""
        if not state.active:
            return note(told(state.reason, lang) or state.state, "ok" if state.state == "finished" else "bad")
        bar = f"<div class='wb-bar' style='margin-top:6px'><div style='width:{100 * state.progress:.0f}%'></div></div>"
        status = f"{say('exporting', lang, name=_name(newest))} {told(state.phase, lang)}".strip()
        return f"<div class='wb-note warn'>{escape(status)}{bar}</div>"


def _name(directory) -> str:
    """The name of the export that a job is about."""
    return directory.id.partition("-export-")[2]


def exports_html(exports: list[Exported], lang: str) -> str:
    """A table of them."""
    if not exports:
        return f"<p class='wb-sub'>{escape(say('exports_none', lang))}</p>"
    head = "".join(f"<th>{escape(say(f'exports_{key}', lang))}</th>" for key in _COLUMNS)
    rows = ""
    for one in exports:
        made = [" + ".join([f"{one.format}: {one.base}", *one.adapters])]
        made += [say("exports_hub", lang, url=one.hub)] if one.hub else []
        more = "".join(f"<div class='wb-sub'>{middle(line, 34)}</div>" for line in made)
        rows += f"<tr><td>{middle(one.path.name)}{more}</td><td>{memory(one.bytes)}</td></tr>"
    return f"<div class='wb-wide' tabindex='0'><table class='wb-table'><tr>{head}</tr>{rows}</table></div>"
