"""A group of runs in the Runs tab: what differs, the losses, best first; a chart across all options; stop them all."""

import math
from html import escape

import gradio as gr
import orjson

from workbench.config.sweep import OWN
from workbench.errors import UserError
from workbench.runs.run import run_named
from workbench.storage.workspace import Workspace
from workbench.train import sweep
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.charts import literal
from workbench.ui.notes import QUIET, middle, note, told
from workbench.ui.questions import asking
from workbench.ui.strings import language, t
from workbench.ui.tabs.runs import view
from workbench.ui.theme import CHART_JS

MOST = 200  # runs of a group that are shown
_AXES = 10  # options in the chart
_TICKS = 8  # of an axis, at values of the runs
_SPREAD = 20.0  # of positive numbers: from there on their axis is logarithmic


class GroupPart:
    """The part of a run's page about its group."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def build(self) -> None:
        """Lay it out inside a `gr.Tab`."""
        self.head = gr.HTML(elem_id="group-head")
        self.table = gr.HTML(elem_id="group-table", js_on_load=view.TABLE_JS)
        self.chart = gr.HTML(html_template="<div class='live-chart'></div>", js_on_load=CHART_JS, elem_id="group-chart")
        self.stop = gr.Button(t("group_stop"), variant="stop", size="sm", elem_id="group-stop", min_width=140)
        self.said = gr.HTML(elem_id="group-note")
        self.name = gr.Textbox(visible="hidden")
        self.seen = gr.State(None)

    def wire(self, tab, chosen, current, timer) -> None:
        """Wire it; `chosen` is the dropdown of the chosen run, `current` the run that is shown."""
        shown = [self.head, self.table, self.chart, self.name, self.seen]
        timer.tick(self.look, [current, self.seen], shown, **QUIET)
        tab.select(lambda: None, None, self.seen, **QUIET)  # what was sent to a hidden part is sent again
        self.table.click(None, None, chosen, js=view.picked_js("group-table"), api_visibility="private")
        self.stop.click(self.stopped, self.name, self.said, js=asking("group_stop_sure"), **QUIET)

    def look(self, run_id, seen, request: gr.Request):
        """The group of the run that is shown, sent when it has changed."""
        lang, run = language(request), run_named(self.workspace, run_id)
        group = run.notes().get("group", "") if run else ""
        rows = view.summaries(self.workspace, group=group)[:MOST] if group else []
        fresh = lang, group, tuple((row.run.id, row.state.state, row.best_loss, row.best_eval) for row in rows)
        if fresh == seen:
            return [gr.skip()] * 5
        if not rows:
            return note(say("group_none", lang), "warn"), "", "", "", fresh
        ranked = best_first(rows)
        options = differing(ranked)
        head = say("group_head", lang, group=group, count=len(rows), going=sum(row.state.active for row in rows))
        html = table_html(ranked, options, run_id, lang)
        return f"<div class='wb-sub'>{escape(head)}</div>", html, parallel(ranked, options, lang), group, fresh

    @people.needs("train")
    def stopped(self, group, request: gr.Request):
        """Stop the user's own runs of the group, after the question."""
        if not group:
            return gr.skip()
        lang = language(request)
        try:
            self.workspace.check_writable()
            taken, stopped = sweep.stop(self.workspace, str(group), people.may_change)
        except UserError as error:
            return note(told(error, lang), "bad")
        return note(say("group_stopped", lang, group=group, taken=taken, stopped=stopped))


def best_first(rows: list[view.Summary]) -> list[view.Summary]:
    """Runs by their lowest evaluation loss, or the loss where none was evaluated; those without any last."""
    evaluated = any(row.best_eval is not None for row in rows)

    def loss(row: view.Summary) -> float:
        value = row.best_eval if evaluated else row.best_loss
        return float("inf") if value is None else value

    return sorted(rows, key=loss)


def differing(rows: list[view.Summary]) -> dict[str, list]:
    """Option -> its values, one for each run, of the options in which the runs of a group differ."""
    configs = [row.run.config_values() for row in rows]
    names = dict.fromkeys(name for row in rows for name in row.run.notes().get("sweep", "").split(",") if name)
    names |= dict.fromkeys(key for config in configs for key in config)
    found = {}
    for name in (name for name in names if name not in OWN):
        values = [config.get(name) for config in configs]
        if len({repr(value) for value in values}) > 1:
            found[name] = values
    return found


def table_html(rows: list[view.Summary], options: dict[str, list], chosen, lang: str) -> str:
    """The table; a row is a button that chooses its run."""
    columns = ("state", "run", "loss", "best_loss", "eval_loss")
    heads = [say(f"column_{column}", lang) for column in columns]
    heads[2:2] = options
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in heads)
    lines = []
    for number, row in enumerate(rows):
        state = escape(say("state_" + row.state.state, lang))
        cells = [f"<span class='wb-badge {escape(row.state.state)}'>{state}</span>", middle(row.title, 34)]
        cells += [middle(_text(values[number])) for values in options.values()]
        cells += [_loss(row.last.get("loss")), _loss(row.best_loss), _loss(row.best_eval)]
        key, marked = escape(row.run.id, quote=True), str(row.run.id == chosen).lower()
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr data-run='{key}' tabindex='0' aria-selected='{marked}'>{body}</tr>")
    table = f"<table class='wb-table wb-runs'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div class='wb-wide'>{table}</div>"


def _text(value) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _loss(value) -> str:
    return "–" if value is None else f"{value:.4f}"


def parallel(rows: list[view.Summary], options: dict[str, list], lang: str) -> str:
    """Plotly's parallel coordinates: an axis for each option that differs, and the loss; runs without a loss are left
    out. Empty with fewer than two runs."""
    evaluated = any(row.best_eval is not None for row in rows)
    losses = [row.best_eval if evaluated else row.best_loss for row in rows]
    kept = [number for number, loss in enumerate(losses) if loss is not None]
    if len(kept) < 2 or not options:
        return ""
    chosen = list(options.items())[:_AXES]
    dimensions = [_dimension(name, [values[number] for number in kept]) for name, values in chosen]
    shown = [float(f"{losses[number]:.5g}") for number in kept]
    name = say("column_eval_loss" if evaluated else "column_best_loss", lang)
    dimensions.append({"label": literal(name), "values": shown})
    line = {"color": shown, "colorscale": "Viridis", "reversescale": True, "showscale": False}
    data = [{"type": "parcoords", "dimensions": dimensions, "line": line}]
    layout = {"margin": {"l": 70, "r": 70, "t": 60, "b": 30}}
    return orjson.dumps({"data": data, "layout": layout}).decode()


def _dimension(name: str, values: list) -> dict:
    """An axis: numbers as they are, in their logarithm where they span decades; else a place for each value."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers:
        distinct = sorted(set(values))
        log = distinct[0] > 0 and distinct[-1] / distinct[0] >= _SPREAD
        place = math.log10 if log else float
        ticks = distinct[:: math.ceil(len(distinct) / _TICKS)]
        marks = {"tickvals": [place(value) for value in ticks], "ticktext": [f"{value:g}" for value in ticks]}
        return {"label": literal(name), "values": [place(value) for value in values], **marks}
    texts = list(dict.fromkeys(_text(value) for value in values))
    places = {"tickvals": list(range(len(texts))), "ticktext": [literal(text[:40]) for text in texts]}
    return {"label": literal(name), "values": [texts.index(_text(value)) for value in values], **places}
