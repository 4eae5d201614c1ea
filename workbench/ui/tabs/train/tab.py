"""The Train tab: preset or import → form → preview → Start → monitor."""

from collections.abc import Sequence
from html import escape

import gradio as gr

from workbench.config.presets import DEFAULT, delete_preset, list_presets, save_preset
from workbench.config.run_config import to_yaml
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.runs.run import Run, group_name, list_states
from workbench.storage.workspace import Workspace
from workbench.train import queue
from workbench.train.estimates.check import check_start
from workbench.train.estimates.outlook import outlook
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.costs import panel
from workbench.ui.costs.panel import CostPanel
from workbench.ui.costs.presets_panel import PresetsPanel
from workbench.ui.form import Form, dataset_choices
from workbench.ui.notes import EACH, LATEST, QUIET, note, told
from workbench.ui.questions import asking
from workbench.ui.strings import language, t
from workbench.ui.tabs.data.shared import user_of
from workbench.ui.tabs.record import Event, Tab
from workbench.ui.tabs.train import base as bases
from workbench.ui.tabs.train import importing
from workbench.ui.tabs.train.base import Base
from workbench.ui.tabs.train.run_panel import RunPanel, run_choices
from workbench.ui.tabs.train.sweep_panel import SweepPanel
from workbench.ui.tabs.train.verdict import verdict
from workbench.ui.tabs.train.where_panel import Where, WherePanel

_PARTS = 4  # the place of the side's parts among the outputs `filled`


class TrainTab:
    """The form, what it comes to, and the monitor of a run."""

    id = "train"

    def __init__(self, workspace: Workspace, worker: DataWorker):
        self.workspace = workspace
        self.worker = worker
        self.first = Base.of_preset(next(preset for preset in list_presets() if preset.name == DEFAULT))
        self.form = Form(self.workspace, self.first.values)
        self.panel = RunPanel(workspace)
        self.sweep = SweepPanel(workspace, worker, self.form.config)
        self.costs, self.here = CostPanel("train"), PresetsPanel(workspace)
        self.where = WherePanel()

    @property
    def presets(self) -> dict:
        """Presets by name, as they are now."""
        return {preset.name: preset for preset in list_presets(self.workspace)}

    def preset_choices(self) -> list[tuple[str, str]]:
        """For a list: the workspace's own first, marked with a star."""
        return [(f"★ {name}" if preset.own else name, name) for name, preset in self.presets.items()]

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        with gr.Row(elem_id="train-columns"):
            with gr.Column(scale=6, min_width=340, elem_id="train-form"):
                self._preset_widgets()
                self.find = gr.Textbox(
                    label=t("find_label"),
                    show_label=False,
                    placeholder=t("find_option"),
                    elem_id="find-option",
                    max_lines=1,
                    container=False,
                )
                self.hits = gr.HTML(elem_id="find-hits")
                self.changes = gr.HTML(js_on_load=bases.RESET_JS, elem_id="option-changes")
                self.form.build()
                self.unreadable = gr.HTML(elem_id="dataset-problems")
            with gr.Column(scale=5, min_width=340, elem_id="train-side"):
                with gr.Group(elem_classes="start-box"):
                    self.start = gr.Button(t("start"), variant="primary", elem_id="start", size="lg")
                    self.message = gr.HTML(elem_id="train-message")
                self.costs.build()
                self.group = gr.Textbox(
                    label=t("group"),
                    show_label=False,
                    placeholder=t("group_of_run"),
                    elem_id="start-group",
                    max_lines=1,
                    container=False,
                )
                self.where.build()
                self.sweep.build()
                with gr.Tabs(elem_id="train-parts") as self.parts:
                    with gr.Tab(t("monitor"), id="monitor", render_children=True):
                        self.panel.build()
                    with gr.Tab(t("preview_title"), id="preview", elem_id="part-yaml", render_children=True):
                        self._preview_widgets()
        self.base = gr.State(self.first)
        self.draft = gr.Textbox(visible="hidden", elem_id="train-draft")
        return self._wire()

    def _preset_widgets(self) -> None:
        with gr.Row(equal_height=True):
            self.preset = gr.Dropdown(
                self.preset_choices(),
                value=DEFAULT,
                label=t("preset"),
                info=t("preset_info"),
                elem_id="preset",
                interactive=True,
                scale=4,
            )
        self.about = gr.HTML(elem_id="preset-about")
        self.here.build()
        with gr.Accordion(t("preset_save_title"), open=False, elem_id="preset-own"):
            with gr.Row(equal_height=True):
                self.name = gr.Textbox(label=t("preset_name"), max_lines=1, elem_id="preset-name", scale=3)
                self.keep = gr.Button(t("preset_save"), elem_id="preset-save", scale=1, min_width=100)
                self.drop = gr.Button(
                    t("preset_delete"), elem_id="preset-delete", scale=1, min_width=100, interactive=False
                )
            self.kept = gr.HTML(elem_id="preset-kept")
        with gr.Accordion(t("import_title"), open=False, elem_id="import"):
            self.pasted = gr.Textbox(label=t("import_box"), lines=6, max_lines=12, elem_id="import-text")
            self.given = gr.File(
                label=t("import_files"),
                file_count="multiple",
                file_types=[".json", ".yaml", ".yml", ".sh", ".txt"],
                elem_id="import-files",
                height=110,
            )
            self.take = gr.Button(t("import_button"), elem_id="import-button", size="sm")
            self.report = gr.HTML(elem_id="import-report")

    def _preview_widgets(self) -> None:
        self.yaml_box = gr.Code(
            label=t("yaml"), language="yaml", interactive=False, elem_id="run-yaml", lines=12, wrap_lines=True
        )
        self.command = gr.Code(
            label=t("command"), language="shell", interactive=False, elem_id="run-command", lines=2, wrap_lines=True
        )

    def preview(self, request: gr.Request, base: Base, *contents):
        """The YAML, the command, whether it is valid, what differs from the base, and the form for the browser."""
        lang, values = language(request), self.form.read(list(contents))
        text, costs = to_yaml(values), ("", "")
        try:
            config = self.form.config(list(contents))
            text = to_yaml(config.model_dump(exclude_unset=True))
            self.workspace.confine(config)
            expected = outlook(config, self.workspace)
            costs = panel.shown(expected, lang)
            message = verdict(config, expected, self.workspace, lang)
        except UserError as error:
            message = note(told(error, lang), "bad")
        changed = bases.changes_html(base, values, lang)
        command = bases.command_line(base, values, self.workspace.runs)
        return text, command, message, changed, bases.draft(base, values), *costs

    def based_on(self, base: Base, values: dict, lang: str, contents: Sequence = ()) -> list:
        """Outputs of `filled`: the form with `values`, and where they come from. `contents`: what the form showed."""
        presets = self.presets
        own = base.kind == "preset" and base.name in presets and presets[base.name].own
        chosen = base.name if base.kind == "preset" and base.name in presets else None
        return [
            base,
            gr.update(choices=self.preset_choices(), value=chosen),
            bases.about_html(base, presets, lang),
            gr.update(interactive=own),
            gr.Tabs(selected="preview"),
            *(self.form.change(values, contents) if contents else self.form.fill(values)),
        ]

    @property
    def filled(self) -> list:
        """What `based_on` fills."""
        return [self.base, self.preset, self.about, self.drop, self.parts, *self.form.components]

    def unfilled(self) -> list:
        """`based_on` where all stays as it is."""
        return [gr.skip()] * (5 + len(self.form.names))

    def use_preset(self, name, request: gr.Request, *contents):
        """A preset's values; messages about the choice before go."""
        preset = self.presets.get(name)
        if preset is None:
            return "", "", *self.unfilled()
        return "", "", *self.based_on(Base.of_preset(preset), preset.values, language(request), contents)

    @people.needs("train")
    def save_preset(self, name, request: gr.Request, *contents):
        """Keep the form as a preset of the workspace, which is the form's base then."""
        lang = language(request)
        try:
            values = self.form.config(list(contents)).model_dump(exclude_unset=True)
            kept = save_preset(self.workspace, name or "", values)
        except UserError as error:
            return note(told(error, lang), "bad"), *self.unfilled()
        return note(say("preset_saved", lang, name=kept)), *self.based_on(Base("preset", kept, values), values, lang)

    @people.needs("train")
    def delete_preset(self, name, request: gr.Request):
        """Delete a preset of the workspace; the form stays as it is."""
        if not name:
            return gr.skip(), *self.unfilled()
        try:
            delete_preset(self.workspace, name)
        except UserError as error:
            return note(told(error, language(request)), "bad"), *self.unfilled()
        message = note(say("preset_deleted", language(request), name=name))
        return message, *self.based_on(self.first, self.first.values, language(request))

    def use_import(self, text, request: gr.Request, given=None):
        """What was pasted, as the form's values and as their base; `text` is read, never run. `given`: files that it
        names."""
        lang = language(request)
        said, base = importing.read(text, lang, given)
        return (said, *self.unfilled()) if base is None else (said, *self.based_on(base, base.values, lang))

    def reset(self, base: Base, event: gr.EventData):
        """Set one option back to the base's value, or all."""
        name, filled = event._data.get("reset"), self.form.fill(base.values)
        if name == "*":
            return filled
        return [value if option == name else gr.skip() for option, value in zip(self.form.names, filled, strict=True)]

    def apply(self, event: gr.EventData):
        """Set the options of one of the changes that save memory."""
        chosen = panel.changed_options(event, self.form.names)
        filled = self.form.fill(chosen)
        return [value if name in chosen else gr.skip() for name, value in zip(self.form.names, filled, strict=True)]

    def choose_preset(self, name, request: gr.Request, *contents):
        """`use_preset` from the dropdown, which shows the choice already: a later one stays in it and comes next."""
        report, kept, base, _, *rest = self.use_preset(name, request, *contents)
        return report, kept, base, gr.skip(), *rest

    def taken(self, event: gr.EventData, request: gr.Request):
        """A preset of the table of those for this machine."""
        return self.use_preset(event._data.get("preset"), request)

    def search(self, words, request: gr.Request):
        """Only the options that have all of `words` in their name, label or explanation."""
        shown, updates = self.form.found(words or "")
        lines = "" if not (words or "").strip() else say("options_found", language(request), count=shown)
        return f"<div class='wb-sub'>{escape(lines)}</div>" if lines else "", *updates

    @people.needs("train")
    def begin(self, request: gr.Request, base: Base, group: str, *contents):
        """Start a run, or queue it; a refusal leaves what is shown of another run alone. Behind the form's contents may
        be those of `where`."""
        lang, count = language(request), len(self.form.names)
        where = Where.of(*contents[count:])
        try:
            config = self.form.config(list(contents[:count]))
            values = config.model_dump(exclude_unset=True)
            self._check_output(config)
            people.check_push(config.push_to_hub)
            check = lambda *_: self.worker.ask("preflight", user_of(request), config=values)  # noqa: E731
            parent, group = base.name if base.kind == "clone" else "", group_name(group)
            if where.kind == "here":
                run = queue.launch(config, self.workspace, parent, check=check, started_by=people.name(), group=group)
                said = ""
            else:
                run, said = where.launch(config, self.workspace, check, {"parent": parent, "group": group})
        except UserError as error:
            return note(told(error, lang), "bad"), gr.skip(), gr.skip()
        message, waiting = say("started", lang, id=run.id), queue.queue(self.workspace)
        if run in waiting:
            message = say("queued_as", lang, id=run.id, place=waiting.index(run) + 1)
        if said:
            message = f"{run.id}: {told(said, lang)}"
        warnings = check_start(config, self.workspace) if where.kind == "here" else []
        message = "\n".join([message, *(told(warning, lang) for warning in warnings)])
        listed = gr.Dropdown(choices=run_choices(self.workspace, lang), value=run.id)
        return note(message, "warn" if warnings else "ok"), listed, gr.Tabs(selected="monitor")

    def _check_output(self, config) -> None:
        """Raise UserError where a run would overwrite another user's."""
        if config.output_dir:
            there = Run(self.workspace.output(config.output_dir))
            if (there.path / "state.json").exists():
                people.check_own(there)

    def arrive(self, kept, request: gr.Request):
        """A new or reloaded page: the run that is going, or the newest; the form as the browser has kept it."""
        lang = language(request)
        runs = list_states(self.workspace)
        current = next(
            (item.run for item in runs if item.state.active and item.state.pid), runs[0].run if runs else None
        )
        problems = dataset_choices(self.workspace)[1]
        notes = ""
        if problems:
            listed = "".join(f"<li>{escape(told(problem, lang))}</li>" for problem in problems)
            title = escape(say("dataset_problem", lang, count=len(problems)))
            notes = f"<details class='wb-details'><summary>{title}</summary><ul>{listed}</ul></details>"
        listed = gr.Dropdown(choices=run_choices(self.workspace, lang), value=current.id if current else None)
        before = bases.from_draft(kept)
        if before is None:
            form = [gr.skip(), gr.skip(), bases.about_html(self.first, self.presets, lang)]
            form += self.unfilled()[len(form) :]
        else:
            form = self.based_on(*before, lang)
        form[_PARTS] = gr.Tabs(selected="monitor" if runs else "preview")
        return listed, notes, None, *form

    def datasets(self):
        """What can be chosen now: corrections and uploads come while the page is open."""
        names = dataset_choices(self.workspace)[0]
        return gr.Dropdown(choices=names)

    def _wire(self) -> Tab:
        form, runs = self.form, self.panel
        previewing = Event(
            self.preview,
            [self.base, *form.components],
            [self.yaml_box, self.command, self.message, self.changes, self.draft, *self.costs.outputs],
        )
        keep_draft = {"js": f"(text) => localStorage.setItem('{self.draft_key}', text)", "api_visibility": "private"}
        gr.on(
            [self.base.change, *(widget.change for widget in form.components)],
            *previewing[:3],
            **LATEST,
        ).then(None, self.draft, None, **keep_draft)
        taken = [self.report, self.kept, *self.filled]
        self.preset.input(self.choose_preset, [self.preset, *form.components], taken, **LATEST)
        self.keep.click(self.save_preset, [self.name, *form.components], [self.kept, *self.filled], **QUIET)
        self.drop.click(
            self.delete_preset, self.preset, [self.kept, *self.filled], js=asking("preset_delete_sure"), **QUIET
        )
        self.take.click(self.use_import, [self.pasted, self.given], [self.report, *self.filled], **QUIET)
        self.costs.words.click(self.apply, None, form.components, **EACH)
        self.here.table.click(self.taken, None, taken, **EACH)
        self.changes.click(self.reset, self.base, form.components, **EACH)
        self.find.change(self.search, self.find, [self.hits, *form.searched], **LATEST)
        self.start.click(
            None,
            js=(
                "() => { if (window.Notification && Notification.permission === 'default')"
                " Notification.requestPermission(); }"
            ),
            api_visibility="private",
        )
        self.start.click(
            self.begin,
            [self.base, self.group, *form.components, *self.where.components],
            [self.message, runs.list, self.parts],
            show_progress="minimal",
            api_visibility="private",
        )
        runs.wire()
        self.where.wire()
        self.sweep.wire(self.group, form.components)
        arriving = Event(
            self.arrive,
            self.draft,
            [runs.list, self.unreadable, runs.seen, *self.filled],
            js=f"() => [localStorage.getItem('{self.draft_key}') || '']",
        )
        datasets = Event(self.datasets, None, form.widgets["dataset"])
        return Tab(on_load=[(arriving, datasets, previewing)], on_select=[(datasets,)], timers=[runs.timer])

    @property
    def draft_key(self) -> str:
        """Where the browser keeps the form, for each workspace apart."""
        return f"workbench_form_{self.workspace.fingerprint}"
