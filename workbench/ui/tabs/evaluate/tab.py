"""The Evaluate tab: a run's answers to a dataset with their scores, tasks of lm-evaluation-harness, and two predictions
side by side."""

import time
from html import escape
from pathlib import Path

import gradio as gr

from workbench.config.option import split_names
from workbench.data.registry import select
from workbench.errors import UserError
from workbench.evaluation import harness
from workbench.evaluation.results import ORDERS, ROWS, SHOWN, changes, compared, listed
from workbench.evaluation.target import check_room, target
from workbench.evaluation.tasks import read_task
from workbench.models.locate import adapter_choices
from workbench.runs import job
from workbench.runs.run import list_runs, run_named
from workbench.runs.state import StateDirectory
from workbench.storage.workspace import Workspace, dataset_folder, expanded
from workbench.train import queue
from workbench.train.devices import slots, wanted_slots
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.form import dataset_choices, model_choices
from workbench.ui.notes import LATEST, QUIET, note, told
from workbench.ui.strings import language, t
from workbench.ui.tabs.data.shared import outgoing
from workbench.ui.tabs.evaluate import view
from workbench.ui.tabs.record import Event, Tab

_SHOWN_SECONDS = 86_400.0  # for which the end of a job is shown
_LOOK_SECONDS = 2.0  # between two looks for new results
_DOWNLOAD = "() => setTimeout(() => document.querySelector('#evaluate-file')?.click(), 300)"
KINDS = {"predict": "evaluate_going", "evaluate": "evaluate_task_going"}


class EvaluateTab:
    """Its components are attributes and its handlers methods."""

    id = "evaluate"

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self._looked, self._last_token = float("-inf"), ()
        self._newest: dict[str, StateDirectory | None] = {
            kind: next(iter(job.jobs(workspace, kind)), None) for kind in KINDS
        }

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        gr.HTML(t("evaluate_info"), elem_classes="wb-sub")
        self._asking_widgets()
        self._result_widgets()
        self.seen = gr.State(None)
        return self._wire()

    def _asking_widgets(self) -> None:
        with gr.Row(equal_height=True):
            self.target = gr.Dropdown(
                [],
                value=None,
                label=t("evaluate_target"),
                info=t("evaluate_target_info"),
                allow_custom_value=True,
                elem_id="evaluate-target",
                scale=2,
            )
            self.dataset = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                label=t("evaluate_dataset"),
                allow_custom_value=True,
                elem_id="evaluate-dataset",
                scale=2,
            )
        with gr.Row(equal_height=True):
            self.samples = gr.Textbox(
                label=t("evaluate_max_samples"),
                info=t("evaluate_max_samples_info"),
                max_lines=1,
                elem_id="evaluate-samples",
            )
            self.tokens = gr.Number(
                512, minimum=1, maximum=32_768, precision=0, label=t("evaluate_tokens"), elem_id="evaluate-tokens"
            )
            self.temperature = gr.Slider(
                0, 2, 0, step=0.05, label=t("evaluate_temperature"), elem_id="evaluate-temperature"
            )
        with gr.Row():
            self.start = gr.Button(t("evaluate_start"), variant="primary", elem_id="evaluate-start")
            self.halt = gr.Button(t("stop"), variant="stop", elem_id="evaluate-stop", interactive=False)
        self.message = gr.HTML(elem_id="evaluate-message")
        self.status = gr.HTML(elem_id="evaluate-status")
        with gr.Accordion(t("evaluate_task_title"), open=False, elem_id="evaluate-tasks"):
            with gr.Row(equal_height=True):
                self.task = gr.Dropdown(
                    [],
                    value=None,
                    label=t("evaluate_task"),
                    info=t("evaluate_task_info"),
                    allow_custom_value=True,
                    elem_id="evaluate-task",
                    scale=2,
                )
                self.limit = gr.Textbox(
                    label=t("evaluate_limit"),
                    info=t("evaluate_max_samples_info"),
                    max_lines=1,
                    elem_id="evaluate-limit",
                )
                self.shots = gr.Textbox(
                    label=t("evaluate_shots"), info=t("evaluate_shots_info"), max_lines=1, elem_id="evaluate-shots"
                )
            trusting = self.workspace.remote_code
            self.trust = gr.Checkbox(
                False,
                label=t("evaluate_trust"),
                info=t("evaluate_trust_info" if trusting else "evaluate_trust_off"),
                interactive=trusting,
                elem_id="evaluate-trust",
            )
            with gr.Row():
                self.run_task = gr.Button(t("evaluate_run_task"), variant="primary", elem_id="evaluate-run-task")
                self.halt_task = gr.Button(t("stop"), variant="stop", elem_id="evaluate-stop-task", interactive=False)
            self.task_message = gr.HTML(elem_id="evaluate-task-message")
            self.task_status = gr.HTML(elem_id="evaluate-task-status")

    def _result_widgets(self) -> None:
        gr.HTML(t("evaluate_results"), elem_classes="wb-sub")
        self.totals = gr.HTML(elem_id="evaluate-totals")
        self.tasks = gr.HTML(elem_id="evaluate-task-results")
        with gr.Row(equal_height=True):
            chosen = {"allow_custom_value": True, "interactive": True, "scale": 3}
            self.first = gr.Dropdown([], value=None, label=t("evaluate_first"), elem_id="evaluate-first", **chosen)
            self.second = gr.Dropdown([], value=None, label=t("evaluate_second"), elem_id="evaluate-second", **chosen)
            self.shown = gr.Dropdown(
                [(t(f"evaluate_show_{name}"), name) for name in SHOWN],
                value="differ",
                label=t("evaluate_show"),
                elem_id="evaluate-show",
                scale=2,
                min_width=150,
            )
            self.order = gr.Dropdown(
                [(t(f"evaluate_{name}"), name) for name in ORDERS],
                value="by_difference",
                label=t("evaluate_order"),
                elem_id="evaluate-order",
                scale=2,
                min_width=150,
            )
            self.page = gr.Number(
                1, minimum=1, precision=0, label=t("page"), elem_id="evaluate-page", scale=1, min_width=80
            )
        self.pairs = gr.HTML(elem_id="evaluate-pairs")
        self.give = gr.Button(t("evaluate_download"), size="sm", elem_id="evaluate-download", min_width=150)
        # made when it is asked for, then clicked by a script
        self.file = gr.DownloadButton(visible="hidden", elem_id="evaluate-file")

    # jobs

    def _mine(self, name: str) -> None:
        """Raise UserError where the results would go into another user's run."""
        if run := run_named(self.workspace, name.partition("/")[0]):
            people.check_own(run)

    def _number(self, text, key: str, lang: str, least: int = 1) -> int | None:
        """A whole number of a text field, None where it is empty. Raises UserError."""
        text = str(text or "").strip()
        if not text:
            return None
        if not text.isdecimal() or not least <= int(text) < 10**9:
            raise UserError(say("evaluate_number", lang, name=say(key, lang)))
        return int(text)

    def _checked(self, name: str) -> None:
        """Whether a run or model may be asked by this page's user, and fits. Raises UserError."""
        self.workspace.check_writable()
        self._mine(name)
        path = expanded(name, "model_name_or_path")
        if path.is_absolute() or ".." in path.parts or path.is_dir():  # before anybody looks what is there
            self.workspace.inside(path if path.is_absolute() else Path.cwd() / path, what="model_name_or_path")
        _, _, config = target(name, "", {}, self.workspace)
        self.workspace.confine(config)
        given, _ = queue.job_waits_for(wanted_slots({"devices": config.devices}, slots()), self.workspace, time.time())
        if given:  # else its job looks when its turn has come
            check_room(config, self.workspace)

    @people.needs("train")
    def predict(self, name, datasets, samples, tokens, temperature, request: gr.Request):
        """Start the predictions of a run or model."""
        lang = language(request)
        try:
            names = ",".join(split_names(",".join(map(str, datasets or []))))
            if not name or not names:
                raise UserError(say("evaluate_choose", lang))
            most = self._number(samples, "evaluate_max_samples", lang)
            longest = self._number(int(tokens or 512), "evaluate_tokens", lang)
            select(names, dataset_folder("data", self.workspace), self.workspace)
            self._checked(name)
            arguments = [
                name,
                "--dataset",
                names,
                "--max-new-tokens",
                longest,
                "--temperature",
                float(temperature or 0),
            ]
            arguments += ["--max-samples", most] if most else []
            self._begin("predict", name, arguments)
        except UserError as error:
            return note(told(error, lang), "bad")
        return ""

    @people.needs("train")
    def evaluate(self, name, task, limit, shots, trust, request: gr.Request):
        """Start a task of lm-evaluation-harness."""
        lang = language(request)
        try:
            if not name or not task:
                raise UserError(say("evaluate_choose_task", lang))
            rows = self._number(limit, "evaluate_limit", lang)
            examples = self._number(shots, "evaluate_shots", lang, 0)
            harness.check_installed()
            if trust:
                self.workspace.check_code(trust)
            file = self._task_file(task)
            if not trust:
                read_task(str(file), self.workspace)
            self._checked(name)
            arguments = [name, "--task", file]
            arguments += ["--limit", rows] if rows else []
            arguments += ["--num-fewshot", examples] if examples is not None else []
            arguments += ["--trust-task-code"] if trust else []
            self._begin("evaluate", name, arguments)
        except UserError as error:
            return note(told(error, lang), "bad")
        return ""

    def _task_file(self, task: str) -> Path:
        """The file of a task that a user of the page named. Raises UserError: it lies elsewhere."""
        listed_ = self.workspace.root / "tasks" / task
        return self.workspace.inside(listed_ if listed_.is_file() else Path.cwd() / task, what="task")

    def _begin(self, kind: str, name: str, arguments: list) -> None:
        more = ["--workspace", self.workspace.root]
        self._newest[kind] = job.start_job(
            self.workspace, kind, name.rpartition("/")[2], "workbench", kind, *arguments, *more
        )

    def _stopping(self, kind: str):
        @people.needs("train")
        def stop(request: gr.Request):
            if newest := self._newest[kind]:
                job.stop_job(newest)
            return self._status(kind, language(request))

        return stop

    def _status(self, kind: str, lang: str) -> str:
        """How far the newest job of a kind is, or what became of it; it goes on without this page."""
        newest = self._newest[kind]
        state = newest.state() if newest else None
        if state is None or (state.ended or time.time()) < time.time() - _SHOWN_SECONDS:
            return ""
        if not state.active:
            words = told(state.reason, lang) or say(f"state_{state.state}", lang)
            return note(words, "ok" if state.state == "finished" else "bad" if state.state != "stopped" else "warn")
        bar = f"<div class='wb-bar' style='margin-top:6px'><div style='width:{100 * state.progress:.0f}%'></div></div>"
        words = f"{say(KINDS[kind], lang)} … {told(state.phase, lang)}".strip()
        return f"<div class='wb-note warn'>{escape(words)}{bar}</div>"

    def _going(self, kind: str) -> bool:
        newest = self._newest[kind]
        return bool(newest and newest.state().active)

    # results

    def look(self, seen, request: gr.Request):
        """Jobs and results; what has not changed is not sent again."""
        lang = language(request)
        statuses = tuple(self._status(kind, lang) for kind in KINDS)
        going = tuple(self._going(kind) for kind in KINDS)
        results = lang, self._token()
        fresh = (statuses, going, results)
        if fresh == seen:
            return [gr.skip()] * 9
        before = seen or (None, None, None)
        shown = [
            new if not seen or new != old else gr.skip()
            for new, old in zip(statuses, before[0] or ("", ""), strict=True)
        ]
        buttons = [gr.update(interactive=on) for on in going] if going != before[1] else [gr.skip()] * 2
        found = self._found(lang) if results != before[2] else [gr.skip()] * 4
        return [*shown, *buttons, *found, fresh]

    def _token(self) -> tuple:
        """`view.token`, looked at every few seconds only, whoever asks: there may be thousands of runs."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked, self._last_token = now, view.token(self.workspace)
        return self._last_token

    def _found(self, lang: str) -> list:
        """The tables of all results, and what can be compared."""
        known = view.choices(self.workspace)
        tables = view.totals_html(listed(self.workspace), lang)
        empty = f"<div class='wb-sub'>{escape(say('evaluate_none', lang))}</div>"
        tasks = view.evaluations_html(view.evaluations(self.workspace), lang)
        return [tables or empty, tasks, gr.Dropdown(choices=known), gr.Dropdown(choices=known)]

    def compare(self, first, second, shown, order, page, request: gr.Request):
        """Two predictions side by side."""
        lang, known = language(request), listed(self.workspace)
        if first not in known or second not in known:
            return note(say("evaluate_choose_two", lang), "warn")
        shown = shown if shown in SHOWN else "all"
        order = order if order in ORDERS else "by_row"
        one, other = known[first], known[second]
        try:
            every = compared(one, other)
            pairs = compared(one, other, shown, order)
        except UserError as error:
            return note(told(error, lang), "bad")
        counts = {key: f"{count:,}" for key, count in changes(every).items()}
        words = say("evaluate_counts", lang, rows=f"{len(every):,}", **counts)
        names = view.label_of(first, one), view.label_of(second, other)
        return f"<div class='wb-sub'>{escape(words)}</div>" + view.pairs_html(pairs, names, lang, int(page or 1))

    def download(self, key):
        """The file of a prediction's rows."""
        prediction = listed(self.workspace).get(key)
        if prediction is None or not (prediction.path / ROWS).is_file():
            return None
        return outgoing(prediction.path / ROWS, f"{key.replace('/', '-')}.jsonl")

    def refresh(self):
        """Fresh lists of what can be asked, and what with."""
        runs = adapter_choices(list_runs(self.workspace))
        files = sorted(path.name for path in (self.workspace.root / "tasks").glob("*.y*ml"))
        return (
            gr.Dropdown(choices=[*runs, *model_choices(self.workspace)]),
            gr.Dropdown(choices=dataset_choices(self.workspace)[0]),
            gr.Dropdown(choices=files),
        )

    def _wire(self) -> Tab:
        looks = [self.status, self.task_status, self.halt, self.halt_task]
        looks += [self.totals, self.tasks, self.first, self.second, self.seen]
        asked = [self.target, self.dataset, self.samples, self.tokens, self.temperature]
        self.start.click(self.predict, asked, self.message, **QUIET)
        self.halt.click(self._stopping("predict"), None, self.status, **QUIET)
        given = [self.target, self.task, self.limit, self.shots, self.trust]
        self.run_task.click(self.evaluate, given, self.task_message, **QUIET)
        self.halt_task.click(self._stopping("evaluate"), None, self.task_status, **QUIET)
        gr.on(
            [self.first.change, self.second.change, self.shown.change, self.order.change, self.page.change],
            self.compare,
            [self.first, self.second, self.shown, self.order, self.page],
            self.pairs,
            **LATEST,
        )
        self.give.click(
            self.download,
            self.second,
            self.file,
            show_progress="minimal",
            show_progress_on=[],
            api_visibility="private",
        ).success(None, js=_DOWNLOAD)
        timer = gr.Timer(1, active=False)
        timer.tick(self.look, self.seen, looks, **QUIET)
        lists = Event(self.refresh, None, [self.target, self.dataset, self.task])
        return Tab(on_select=[(lists,)], timers=[timer])
