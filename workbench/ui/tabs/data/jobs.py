"""Parts of the Data tab that read a whole dataset: check, statistics, the run's own sequences. Each job has a process
of its own, which ends when nobody listens any more."""

import hashlib
from pathlib import Path

import gradio as gr

from workbench.storage.workspace import Workspace, slug
from workbench.ui.catalogue import say
from workbench.ui.charts import length_chart
from workbench.ui.notes import QUIET, note
from workbench.ui.strings import language, t
from workbench.ui.tabs.data import view
from workbench.ui.tabs.data.shared import DOWNLOAD_JS, LONG, OFF, Data, outgoing, stoppable, stopped
from workbench.ui.theme import CHART_JS

SEQUENCES = 3  # shown at a time


def report_file(workspace: Workspace, name: str) -> Path:
    """Where the report of a dataset's last check lies."""
    return workspace.cache / "reports" / f"{slug(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"


class Check:
    """Every bad row with the reason."""

    def __init__(self, data: Data):
        self.data = data

    def build(self) -> "Check":
        """Lay this part out and wire it. `checked` is the table, whose buttons lead to rows."""
        with gr.Row():
            self.start = gr.Button(t("data_check_run"), elem_id="data-check", variant="primary", **OFF)
            halt = gr.Button(t("stop"), elem_id="data-check-stop", variant="stop", **OFF)
            self.give = gr.Button(t("data_report"), elem_id="data-report", **OFF)
        self.checked = gr.HTML(js_on_load=view.ROWS_JS, elem_id="data-checked")
        found = [self.checked, self.give]
        given = [self.data.chosen, *self.data.form.components]
        going = stoppable(halt, self.start.click, self.run, given, found, **LONG)
        halt.click(stopped, None, self.checked, cancels=[going], **QUIET)
        self.give.click(
            self.report,
            self.data.chosen,
            [self.data.file, self.checked],
            show_progress="minimal",
            show_progress_on=[],
            api_visibility="private",
        ).success(None, js=DOWNLOAD_JS)
        return self

    async def run(self, name, request: gr.Request, *contents):
        """Progress, then the table of what was found."""
        lang, data = language(request), self.data
        if not name:
            yield note(say("data_none", lang), "warn"), gr.skip()
            return
        args = {"dataset": name, "config": data.options(contents), "report": str(report_file(data.workspace, name))}
        finish = lambda result, lang: [view.check_html(result, lang), gr.update(interactive=True)]  # noqa: E731
        async for outputs in data.job("check", args, finish, 1, request):
            yield outputs

    def report(self, name, request: gr.Request):
        """The report of the last check for the browser."""
        path = report_file(self.data.workspace, name or "")
        if not name or not path.is_file():
            return gr.skip(), note(say("data_check_none", language(request)), "warn")
        return outgoing(path), gr.skip()


def taken_over(suggestions: list) -> dict:
    """Options of the Train form that `suggestions` change, with their values as the form has them."""
    changes: dict = {}
    for kind, values in suggestions:
        if "cutoff_len" in values:
            changes["cutoff_len"] = str(values["cutoff_len"])
        elif kind.startswith("packing"):
            changes["packing"] = kind == "packing_on"
    return changes


class Statistics:
    """Lengths, what cutoff_len costs, steps and time of an epoch, suggestions that the Train form can take over."""

    def __init__(self, data: Data):
        self.data = data

    def build(self) -> "Statistics":
        """Lay this part out and wire it."""
        gr.HTML(t("data_stats_info"), elem_classes="wb-sub")
        with gr.Row():
            self.count = gr.Button(t("data_stats_run"), elem_id="data-stats", variant="primary", **OFF)
            self.count_all = gr.Button(t("data_stats_all"), elem_id="data-stats-all")
            self.halt = gr.Button(t("stop"), elem_id="data-stats-stop", variant="stop", **OFF)
            self.apply = gr.Button(t("data_apply"), elem_id="data-apply", **OFF)
        self.applied = gr.HTML(elem_id="data-applied")
        self.counted = gr.HTML(elem_id="data-counted")
        chart = "<div class='live-chart'></div>"
        self.chart = gr.HTML(html_template=chart, js_on_load=CHART_JS, elem_id="data-chart")
        self.suggested = gr.State(None)  # ((dataset, looks) that it is of, suggestions)
        self._wire()
        return self

    async def count_rows(self, args: dict, name, looks, contents, request: gr.Request):
        """Progress, then the table, the chart and the suggestions, with what they are of."""
        args |= {"config": self.data.options(contents)}
        async for *outputs, suggestions in self.data.job("stats", args, self.finish, 2, request):
            if isinstance(suggestions, list):
                able = gr.update(interactive=bool(taken_over(suggestions)))
                yield *outputs, ((name, looks), suggestions), able
            else:
                yield *outputs, suggestions, gr.skip()

    def finish(self, result: dict, lang: str) -> list:
        """The table, the chart and the suggestions of what was counted."""
        figure = gr.skip()
        if result["training_rows"]:
            axes, cutoff = (say("data_axis_length", lang), say("data_axis_rows", lang)), result["cutoff_len"]
            figure = length_chart(result["edges"], result["counts"], cutoff, axes=axes, title=f"cutoff_len {cutoff:,}")
        return [view.stats_html(result, lang), figure, result["suggestions"]]

    async def run_all(self, name, looks, request: gr.Request, *contents):
        """All datasets of the form."""
        async for outputs in self.count_rows({}, name, looks, contents, request):
            yield outputs

    async def run(self, name, looks, request: gr.Request, *contents):
        """The chosen dataset alone."""
        if not name:
            yield note(say("data_none", language(request)), "warn"), *[gr.skip()] * 3
            return
        async for outputs in self.count_rows({"dataset": name}, name, looks, contents, request):
            yield outputs

    def take_over(self, suggested, name, looks, request: gr.Request):
        """Suggested values in the Train form; none where they are of another dataset, or of other rows."""
        counted_of, suggestions = suggested or (None, [])
        changes = taken_over(suggestions if counted_of == (name, looks) else [])
        if not changes:
            return note(say("data_apply_none", language(request)), "warn"), gr.skip(), gr.skip()
        listed = ", ".join(f"{key}: {str(value).lower()}" for key, value in changes.items())
        message = note(say("data_applied", language(request), changes=listed))
        return message, changes.get("cutoff_len", gr.skip()), changes.get("packing", gr.skip())

    def _wire(self) -> None:
        data, shown = self.data, [self.counted, self.chart, self.suggested, self.apply]
        going = [
            stoppable(self.halt, button.click, run, [data.chosen, data.looks, *data.form.components], shown, **LONG)
            for button, run in ((self.count, self.run), (self.count_all, self.run_all))
        ]
        self.halt.click(stopped, None, self.counted, cancels=going, **QUIET)
        options = [data.form.widgets[name] for name in ("cutoff_len", "packing")]
        self.apply.click(self.take_over, [self.suggested, data.chosen, data.looks], [self.applied, *options], **QUIET)


class Sequences:
    """What the trainer's collator gives to the model: the run's datasets mixed, cut and packed."""

    def __init__(self, data: Data):
        self.data = data

    def build(self) -> None:
        """Lay this part out and wire it."""
        gr.HTML(t("data_batches_info"), elem_classes="wb-sub")
        with gr.Row(equal_height=True):
            first = gr.Number(
                1, precision=0, label=t("data_sequence_from"), elem_id="data-first", scale=1, min_width=120
            )
            show = gr.Button(t("data_batches_run"), elem_id="data-batches", variant="primary", scale=3)
            halt = gr.Button(t("stop"), elem_id="data-batches-stop", variant="stop", scale=1, **OFF)
        shown = gr.HTML(elem_id="data-sequences")
        going = stoppable(halt, show.click, self.run, [first, *self.data.form.components], shown, **LONG)
        halt.click(stopped, None, shown, cancels=[going], **QUIET)

    async def run(self, number, request: gr.Request, *contents):
        """A few sequences from `number` on."""
        args = {"config": self.data.options(contents), "start": max(0, int(number or 1) - 1), "count": SEQUENCES}
        finish = lambda result, lang: [view.batches_html(result, lang)]  # noqa: E731
        async for (html,) in self.data.job("batches", args, finish, 0, request, torch=True):
            yield html
