"""The Runs tab: all runs in a table, one run's page, and several runs side by side."""

from html import escape

import gradio as gr

from workbench.config.run_config import to_yaml
from workbench.errors import UserError
from workbench.runs.metrics import REWARDS, by_device, losses_of_each
from workbench.runs.run import Run, group_name, list_runs, run_named
from workbench.runs.state import ACTIVE, FINAL
from workbench.storage.files import file_token
from workbench.storage.workspace import Workspace
from workbench.train import elsewhere, queue
from workbench.ui import monitor, people
from workbench.ui.catalogue import say
from workbench.ui.charts import AXES, compare_chart, panel_chart
from workbench.ui.notes import LATEST, QUIET, note, told
from workbench.ui.questions import asking, asking_kill
from workbench.ui.strings import language, t
from workbench.ui.tabs.data.shared import outgoing, outgoing_folder
from workbench.ui.tabs.evaluate.view import of_runs_html
from workbench.ui.tabs.record import Event, Tab
from workbench.ui.tabs.runs import view
from workbench.ui.tabs.runs.group import GroupPart
from workbench.ui.tabs.train.run_panel import has_something_to_chat_with, stop_button
from workbench.ui.theme import CHART_JS

_CHART = {"html_template": "<div class='live-chart'></div>", "js_on_load": CHART_JS}
MOST_COMPARED = 24
_DOWNLOAD = "() => setTimeout(() => document.querySelector('#runs-file')?.click(), 300)"

# A run's page and a search have addresses of their own; another tab's has none of that.
LINK_JS = "() => [Object.fromEntries(new URLSearchParams(location.search))]"
_FILTERS_JS = """(words, states, sort, group) => workbenchLink(
  {words, states: (states || []).join(','), sort: sort === 'by_newest' ? '' : sort, group})"""


class RunsTab:
    """Its components are attributes and its handlers methods. `build` lays it out inside a `gr.Tab` and wires what
    concerns only itself."""

    id = "runs"

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.group_part = GroupPart(workspace)

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        self._list_widgets()
        self._run_widgets()
        self._part_widgets()
        self._wire()
        arriving = Event(
            self.arrive, self.link, [self.chosen, self.search, self.states, self.sort, self.group], js=LINK_JS
        )
        return Tab(on_load=[(arriving,)], on_select=[(Event(*self.fresh_list),)], timers=self.timers)

    def _list_widgets(self) -> None:
        with gr.Row():
            self.search = gr.Textbox(
                label=t("search"), info=t("search_info"), elem_id="runs-search", scale=3, max_lines=1
            )
            self.states = gr.Dropdown(
                [(t(f"state_{s}"), s) for s in (*ACTIVE, *FINAL)],
                value=[],
                multiselect=True,
                label=t("states"),
                elem_id="runs-states",
                scale=3,
            )
            # custom values: a group of the address may have no run any more
            self.group = gr.Dropdown(
                [],
                label=t("group"),
                elem_id="runs-group",
                interactive=True,
                allow_custom_value=True,
                scale=2,
                min_width=130,
            )
            self.sort = gr.Dropdown(
                [(t(f"sort_{s}"), s) for s in view.SORTS],
                value="by_newest",
                label=t("sort"),
                elem_id="runs-sort",
                scale=1,
                min_width=130,
            )
            self.page = gr.Number(
                1, minimum=1, precision=0, label=t("page"), elem_id="runs-page", scale=1, min_width=90
            )
        self.table = gr.HTML(js_on_load=view.TABLE_JS, elem_id="runs-table")
        self.count = gr.HTML(elem_id="runs-count")

    def _run_widgets(self) -> None:
        with gr.Row(equal_height=True):
            self.chosen = gr.Dropdown(
                [],
                label=t("selected_run"),
                info=t("resume_info"),
                elem_id="runs-selected",
                allow_custom_value=True,
                interactive=True,
                scale=4,
            )
            self.checkpoint = gr.Dropdown(
                [],
                label=t("checkpoint"),
                info=t("checkpoint_info"),
                elem_id="runs-checkpoint",
                allow_custom_value=True,
                interactive=True,
                scale=2,
            )
            self.epochs = gr.Textbox(
                label=t("new_epochs"),
                info=t("new_epochs_info"),
                elem_id="runs-epochs",
                max_lines=1,
                scale=1,
                min_width=120,
            )
            action = {"interactive": False}  # until a run is chosen to which it applies
            self.resume = gr.Button(
                t("resume"), elem_id="runs-resume", scale=1, min_width=100, variant="primary", **action
            )
            self.chat = gr.Button(t("chat_with"), elem_id="runs-chat", scale=1, min_width=130, **action)
            self.clone = gr.Button(t("clone"), elem_id="runs-clone", scale=1, min_width=130, **action)
        with gr.Row():
            small = {"size": "sm", "min_width": 100, **action}
            self.stop = gr.Button(t("stop_run"), elem_id="runs-stop", variant="stop", **small)
            self.earlier = gr.Button(t("earlier"), elem_id="runs-earlier", **small)
            self.later = gr.Button(t("later"), elem_id="runs-later", **small)
            self.export = gr.Button(t("export_run"), elem_id="runs-export", **small)
            self.as_zip = gr.Button(t("download_zip"), elem_id="runs-zip", **small)
            self.delete = gr.Button(t("delete"), elem_id="runs-delete", **small)

    def _part_widgets(self) -> None:
        self.file = gr.DownloadButton(
            visible="hidden", elem_id="runs-file"
        )  # made when it is asked for, then clicked by a script
        self.message = gr.HTML(elem_id="runs-message")
        self.status = gr.HTML(elem_id="runs-status")
        with gr.Tabs(elem_id="run-parts"):
            with gr.Tab(t("charts"), id="charts"):
                self.charts = gr.HTML(**_CHART, elem_id="runs-charts")
            with gr.Tab(t("compare_runs"), id="compare", elem_id="part-compare") as self.compare_part:
                with gr.Row():
                    self.several = gr.Dropdown(
                        [],
                        multiselect=True,
                        label=t("compare_which"),
                        elem_id="compare-runs",
                        allow_custom_value=True,
                        interactive=True,
                        scale=5,
                    )
                    self.add = gr.Button(t("add_selected"), elem_id="compare-add", scale=1, min_width=130)
                    self.add_group = gr.Button(t("add_group"), elem_id="compare-add-group", scale=1, min_width=130)
                with gr.Row():
                    self.axis = gr.Radio(
                        [(t(f"axis_{a}"), a) for a in AXES], value="steps", label=t("axis"), elem_id="compare-axis"
                    )
                    self.smooth = gr.Slider(0, 0.98, 0.6, step=0.02, label=t("smoothing"), elem_id="compare-smooth")
                    self.log_scale = gr.Checkbox(False, label=t("log_scale"), elem_id="compare-log")
                self.compared = gr.HTML(**_CHART, elem_id="compare-chart")
                self.differing = gr.HTML(elem_id="compare-table")
            with gr.Tab(t("group_part"), id="group", elem_id="part-group") as self.group_tab:
                self.group_part.build()
            with gr.Tab(t("log"), id="log", elem_id="part-log") as self.log_part:
                with gr.Row(equal_height=True):
                    self.words = gr.Textbox(label=t("search_log"), elem_id="log-search", max_lines=1, scale=5)
                    self.as_log = gr.Button(t("download_log"), elem_id="runs-log", scale=1, min_width=150)
                self.full_log = gr.HTML(elem_id="full-log-box")
            with gr.Tab(t("checkpoints"), id="checkpoints", elem_id="part-checkpoints"):
                self.saved = gr.HTML(elem_id="runs-checkpoints")
            with gr.Tab(t("config"), id="config", elem_id="part-config"):
                self.changed = gr.HTML(elem_id="runs-parent")
                self.config = gr.Code(language="yaml", interactive=False, elem_id="runs-config", wrap_lines=True)
            with gr.Tab(t("samples"), id="samples", elem_id="part-samples"):
                self.samples = gr.HTML(elem_id="runs-samples")
            with gr.Tab(t("note"), id="note", elem_id="part-note"):
                self.title = gr.Textbox(label=t("title"), elem_id="runs-title", max_lines=1)
                # a text: a list that gets new choices while it is left stays open over what is above it
                self.named_group = gr.Textbox(
                    label=t("group"), info=t("group_info"), elem_id="runs-in-group", max_lines=1
                )
                self.tags = gr.Textbox(label=t("tags"), info=t("tags_info"), elem_id="runs-tags", max_lines=1)
                self.remark = gr.Textbox(label=t("note"), elem_id="runs-note", lines=3)
                self.keep = gr.Button(t("save"), elem_id="runs-save", size="sm")
        self.link = gr.JSON(visible="hidden")  # what the page's address says
        self.seen_table, self.seen_run = gr.State(None), gr.State(None)
        self.current = gr.State(None)  # the chosen run, once its name and note are there

    def run_of(self, run_id) -> Run | None:
        return run_named(self.workspace, run_id)

    def the_run(self, run_id, lang: str) -> Run:
        run = self.run_of(run_id)
        if run is None:
            raise UserError(say("choose_run", lang))
        return run

    def list_them(self, words_, states_, sort_, page_, group, chosen, token, request: gr.Request):
        """The table, sent again only when a run, the choice or the question has changed."""
        lang = language(request)
        fresh = (lang, words_, tuple(states_ or ()), sort_, page_, group, chosen, hash(view.runs_token(self.workspace)))
        if fresh == token:
            return [gr.skip()] * 6
        rows = view.summaries(self.workspace, words_ or "", states_ or [], sort_, str(group or ""))
        groups = view.groups(self.workspace)
        first = (max(1, int(page_ or 1)) - 1) * view.PAGE
        part = rows[first : first + view.PAGE]
        ids = [
            (row.title if row.title == row.run.id else f"{row.title} ({row.run.id})", row.run.id) for row in rows[:500]
        ]
        asked = bool((words_ or "").strip() or states_ or group)
        shown = say("shown_runs", lang, shown=len(part), count=len(rows))
        if not rows:
            shown = say("runs_no_hit" if asked else "runs_none", lang)
        if self.workspace.read_only:
            shown += " · " + say("read_only", lang)
        return (
            view.table_html(part, chosen, lang, grouped=sort_ == "by_group") if part else "",
            f"<div class='wb-sub'>{escape(shown)}</div>",
            fresh,
            gr.Dropdown(choices=ids),
            gr.Dropdown(choices=ids),
            gr.Dropdown(choices=[(say("group_any", lang), ""), *((name, name) for name in groups)]),
        )

    def look(self, run_id, token, request: gr.Request):
        """One run's page; what has not changed is not sent again."""
        lang, run = language(request), self.run_of(run_id)
        if run is None:
            if token == lang:
                return [gr.skip()] * (8 + len(self.buttons))
            return ["", "", "", "", "", "", gr.skip(), lang, *self.buttons_for(None, lang)]
        names = sorted(p.name for p in run.path.glob("checkpoint-*"))
        files = *names, *file_token(run.metrics, *(run.path / n for n in ("run.yaml", "meta.json", "samples.jsonl")))
        changed = monitor.change_token(run, lang, False)
        waiting = monitor.waiting(run, changed, self.workspace)
        fresh = (*changed, waiting), files
        if fresh == token:
            return [gr.skip()] * (8 + len(self.buttons))
        status_ = monitor.status_html(run, lang, waiting)
        same = isinstance(token, tuple) and token[0][0] == run.id
        parts = [gr.skip()] * 6 if same and token[1] == files else self.parts(run, lang)
        return status_, *parts, fresh, *self.buttons_for(run, lang)

    @property
    def buttons(self) -> list:
        """Those that apply to some runs only."""
        return [
            self.resume,
            self.chat,
            self.clone,
            self.stop,
            self.earlier,
            self.later,
            self.export,
            self.as_zip,
            self.delete,
        ]

    def buttons_for(self, run: Run | None, lang: str) -> list:
        """Each of `buttons` enabled where it applies to `run`."""
        state = run.state() if run else None
        mine = people.may_change(run)
        ended, queued = mine and not state.active, mine and state.state == "queued"
        able = gr.update
        return [
            able(interactive=ended and not self.workspace.read_only),
            able(interactive=bool(run) and has_something_to_chat_with(run)),
            able(interactive=bool(run)),
            stop_button(state.state if state else "", lang, able=mine),
            able(interactive=queued),
            able(interactive=queued),
            able(interactive=bool(run) and has_something_to_chat_with(run)),
            able(interactive=bool(run)),
            able(interactive=ended and not self.workspace.read_only),
        ]

    def parts(self, run: Run, lang: str) -> tuple:
        """What depends on the run's files beside its status."""
        series = monitor.reader_of(run).series
        panels = [
            (say("loss", lang), ("loss",)),
            (say("legend_eval", lang), ("eval_loss", *losses_of_each(series))),
            (say("learning_rate", lang), ("lr",)),
            (say("chart_grad_norm", lang), ("grad_norm",)),
            (say("throughput", lang), ("throughput",)),
            (say("chart_memory", lang), (*by_device("peak_memory", series), *by_device("vram_reserved", series))),
            (say("chart_utilization", lang), by_device("gpu_utilization", series)),
            (say("chart_rewards", lang), REWARDS),
            (say("chart_accuracies", lang), ("rewards/accuracies", "eval_rewards/accuracies")),
            (say("chart_margins", lang), ("rewards/margins", "eval_rewards/margins")),
            (say("chart_logps", lang), ("logps/chosen", "logps/rejected")),
            (say("chart_kl", lang), ("kl", "eval_kl")),
            (say("legend_reward", lang), ("reward", "eval_reward")),
            (say("chart_reward_std", lang), ("reward_std",)),
            (say("chart_completion_length", lang), ("completion_length",)),
        ]
        figure = panel_chart(series, panels, run_id=run.id)
        values, parent = run.config_values(), run.notes().get("parent", "")
        against = ""
        if parent:
            other = self.run_of(parent)
            table_ = view.differences_html([(parent, other.config_values()), (run.id, values)], lang) if other else ""
            against = f"<div class='wb-sub'>{escape(say('parent', lang, id=parent))}</div>{table_}"
        names = [p.name for p in run.checkpoints()][::-1]
        return (
            figure,
            view.checkpoints_html(run, lang),
            against,
            to_yaml(values),
            view.samples_html(run, lang),
            gr.Dropdown(choices=names),
        )

    def choose(self, run_id, current):
        """Another run was chosen: its checkpoints, name and note. They are sent once, and before anything else of the
        run is shown (`look` follows `current`): what a user then types is not overwritten. The dropdown reports a
        change for new choices, too, and for a row of the table that was chosen already."""
        if run_id and run_id == current:
            return [gr.skip()] * 8
        run = self.run_of(run_id)
        names = [p.name for p in run.checkpoints()][::-1] if run else []
        notes = run.notes() if run else {}
        named = (notes.get(key, "") for key in ("title", "note", "tags", "group"))
        return gr.Dropdown(choices=names, value=None), *named, "", "" if run else gr.skip(), run_id

    def command(self, action):
        """A handler that does something with the chosen run, which must be the user's own, and says what."""

        def handler(run_id, *rest, request: gr.Request):
            try:
                run = self.the_run(run_id, language(request))
                people.check_own(run)
                return note(told(action(run, *rest), language(request)))
            except UserError as error:
                return note(told(error, language(request)), "bad")

        return handler

    @people.needs("train")
    def resumed(self, run_id, checkpoint_, epochs_, request: gr.Request):
        def go_on(run: Run) -> str:
            people.check_push(run.config_values().get("push_to_hub"))
            # steps, where they were given, would take precedence over epochs
            overrides = {"num_train_epochs": epochs_.strip(), "max_steps": -1} if (epochs_ or "").strip() else None
            if run.stored_state().nodes:
                people.check_hosts()
            return elsewhere.resume(run, self.workspace, checkpoint=checkpoint_ or "", overrides=overrides)

        return self.command(go_on)(run_id, request=request)

    @people.needs("train")
    def stopped(self, run_id, kill, request: gr.Request):
        """Stop the run, or kill it where the user has said so."""
        if kill == "no":
            return gr.skip()
        stop = lambda run: queue.stop(run, self.workspace, kill=kill == "kill")  # noqa: E731
        return self.command(stop)(run_id, request=request)

    def moved(self, places):
        @people.needs("train")
        def handler(run_id, request: gr.Request):
            return self.command(lambda run: queue.move(run, self.workspace, places))(run_id, request=request)

        return handler

    @people.needs("train")
    def deleted(self, run_id, request: gr.Request):
        if not run_id:
            return gr.skip(), gr.skip()
        words_ = self.command(lambda run: queue.delete(run, self.workspace))(run_id, request=request)
        return words_, None if self.run_of(run_id) is None else run_id

    @people.needs("train")
    def noted(self, run_id, title_, remark_, tags_, group, request: gr.Request):
        def save(run: Run) -> str:
            self.workspace.check_writable()
            tags = " ".join(dict.fromkeys(tags_.replace(",", " ").replace("，", " ").split()))[:200]
            run.set_notes(title=title_.strip()[:80], note=remark_.strip(), tags=tags, group=group_name(group))
            return say("saved", language(request))

        return self.command(save)(run_id, request=request)

    def compare(self, ids, axis_, smooth_, log_axis, request: gr.Request):
        lang = language(request)
        runs = [run for run in map(self.run_of, (ids or [])[:MOST_COMPARED]) if run]
        if not runs:
            return "", note(say("choose_run", lang))
        named = [(run.notes().get("title") or run.id, run) for run in runs]
        figure = compare_chart(
            [(name, monitor.reader_of(run).series) for name, run in named],
            axis=axis_,
            axis_name=say(f"axis_{axis_}", lang),
            smooth=smooth_,
            log_scale=log_axis,
            eval_name=say("legend_eval", lang),
        )
        differing = view.differences_html([(name, run.config_values()) for name, run in named], lang)
        return figure, differing + of_runs_html(self.workspace, [run.id for run in runs], lang)

    def with_group(self, ids, run_id):
        """What is compared, with all runs of the chosen one's group."""
        run = self.run_of(run_id)
        group = run.notes().get("group") if run else ""
        others = [row.run.id for row in view.summaries(self.workspace, group=group)] if group else []
        return [*dict.fromkeys([*(ids or []), *([run.id] if run else []), *others])][:MOST_COMPARED]

    def find(self, run_id, words_, request: gr.Request):
        """The lines of the log that hold some words."""
        run = self.run_of(run_id)
        return view.log_lines_html(run, words_ or "", language(request)) if run else ""

    def zipped(self, run_id):
        run = self.run_of(run_id)
        return str(view.make_zip(run, outgoing_folder())) if run else None

    def logged(self, run_id):
        run = self.run_of(run_id)
        if run is None or not run.log.is_file():
            return None
        return outgoing(run.log, f"{run.id}.log")

    def _wire(self) -> None:
        self.listing = [self.search, self.states, self.sort, self.page, self.group, self.chosen, self.seen_table]
        self.listed = [self.table, self.count, self.seen_table, self.chosen, self.several, self.group]
        look_inputs = [self.current, self.seen_run]
        look_outputs = [
            self.status,
            self.charts,
            self.saved,
            self.changed,
            self.config,
            self.samples,
            self.checkpoint,
            self.seen_run,
            *self.buttons,
        ]
        gr.on(
            [self.search.change, self.states.change, self.sort.change, self.page.change, self.group.input],
            *self.fresh_list,
            **LATEST,
        ).then(None, [self.search, self.states, self.sort, self.group], None, js=_FILTERS_JS, api_visibility="private")
        self.timers = [gr.Timer(2, active=False), gr.Timer(1, active=False)]
        self.timers[0].tick(*self.fresh_list, **QUIET)
        self.timers[1].tick(self.look, look_inputs, look_outputs, **QUIET)
        self.group_part.wire(self.group_tab, self.chosen, self.current, self.timers[1])
        linked = {"js": "(run) => workbenchLink({run})", "api_visibility": "private"}
        picked = {"js": view.picked_js("runs-table"), "api_visibility": "private"}
        self.table.click(None, None, self.chosen, **picked).then(None, self.chosen, None, **linked)
        self.chosen.input(None, self.chosen, None, **linked)
        self.chosen.change(
            self.choose,
            [self.chosen, self.current],
            [
                self.checkpoint,
                self.title,
                self.remark,
                self.tags,
                self.named_group,
                self.full_log,
                self.message,
                self.current,
            ],
            **LATEST,
        ).then(self.look, look_inputs, look_outputs, **QUIET)
        self.resume.click(self.resumed, [self.chosen, self.checkpoint, self.epochs], self.message, **QUIET)
        kill = gr.Textbox(visible="hidden")
        self.stop.click(self.stopped, [self.chosen, kill], self.message, js=asking_kill("#runs-status"), **QUIET)
        self.earlier.click(self.moved(-1), self.chosen, self.message, **QUIET)
        self.later.click(self.moved(1), self.chosen, self.message, **QUIET)
        self.delete.click(self.deleted, self.chosen, [self.message, self.chosen], js=asking("delete_sure"), **QUIET)
        noted = [self.chosen, self.title, self.remark, self.tags, self.named_group]
        self.keep.click(self.noted, noted, self.message, **QUIET)
        comparing = ([self.several, self.axis, self.smooth, self.log_scale], [self.compared, self.differing])
        gr.on(
            [
                self.several.change,
                self.axis.change,
                self.smooth.release,
                self.log_scale.change,
                self.compare_part.select,
            ],
            self.compare,
            *comparing,
            **QUIET,
        )
        self.add.click(
            lambda ids, run_id: [*dict.fromkeys([*(ids or []), *([run_id] if run_id else [])])],
            [self.several, self.chosen],
            self.several,
            **QUIET,
        )
        self.add_group.click(self.with_group, [self.several, self.chosen], self.several, **QUIET)
        gr.on(
            [self.words.submit, self.words.change, self.log_part.select],
            self.find,
            [self.chosen, self.words],
            self.full_log,
            **LATEST,
        )
        for button, make in ((self.as_zip, self.zipped), (self.as_log, self.logged)):
            button.click(make, self.chosen, self.file, show_progress="minimal", api_visibility="private").success(
                None, js=_DOWNLOAD
            )

    def arrive(self, link):
        """A new page shows the run and the filters of its address; without them the newest run."""
        link = link if isinstance(link, dict) else {}
        run, sort = self.run_of(link.get("run")), link.get("sort")
        newest = next(iter(list_runs(self.workspace)), None)
        states = [state for state in str(link.get("states") or "").split(",") if state in (*ACTIVE, *FINAL)]
        shown = run or newest
        return (
            shown.id if shown else None,
            str(link.get("words") or "")[:200],
            states,
            sort if sort in view.SORTS else "by_newest",
            str(link.get("group") or "")[:80] or None,
        )

    @property
    def fresh_list(self) -> tuple:
        """(handler, inputs, outputs) that show the table anew."""
        return self.list_them, self.listing, self.listed
