"""The Train tab: preset or import → form → preview → Start → monitor."""

import shlex
from html import escape

import gradio as gr

from workbench.config.llamafactory import Imported, import_text
from workbench.config.options import RunConfig
from workbench.config.presets import DEFAULT, Preset, list_presets
from workbench.config.run_config import coerced, to_yaml
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.runs.run import find_run, list_states, run_named
from workbench.storage.workspace import Workspace
from workbench.train import queue
from workbench.ui import monitor
from workbench.ui.catalogue import say
from workbench.ui.form import Form, dataset_choices
from workbench.ui.notes import QUIET, note
from workbench.ui.strings import language, t
from workbench.ui.tabs.data.shared import user_of
from workbench.ui.tabs.record import Event, Tab
from workbench.ui.tabs.runs.view import differences
from workbench.ui.theme import CHART_JS

LISTED = 100  # keys that an import could not take over


def run_choices(workspace: Workspace, lang: str, limit: int = 200) -> list[tuple[str, str]]:
    """Runs for a list, newest first."""
    states = list_states(workspace)[:limit]
    return [(f"{item.run.id} · {say('state_' + item.state.state, lang)}", item.run.id) for item in states]


def command_line(preset: Preset, values: dict) -> str:
    """The command that trains `values`: a preset and what differs from it."""
    defaults = RunConfig.model_construct()
    changes = {k: v for k, v in values.items() if v != coerced(k, preset.values.get(k))}
    for name, value in preset.values.items():  # set in the preset, back at its default in the form
        if name in RunConfig.model_fields and name not in values and coerced(name, value) != getattr(defaults, name):
            changes[name] = getattr(defaults, name)
    settings = ["--set " + shlex.quote(f"{name}={'' if value is None else value}") for name, value in changes.items()]
    return " ".join([f"python -m workbench train {preset.name}", *settings])


def _left_out(imported: Imported, lang: str) -> str:
    """Lines about what an import did not take over."""
    lines = [f"\n• {key or '…'} = {value}: {why}" for key, value, why in imported.left_out[:LISTED]]
    return "\n" + say("left_out", lang) + "".join(lines) if lines else ""


def about_html(preset: Preset, lang: str) -> str:
    """What a preset is for and what it needs."""
    about = f"{preset.about_zh}。" if lang == "zh" else f"{preset.purpose}. {preset.memory}."
    return f"<div class='wb-sub'>{escape(about)}</div>"


class TrainTab:
    """The form, what it comes to, and the monitor of a run."""

    id = "train"

    def __init__(self, workspace: Workspace, worker: DataWorker):
        self.workspace = workspace
        self.worker = worker
        self.presets = {preset.name: preset for preset in list_presets()}
        self.form = Form(self.workspace, self.presets[DEFAULT].values)

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        self._widgets()
        return self._wire()

    def _widgets(self) -> None:
        with gr.Row():
            with gr.Column(scale=7, min_width=520):
                with gr.Row(equal_height=True):
                    self.preset = gr.Dropdown(
                        list(self.presets),
                        value=DEFAULT,
                        label=t("preset"),
                        info=t("preset_info"),
                        elem_id="preset",
                        interactive=True,
                    )
                self.about = gr.HTML(elem_id="preset-about")
                with gr.Accordion(t("import_title"), open=False, elem_id="import"):
                    self.pasted = gr.Textbox(label=t("import_box"), lines=6, max_lines=12, elem_id="import-text")
                    self.take = gr.Button(t("import_button"), elem_id="import-button", size="sm")
                    self.report = gr.HTML(elem_id="import-report")
                self.form.build()
                self.unreadable = gr.HTML(elem_id="dataset-problems")
            with gr.Column(scale=4, min_width=360):
                self.yaml_box = gr.Code(
                    label=t("yaml"),
                    language="yaml",
                    interactive=False,
                    elem_id="run-yaml",
                    lines=12,
                    wrap_lines=True,
                )
                self.command = gr.Code(
                    label=t("command"),
                    language="shell",
                    interactive=False,
                    elem_id="run-command",
                    lines=2,
                    wrap_lines=True,
                )
                self.message = gr.HTML(elem_id="train-message")
                self.start = gr.Button(t("start"), variant="primary", elem_id="start", size="lg")
        with gr.Row(equal_height=True):
            # custom values: a tab that outlived a restart of the server still names its run
            self.run_list = gr.Dropdown(
                [], label=t("run"), elem_id="run-list", interactive=True, allow_custom_value=True, scale=5
            )
            self.log_scale = gr.Checkbox(label=t("log_scale"), value=False, elem_id="log-scale", scale=1, min_width=130)
            self.stop = gr.Button(t("stop_run"), variant="stop", elem_id="stop", scale=2, min_width=220)
        self.status = gr.HTML(elem_id="run-status-box")
        with gr.Row():
            with gr.Column(min_width=420):
                self.chart = gr.HTML(
                    html_template="<div class='live-chart'></div>", js_on_load=CHART_JS, elem_id="loss-chart"
                )
            with gr.Column(min_width=420):
                self.log = gr.HTML(elem_id="log-box")
        self.seen, self.parent = (
            gr.State(None),
            gr.State(""),
        )  # `parent`: the run whose options were cloned into the form

    def preview(self, request: gr.Request, preset_name, parent_id, *contents):
        lang = language(request)
        try:
            config = self.form.config(list(contents))
            text = to_yaml(config.model_dump(exclude_unset=True))
            message = note(say("config_ok", lang))
            if config.trust_remote_code:
                message = note(say("trust_warning", lang), "warn")
        except UserError as error:
            text, message = to_yaml(self.form.read(list(contents))), note(str(error), "bad")
        if original := run_named(self.workspace, parent_id):
            fills = self.form.fill(original.config_values()), contents
            pair = [("", dict(zip(self.form.names, filled, strict=True))) for filled in fills]
            changed = "".join(f"\n• {name}: {old} → {new}" for name, (old, new) in differences(pair))
            message += note(say("clone_differs", lang, id=parent_id) + (changed or " " + say("no_differences", lang)))
        return text, command_line(self.presets[preset_name], self.form.read(list(contents))), message

    def use_preset(self, name, request: gr.Request):
        return [about_html(self.presets[name], language(request)), *self.form.fill(self.presets[name].values)]

    def use_import(self, text, request: gr.Request):
        lang = language(request)
        try:
            imported = import_text(text)
        except UserError as error:
            return [note(str(error), "bad"), *[gr.skip()] * len(self.form.names)]
        if imported.purpose != "train":
            message = say(f"imported_{imported.purpose}", lang, command=imported.command()) + _left_out(imported, lang)
            return [note(message, "warn" if imported.lost else "ok"), *[gr.skip()] * len(self.form.names)]
        if not imported.values:
            return [note(say("nothing_imported", lang), "bad"), *[gr.skip()] * len(self.form.names)]
        message = say("imported", lang, count=len(imported.values))
        message += _left_out(imported, lang)
        if imported.defaults:
            listed = "".join(f"\n• {key}: {value}" for key, value in imported.defaults.items())
            message += "\n" + say("import_defaults", lang) + listed
        values = imported.defaults | imported.values
        return [note(message, "warn" if imported.left_out else "ok"), *self.form.fill(values)]

    def begin(self, request: gr.Request, parent_id, *contents):
        lang = language(request)
        try:
            config = self.form.config(list(contents))
            values = config.model_dump(exclude_unset=True)
            run = queue.launch(
                config,
                self.workspace,
                parent_id,
                check=lambda *_: self.worker.ask("preflight", user_of(request), config=values),
            )
        except UserError as error:
            return note(str(error), "bad"), gr.skip()
        message, waiting = say("started", lang, id=run.id), queue.queue(self.workspace)
        if run in waiting:
            message = say("queued_as", lang, id=run.id, place=waiting.index(run) + 1)
        return note(message), gr.Dropdown(choices=run_choices(self.workspace, lang), value=run.id)

    def end(self, run_id):
        if not run_id:
            return gr.skip()
        try:
            return note(queue.stop(find_run(self.workspace, run_id), self.workspace), "warn")
        except UserError as error:
            return note(str(error), "bad")

    def look(self, run_id, log_axis, token, request: gr.Request):
        """One tick: nothing is sent unless a file of the run has changed."""
        lang = language(request)
        run = run_named(self.workspace, run_id)
        if run is None:
            empty = ("", lang)
            if token == empty:
                return [gr.skip()] * 6
            return note(say("runs_none", lang)), "", "", gr.Button(interactive=False), empty, gr.skip()
        fresh = monitor.change_token(run, lang, log_axis)
        if fresh == token:
            return [gr.skip()] * 6
        active = run.state().active
        ended = token is None or token[0] != run.id or token[3] != fresh[3]
        choices = gr.Dropdown(choices=run_choices(self.workspace, lang)) if ended else gr.skip()
        return (
            monitor.status_html(run, lang),
            monitor.chart_json(run, lang, log_axis),
            monitor.log_html(run),
            gr.Button(interactive=active),
            fresh,
            choices,
        )

    def arrive(self, request: gr.Request):
        """A new or reloaded page: show the run that is going, or the newest."""
        lang = language(request)
        runs = list_states(self.workspace)
        current = next(
            (item.run for item in runs if item.state.active and item.state.pid), runs[0].run if runs else None
        )
        problems = dataset_choices(self.workspace)[1]
        notes = ""
        if problems:
            listed = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
            title = escape(say("dataset_problem", lang, count=len(problems)))
            notes = f"<details class='wb-details'><summary>{title}</summary><ul>{listed}</ul></details>"
        listed = gr.Dropdown(choices=run_choices(self.workspace, lang), value=current.id if current else None)
        return listed, notes, None, about_html(self.presets[DEFAULT], lang), self.datasets()

    def datasets(self):
        """What can be chosen now: corrections and uploads come while the page is open."""
        names = dataset_choices(self.workspace)[0]
        return gr.Dropdown(choices=names)

    def _wire(self) -> Tab:
        view = [self.status, self.chart, self.log, self.stop, self.seen, self.run_list]
        gr.on(
            [self.parent.change, *(widget.change for widget in self.form.components)],
            self.preview,
            [self.preset, self.parent, *self.form.components],
            [self.yaml_box, self.command, self.message],
            trigger_mode="always_last",
            **QUIET,
        )
        gr.on([self.preset.input, self.take.click], lambda: "", None, self.parent, **QUIET)
        self.preset.input(self.use_preset, self.preset, [self.about, *self.form.components], **QUIET)
        self.take.click(self.use_import, self.pasted, [self.report, *self.form.components], **QUIET)
        self.start.click(
            None,
            js=(
                "() => { if (window.Notification && Notification.permission === 'default')"
                " Notification.requestPermission(); }"
            ),
            api_visibility="private",
        )
        begun = self.start.click(
            self.begin,
            [self.parent, *self.form.components],
            [self.message, self.run_list],
            show_progress="minimal",
            api_visibility="private",
        )
        begun.success(None, js="() => document.getElementById('run-status-box')?.scrollIntoView({behavior: 'smooth'})")
        self.stop.click(self.end, self.run_list, self.message, **QUIET)
        gr.on(
            [self.run_list.change, self.log_scale.change],
            self.look,
            [self.run_list, self.log_scale, self.seen],
            view,
            **QUIET,
        )
        gr.Timer(1).tick(self.look, [self.run_list, self.log_scale, self.seen], view, **QUIET)
        previewing = Event(
            self.preview,
            [self.preset, self.parent, *self.form.components],
            [self.yaml_box, self.command, self.message],
        )
        arriving = Event(
            self.arrive, None, [self.run_list, self.unreadable, self.seen, self.about, self.form.widgets["dataset"]]
        )
        return Tab(
            on_load=[(arriving,), (previewing,)],
            on_select=[(Event(self.datasets, None, self.form.widgets["dataset"]),)],
        )
