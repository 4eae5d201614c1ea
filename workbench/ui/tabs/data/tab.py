"""The Data tab: what a run will be trained on, before it is paid for. Here: choosing, looking at rows, editing one of
them."""

import asyncio
import contextlib
import json

import gradio as gr

from workbench.config.options import RunConfig
from workbench.data.editing import is_own
from workbench.data.encodings import NAMES, WrongEncoding
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.storage.files import parse_json
from workbench.storage.workspace import Workspace
from workbench.ui.catalogue import say
from workbench.ui.form import Form
from workbench.ui.notes import EACH, LATEST, QUIET, note, told
from workbench.ui.questions import asking
from workbench.ui.strings import language, t
from workbench.ui.tabs.data import files, jobs, pairs, view
from workbench.ui.tabs.data.shared import LONG, OFF, Data, stoppable, stopped, user_of
from workbench.ui.tabs.data.view import note_safe
from workbench.ui.tabs.record import Event, Tab, bind

PAGE = 5  # rows at a time
_NOT_OFFERED = (gr.update(visible=False), "")
_IDS_JS = (
    "(on) => { document.querySelector('#data-rows').classList.toggle('ids', on);"
    " document.querySelector('#data-sequences')?.classList.toggle('ids', on); }"
)
# What was checked or counted goes at once, and in the browser, when it is of another dataset or of other rows: an
# answer of the server could come after the next check's.
_FORGET_JS = """(name, looks) => {
  const key = name + ' ' + looks, kept = {__type__: 'update'};
  const same = window.workbenchDataset === key;
  window.workbenchDataset = key;
  const found = Array(4).fill(same ? kept : '');
  return [...found, same ? kept : {__type__: 'update', interactive: false}];
}"""


class DataTab:
    """Choosing a dataset, looking at its rows, editing one of them; the other parts have modules of their own."""

    id = "data"

    def __init__(self, workspace: Workspace, form: Form, worker: DataWorker):
        self.workspace = workspace
        self.form = form
        self.worker = worker

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        self.data = Data(self.workspace, self.form, self.worker)
        self._widgets()
        return self._wire()

    def _widgets(self) -> None:
        with gr.Row():
            with gr.Column(scale=5, min_width=420):
                self.chosen = self.data.chosen = gr.Dropdown(
                    [],
                    label=t("data_set"),
                    info=t("data_set_info"),
                    elem_id="data-set",
                    interactive=True,
                    allow_custom_value=True,
                )
                self.about = gr.HTML(elem_id="data-about")
                self.use = gr.Button(t("data_use"), elem_id="data-use", variant="primary", **OFF)
                self.used = gr.HTML(elem_id="data-used")
            with gr.Column(scale=3, min_width=260):
                self.drop = gr.File(label=t("data_drop"), elem_id="data-drop", height=140, file_count="single")
                self.uploaded = gr.HTML(elem_id="data-uploaded")
                self.halt_upload = gr.Button(
                    t("stop"), elem_id="data-upload-stop", variant="stop", size="sm", visible=False
                )
        self.message = gr.HTML(elem_id="data-message")
        self.read_as = gr.Button("", visible=False, size="sm", elem_id="data-read-as")
        self.offered = gr.State("")  # the encoding that this button reads the dataset in
        with gr.Tabs(elem_id="data-parts") as self.parts:
            with gr.Tab(t("data_preview"), id="preview", elem_id="part-preview"):
                with gr.Row(equal_height=True):
                    self.columns = gr.CheckboxGroup(
                        [(t(f"data_{part}"), part) for part in view.PARTS],
                        value=list(view.PARTS),
                        label=t("data_columns"),
                        elem_id="data-columns",
                        scale=4,
                    )
                    self.ids = gr.Checkbox(label=t("data_ids"), value=False, elem_id="data-ids", scale=1, min_width=120)
                    self.start = gr.Number(
                        1, minimum=1, precision=0, label=t("data_row"), elem_id="data-row", scale=1, min_width=110
                    )
                    self.back = gr.Button(t("data_back"), elem_id="data-back", scale=1, min_width=100, **OFF)
                    self.on = gr.Button(t("data_on"), elem_id="data-on", scale=1, min_width=100, **OFF)
                self.rows = gr.HTML(js_on_load=view.ROWS_JS, elem_id="data-rows")
                with gr.Accordion(t("data_edit_title"), open=False, elem_id="data-edit") as self.editing:
                    with gr.Row(equal_height=True):
                        self.row = gr.Number(
                            1,
                            minimum=1,
                            precision=0,
                            label=t("data_edit_row"),
                            elem_id="data-edit-row",
                            scale=1,
                            min_width=110,
                        )
                        self.fetch = gr.Button(t("data_fetch"), elem_id="data-fetch", scale=1, min_width=100, **OFF)
                        self.save = gr.Button(
                            t("data_save_row"), elem_id="data-save", variant="primary", scale=2, min_width=120, **OFF
                        )
                        self.cut = gr.Button(
                            t("data_delete_row"), elem_id="data-delete", variant="stop", scale=2, min_width=120, **OFF
                        )
                        self.halt = gr.Button(
                            t("stop"), elem_id="data-edit-stop", variant="stop", scale=1, min_width=80, **OFF
                        )
                    self.source = gr.Textbox(label=t("data_edit_source"), lines=5, max_lines=18, elem_id="data-source")
                    self.edited = gr.HTML(elem_id="data-edited")
            with gr.Tab(t("data_check"), id="check", elem_id="part-check"):
                self.check = jobs.Check(self.data).build()
            with gr.Tab(t("data_stats"), id="stats", elem_id="part-stats"):
                self.statistics = jobs.Statistics(self.data).build()
            with gr.Tab(t("data_batches"), id="batches", elem_id="part-batches"):
                jobs.Sequences(self.data).build()
            with gr.Tab(t("data_pairs"), id="pairs", elem_id="part-pairs"):
                self.pairs = pairs.Pairs(self.data).build()
            with gr.Tab(t("data_files"), id="files", elem_id="part-files"):
                self.files = files.Files(self.data).build()
        self.asked: dict[str, str] = {}  # by session, whose number of rows was asked for last
        self.opened = gr.State(None)  # the dataset that is shown
        self.rows_in_all = gr.State(0)
        self.before = gr.State(None)  # the row that is edited: (dataset, number, as it was fetched)

    def describe(self, name: str, contents, layout: str, total: int | None, lang: str) -> str:
        """What is shown, and under which of the Train form's options."""
        config, info = self.data.options(contents), self.data.info(name, contents)
        ownership = say("data_of_workspace" if is_own(name, self.workspace, info.path) else "data_not_own", lang)
        masks = "".join(f", {key}" for key in ("train_on_prompt", "mask_history") if config.get(key))
        shown = {key: config.get(key, RunConfig.model_fields[key].default) for key in ("template", "cutoff_len")}
        about = say(
            "data_about",
            lang,
            layout=layout,
            place=f"{info.path or info.hub or info.ms_hub} ({ownership})",
            count="" if total is None else say("data_rows_total", lang, count=f"{total:,}"),
            template=shown["template"],
            cutoff=shown["cutoff_len"],
            model=str(config.get("model_name_or_path", "–")).split("/")[-1],
            masks=masks,
        )
        return f"<div class='wb-sub'>{view.safe(about)}</div>"

    def open(self, name, opened, shown, number, request: gr.Request, *contents):
        """The dataset as it is now. Another one than `opened` begins with its first row, and nothing is edited."""
        if name == opened:
            return *self.show(name, shown, number, request, *contents), *[gr.skip()] * (7 + len(self.files.layout))
        rows = self.show(name, shown, 1, request, *contents)
        off = gr.update(interactive=False)
        return *rows, name, 1, None, "", "", off, off, *self.files.layout_of(name, contents)

    def show(self, name, shown, number, request: gr.Request, *contents):
        """The page of rows that begins with row `number`."""
        lang, number = language(request), max(1, int(number or 1))
        if not name:
            return note(say("data_none", lang)), "", "", *_NOT_OFFERED, *self.able(name, contents)
        try:
            self.data.info(name, contents)
            tokens = bool({"tokens", "text"} & set(shown or []))
            found = self.data.worker.ask(
                "preview",
                user_of(request),
                dataset=name,
                config=self.data.options(contents),
                start=number - 1,
                count=PAGE + 1,
                tokens=tokens,
            )
            rows = found["rows"][:PAGE]
            message = note_safe(say("data_no_tokens", lang, why=found["problem"]), "warn") if found["problem"] else ""
            if not found["rows"]:
                message += note(say("data_no_rows", lang, row=f"{number:,}"), "warn")
            about_ = self.describe(name, contents, found["layout"], None, lang)
            able = self.able(name, contents, back=number > 1, on=len(found["rows"]) > PAGE)
            return message, about_, view.rows_html(rows, shown or [], lang), *_NOT_OFFERED, *able
        except WrongEncoding as error:
            label = say("data_read_as", lang, encoding=NAMES[error.encoding])
            offered = gr.update(value=label, visible=True), error.encoding
            return note_safe(told(error, lang), "bad"), "", "", *offered, *self.able(name, contents)
        except UserError as error:
            return note_safe(told(error, lang), "bad"), "", "", *_NOT_OFFERED, *self.able(name, contents)

    @property
    def buttons(self) -> list:
        """Those that apply to some datasets, or to some of their rows."""
        check, files = self.check, self.files
        reading = [self.use, self.fetch, check.start, self.statistics.count, files.download]
        return [self.back, self.on, *reading, files.copy, files.split, files.keep, files.drop, check.give]

    def able(self, name, contents, *, back: bool | None = None, on: bool = False) -> list:
        """Each of `buttons` enabled where it applies. `back`, `on`: there are rows before and behind those that are
        shown; without them the dataset cannot be read."""
        readable, writable = back is not None, not self.workspace.read_only
        path = None
        if name:
            with contextlib.suppress(UserError):
                path = self.data.info(name, contents).path
        own = bool(name) and is_own(name, self.workspace, path) and writable
        report = bool(name) and jobs.report_file(self.workspace, name).is_file()
        changing = readable and writable
        wanted = [bool(back), on, *[readable] * 5, changing, changing, bool(name) and writable, own, report]
        return [gr.update(interactive=one) for one in wanted]

    async def read_so(self, request, name, encoding, *contents):
        """Read a dataset of the workspace in another encoding; of another one, make a copy in the workspace."""
        lang, user = language(request), user_of(request)
        info, args = self.data.info(name, contents), {"dataset": name, "config": self.data.options(contents)}
        if is_own(name, self.workspace, info.path):
            layout = {key: getattr(info, key) for key in ("formatting", "ranking", "columns", "tags")}
            await self.data.worker.change("layout", user=user, encoding=encoding, **layout, **args)
            return say("data_read_so", lang, encoding=NAMES[encoding]), gr.skip()
        copy, lost = await self.data.worker.change("copy", user=user, encoding=encoding, **args)
        words = say("data_copied", lang, name=copy) + (say("data_left_out", lang, count=lost) if lost else "")
        return words, gr.update(choices=self.data.choices(contents), value=copy)

    async def total(self, name, request: gr.Request, *contents):
        """The number of rows, for which the whole file may have to be read: then in a process of its own."""
        if not name:
            return gr.skip(), 0
        if len(self.asked) > 1000:
            self.asked.clear()
        self.asked[request.session_hash] = name
        args, count = {"dataset": name, "config": self.data.options(contents)}, 0
        try:
            look = await asyncio.to_thread(
                self.data.worker.ask, "preview", user_of(request), count=0, tokens=False, **args
            )
            if look["quick"]:
                count = await asyncio.to_thread(self.data.worker.ask, "count", user_of(request), **args)
            else:
                async for answer in self.data.worker.job("count", user=user_of(request), **args):
                    count = answer.get("result")
            about = self.describe(name, contents, look["layout"], count, language(request))
        except UserError:
            return gr.skip(), 0
        return (about, count or 0) if self.asked.get(request.session_hash) == name else (gr.skip(), gr.skip())

    def get_row(self, name, number, request: gr.Request, *contents):
        if not name:
            return gr.skip(), gr.skip(), None, *[gr.update(interactive=False)] * 2
        try:
            self.data.info(name, contents)
            text = self.data.worker.ask(
                "row", user_of(request), dataset=name, config=self.data.options(contents), number=int(number or 1)
            )
        except UserError as error:
            off = gr.update(interactive=False)
            return note_safe(told(error, language(request)), "bad"), gr.skip(), None, off, off
        able = gr.update(interactive=True)
        return "", _pretty(text), (name, int(number or 1), text), able, able

    def fetched(self, name, number, exists, lang: str) -> str:
        if not exists or tuple(exists[:2]) != (name, int(number or 0)):
            raise UserError(say("data_fetch_first", lang))
        return exists[2]

    async def save_row(self, request, name, number, exists, text, *contents):
        lang = language(request)
        args = {"dataset": name, "config": self.data.options(contents), "row": int(number or 0)}
        await self.data.worker.change(
            "change", user=user_of(request), before=self.fetched(name, number, exists, lang), after=text, **args
        )
        line = json.dumps(parse_json(text), ensure_ascii=False)  # as the file has it now
        return say("data_row_saved", lang, row=int(number)), (name, int(number), line)

    async def delete_row(self, request, name, number, exists, *contents):
        lang = language(request)
        args = {"dataset": name, "config": self.data.options(contents), "row": int(number or 0)}
        left = await self.data.worker.change(
            "change", user=user_of(request), before=self.fetched(name, number, exists, lang), after=None, **args
        )
        off = gr.update(interactive=False)
        return say("data_row_deleted", lang, row=int(number), left=f"{left:,}"), None, "", off, off

    def clicked(self, event: gr.EventData):
        """A row's button: to edit it, or (in the check's table) to look at it."""
        if number := event._data.get("edit"):
            return gr.skip(), gr.skip(), int(number), gr.update(open=True)
        return gr.update(selected="preview"), int(event._data["look"]), gr.skip(), gr.skip()

    def arrive(self, name, request: gr.Request, *contents):
        """What can be chosen now; another dataset where the chosen one is gone."""
        try:
            listed, message = self.data.choices(contents), ""
        except UserError as error:
            listed, message = [], note_safe(told(error, language(request)), "bad")
        names, wanted = [value for _, value in listed], (self.data.options(contents).get("dataset") or "").split(",")[0]
        if not name or (name not in names and "/" not in name and "." not in name):
            name = wanted if wanted in names else next((value for label, value in listed if label == value), None)
        return gr.update(choices=listed, value=name), message

    def _wire(self) -> Tab:
        contents, data = self.form.components, self.data
        rows_of = [self.columns, self.start, *contents]
        shown = [self.message, self.about, self.rows, self.read_as, self.offered, *self.buttons]
        edited = [self.before, self.source, self.edited, self.save, self.cut]
        opened_anew = [self.opened, self.start, *edited, *self.files.layout]
        findings = [
            self.check.checked,
            self.statistics.counted,
            self.statistics.chart,
            self.statistics.applied,
            self.statistics.apply,
        ]
        opening = (
            Event(None, [self.chosen, data.looks], findings, _FORGET_JS),
            Event(self.open, [self.chosen, self.opened, *rows_of], [*shown, *opened_anew]),
            Event(self.total, [self.chosen, *contents], [self.about, self.rows_in_all]),
        )
        showing = (self.show, [self.chosen, *rows_of], shown)

        bind(self.chosen.input, opening, trigger_mode="always_last")
        gr.on([self.columns.input, self.start.input], *showing, **LATEST)
        data.shown_after(
            self.read_as.click(
                data.changing(self.read_so, 1),
                [data.looks, self.chosen, self.offered, *contents],
                [self.uploaded, data.looks, self.chosen],
                **LONG,
            )
        )
        for button, rows in ((self.back, -PAGE), (self.on, PAGE)):
            button.click(_moved(rows), self.start, self.start, **QUIET).then(*showing, **QUIET)
        self.ids.change(None, self.ids, None, js=_IDS_JS, api_visibility="private")
        self._wire_editing(showing)
        files.Upload(data).wire(self.drop, self.uploaded, self.halt_upload)
        for action in data.actions:
            bind(action.then, opening, trigger_mode="always_last")
        arriving = Event(self.arrive, [self.chosen, *contents], [self.chosen, self.message])
        return Tab(on_select=[(arriving, *opening)])

    def _wire_editing(self, showing: tuple) -> None:
        contents, data = self.form.components, self.data
        fetching = (
            self.get_row,
            [self.chosen, self.row, *contents],
            [self.edited, self.source, self.before, self.save, self.cut],
        )
        clicked = (self.clicked, None, [self.parts, self.start, self.row, self.editing])
        self.rows.click(*clicked, **EACH).then(*fetching, **QUIET).success(
            None,
            js="() => document.querySelector('#data-edit')?.scrollIntoView({behavior: 'smooth', block: 'nearest'})",
            api_visibility="private",
        )
        self.check.checked.click(*clicked, **EACH).then(*showing, **QUIET)
        self.fetch.click(*fetching, **QUIET)
        saving = data.shown_after(
            stoppable(
                self.halt,
                self.save.click,
                data.changing(self.save_row, 1),
                [data.looks, self.chosen, self.row, self.before, self.source, *contents],
                [self.edited, data.looks, self.before],
                **LONG,
            )
        )
        cutting = data.shown_after(
            stoppable(
                self.halt,
                self.cut.click,
                data.changing(self.delete_row, 4),
                [data.looks, self.chosen, self.row, self.before, *contents],
                [self.edited, data.looks, self.before, self.source, self.save, self.cut],
                js=asking("data_row_sure", 1, 2),
                trigger_mode="always_last",
                **LONG,
            )
        )
        self.halt.click(stopped, None, self.edited, cancels=[saving, cutting], **QUIET)


def _moved(rows: int):
    """A handler that goes on or back by a number of rows."""
    return lambda number: max(1, int(number or 1) + rows)


def _pretty(text: str) -> str:
    try:
        shown = json.dumps(parse_json(text), ensure_ascii=False, indent=1)
        shown.encode()
        return shown
    except (ValueError, UserError):  # a broken row, to be mended; or signs that cannot be sent to the browser
        return text
