"""The Probes tab: a set of questions with known answers, asked of the loaded model and of adapters; before and
after."""

import asyncio

import gradio as gr

from workbench.engine.client import complete
from workbench.errors import UserError
from workbench.ui.catalogue import say
from workbench.ui.notes import QUIET, note, told
from workbench.ui.people import needs
from workbench.ui.strings import language, t
from workbench.ui.tabs.chat.engine_panel import EnginePanel
from workbench.ui.tabs.record import Event, Tab
from workbench.ui.token_view import safe
from workbench.uncertainty import probes
from workbench.uncertainty.rules import passes

_CELL = {"pass": "ok", "fail": "bad", "inconsistent": "warn"}
SHOWN = 400  # rows of the table; the whole is in the file


def table_html(reports: list[probes.Report], lang: str) -> str:
    """Counts of each model, and a row per probe with its verdicts and what changed."""
    if not reports or not reports[0].results:
        return ""
    tiles = "".join(
        f"<div class='wb-tile'><b>{r.count('pass')} / {len(r.results)}</b><span>{safe(r.model)} ·"
        f" {safe(say('verdict_pass', lang))}; {r.count('inconsistent')}"
        f" {safe(say('verdict_inconsistent', lang))}</span></div>"
        for r in reports
    )
    rows = probes.before_after(reports)
    changes = {kind: sum(row["change"] == kind for row in rows) for kind in ("fixed", "broken")}
    head = "".join(f"<th>{safe(r.model)}</th>" for r in reports)
    body = []
    for row in rows[:SHOWN]:
        cells = "".join(
            f"<td class='wb-verdict {_CELL[v]}'><b>{safe(say('verdict_' + v, lang))}</b> {safe(a)}</td>"
            for v, a in zip(row["verdicts"], row["answers"], strict=True)
        )
        change = say("change_" + row["change"], lang) if row["change"] else ""
        body.append(f"<tr><td>{safe(row['prompt'])}</td>{cells}<td>{safe(change)}</td></tr>")
    changed = say("probe_changes", lang, **changes) if len(reports) > 1 else ""
    return (
        f"<div class='wb-tiles'>{tiles}</div><p class='wb-sub'>{safe(changed)}</p><div class='wb-wide'><table"
        " class='wb-table' id='probe-table'>"
        f"<tr><th>{safe(say('wording', lang))}</th>{head}<th>{safe(say('change', lang))}</th></tr>"
        f"{''.join(body)}</table></div>"
    )


class ProbesTab:
    """A probe set, the models that it is asked of, and a table of what came out."""

    id = "probes"

    def __init__(self, panel: EnginePanel):
        self.panel = panel
        self.workspace = self.panel.workspace

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        self._widgets()
        return self._wire()

    def _widgets(self) -> None:
        gr.HTML(t("probes_info"), elem_classes="wb-sub")
        with gr.Row(equal_height=True):
            self.chosen = gr.Dropdown(
                list(probes.probe_sets(self.workspace)),
                value="abilities",
                label=t("probe_set"),
                allow_custom_value=True,
                elem_id="probe-set",
            )
            self.adapters = gr.Dropdown(
                [],
                multiselect=True,
                max_choices=3,
                label=t("probe_adapters"),
                elem_id="probe-adapters",
                allow_custom_value=True,
            )
            self.samples = gr.Slider(0, 8, 2, step=1, label=t("probe_samples"), elem_id="probe-samples")
            self.limit = gr.Slider(0, 400, 0, step=1, label=t("probe_limit"), elem_id="probe-limit")
        with gr.Row():
            self.start = gr.Button(t("probe_run"), variant="primary", elem_id="probe-run")
            self.halt = gr.Button(t("stop"), variant="stop", elem_id="probe-stop")
            self.last = gr.Button(t("probe_last"), elem_id="probe-last")
        self.message = gr.HTML(elem_id="probe-message")
        self.table = gr.HTML(elem_id="probe-results")

    @needs("train")
    async def run(self, name, names, count, most, external, url, key, remote, request: gr.Request):
        lang = language(request)
        try:
            backend, base = self.panel.backend(external, url, key, remote, lang)
            questions = probes.read_set(name or "", self.workspace)[: int(most) or None]
            models = [base, *[await self.panel.adapter_name(n) for n in names or [] if backend.own]]
            reports = [probes.Report(name, model) for model in models]
            total = len(models) * len(questions)
            for report in reports:
                for question in questions:
                    messages = [{"role": "user", "content": question["prompt"]}]
                    if question.get("system"):
                        messages.insert(0, {"role": "system", "content": question["system"]})
                    common = {"max_tokens": probes.MAX_TOKENS, "seed": 0}
                    (answer,) = await complete(backend, report.model, messages, temperature=0.0, **common)
                    more = (
                        await complete(
                            backend, report.model, messages, n=int(count), temperature=probes.TEMPERATURE, **common
                        )
                        if count
                        else []
                    )
                    verdicts = {await asyncio.to_thread(passes, text, question) for text in (answer, *more)}
                    report.results.append(probes.Result(question["prompt"], answer, more, probes.verdict_of(verdicts)))
                    done = sum(len(r.results) for r in reports)
                    share = f"<div class='wb-bar'><div style='width:{100 * done / total:.0f}%'></div></div>"
                    yield (
                        (
                            f"<div class='wb-sub'>{safe(report.model)}: {len(report.results)} /"
                            f" {len(questions)}</div>{share}"
                        ),
                        gr.skip(),
                    )
                if not self.workspace.read_only:
                    probes.keep(report, self.workspace)
            yield note(say("probe_done", lang)), table_html(reports, lang)
        except UserError as error:
            yield note(told(error, lang), "bad"), gr.skip()

    def show_last(self, name, names, external, remote, request: gr.Request):
        """What was kept of the last time, for the same models."""
        lang = language(request)
        models = [remote if external else self.panel.engine.model, *(names or [])]
        reports = [report for model in models if model and (report := probes.kept(name or "", model, self.workspace))]
        same = [r for r in reports if [x.prompt for x in r.results] == [x.prompt for x in reports[0].results]]
        return note("" if same else say("probe_none", lang), "warn"), table_html(same, lang)

    def refresh(self):
        return gr.Dropdown(choices=self.panel.adapters()), gr.Dropdown(choices=list(probes.probe_sets(self.workspace)))

    def _wire(self) -> Tab:
        going = self.start.click(
            self.run,
            [self.chosen, self.adapters, self.samples, self.limit, *self.panel.where],
            [self.message, self.table],
            show_progress="hidden",
            show_progress_on=[],
            api_visibility="private",
            concurrency_limit=4,
        )
        self.halt.click(lambda: note("–", "warn"), None, self.message, cancels=[going], **QUIET)
        self.last.click(
            self.show_last,
            [self.chosen, self.adapters, self.panel.external, self.panel.remote_model],
            [self.message, self.table],
            **QUIET,
        )
        return Tab(on_select=[(Event(self.refresh, None, [self.adapters, self.chosen]),)])
