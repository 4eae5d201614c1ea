"""The Data tab: what a run will be trained on, before it is paid for. Here: choosing, looking at rows, editing one of them."""

import asyncio
import json

import gradio as gr

from workbench.config.options import RunConfig
from workbench.data.editing import is_own
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.storage.files import parse_json
from workbench.storage.workspace import Workspace
from workbench.ui.catalogue import say
from workbench.ui.form import Form
from workbench.ui.notes import QUIET, note
from workbench.ui.strings import language, t
from workbench.ui.tabs.data import files, jobs, view
from workbench.ui.tabs.data.shared import LONG, Data, asking, stopped, user_of
from workbench.ui.tabs.data.view import note_safe

PAGE = 5  # rows at a time
_IDS_JS = "(on) => { document.querySelector('#data-rows').classList.toggle('ids', on); document.querySelector('#data-sequences')?.classList.toggle('ids', on); }"


def build(workspace: Workspace, form: Form, worker: DataWorker) -> dict:
    """Lay the tab out and wire it; `form` is the Train tab's, whose options decide what the model sees."""
    data = Data(workspace, form, worker)
    with gr.Row():
        with gr.Column(scale=5, min_width=420):
            chosen = data.chosen = gr.Dropdown(
                [], label=t("data_set"), info=t("data_set_info"), elem_id="data-set", interactive=True, allow_custom_value=True)  # fmt: skip
            about = gr.HTML(elem_id="data-about")
        with gr.Column(scale=3, min_width=260):
            drop = gr.File(label=t("data_drop"), elem_id="data-drop", height=140, file_count="single")
            uploaded = gr.HTML(elem_id="data-uploaded")
            halt_upload = gr.Button(t("stop"), elem_id="data-upload-stop", variant="stop", size="sm", visible=False)
    message = gr.HTML(elem_id="data-message")
    with gr.Tabs(elem_id="data-parts") as parts:
        with gr.Tab(t("data_preview"), id="preview", elem_id="part-preview"):
            with gr.Row(equal_height=True):
                columns = gr.CheckboxGroup(
                    [(t(f"data_{part}"), part) for part in view.PARTS], value=list(view.PARTS), label=t("data_columns"),
                    elem_id="data-columns", scale=4)  # fmt: skip
                ids = gr.Checkbox(label=t("data_ids"), value=False, elem_id="data-ids", scale=1, min_width=120)
                start = gr.Number(
                    1, minimum=1, precision=0, label=t("data_row"), elem_id="data-row", scale=1, min_width=110
                )
                back = gr.Button(t("data_back"), elem_id="data-back", scale=1, min_width=100)
                on = gr.Button(t("data_on"), elem_id="data-on", scale=1, min_width=100)
            rows = gr.HTML(js_on_load=view.ROWS_JS, elem_id="data-rows")
            with gr.Accordion(t("data_edit_title"), open=False, elem_id="data-edit") as editing:
                with gr.Row(equal_height=True):
                    row = gr.Number(
                        1,
                        minimum=1,
                        precision=0,
                        label=t("data_edit_row"),
                        elem_id="data-edit-row",
                        scale=1,
                        min_width=110,
                    )
                    fetch = gr.Button(t("data_fetch"), elem_id="data-fetch", scale=1, min_width=100)
                    save = gr.Button(t("data_save_row"), elem_id="data-save", variant="primary", scale=2, min_width=120)
                    cut = gr.Button(t("data_delete_row"), elem_id="data-delete", variant="stop", scale=2, min_width=120)
                    halt = gr.Button(t("stop"), elem_id="data-edit-stop", variant="stop", scale=1, min_width=80)
                source = gr.Textbox(label=t("data_edit_source"), lines=5, max_lines=18, elem_id="data-source")
                edited = gr.HTML(elem_id="data-edited")
        with gr.Tab(t("data_check"), id="check", elem_id="part-check"):
            checked = jobs.build_check(data)
        with gr.Tab(t("data_stats"), id="stats", elem_id="part-stats"):
            jobs.build_statistics(data)
        with gr.Tab(t("data_batches"), id="batches", elem_id="part-batches"):
            jobs.build_sequences(data)
        with gr.Tab(t("data_files"), id="files", elem_id="part-files"):
            files.build(data)
    questions = (("row-sure", "data_row_sure"), ("dataset-sure", "data_remove_sure"))
    gr.HTML("".join(f"<span id='{id_}' hidden>{say(key, 'en')} · {say(key, 'zh')}</span>" for id_, key in questions))
    asked: dict[str, str] = {}  # by session, whose number of rows was asked for last
    before = gr.State(None)  # the row that is edited: (dataset, number, as it was fetched)

    def describe(name: str, contents, layout: str, total: int | None, lang: str) -> str:
        """What is shown, and under which of the Train form's options."""
        config, info = data.options(contents), data.info(name, contents)
        place = say("data_of_workspace" if is_own(name, workspace, info.path) else "data_not_own", lang)
        masks = "".join(f", {key}" for key in ("train_on_prompt", "mask_history") if config.get(key))
        shown = {key: config.get(key, RunConfig.model_fields[key].default) for key in ("template", "cutoff_len")}
        words = say(
            "data_about", lang, layout=layout, place=f"{info.path or info.hub or info.ms_hub} ({place})",
            count="" if total is None else say("data_rows_total", lang, count=f"{total:,}"), template=shown["template"], cutoff=shown["cutoff_len"],
            model=str(config.get("model_name_or_path", "–")).split("/")[-1], masks=masks)  # fmt: skip
        return f"<div class='wb-sub'>{view.safe(words)}</div>"

    def show(name, shown, number, request: gr.Request, *contents):
        """The page of rows that begins with row `number`."""
        lang, number = language(request), max(1, int(number or 1))
        if not name:
            return note(say("data_none", lang)), "", ""
        try:
            data.info(name, contents)
            tokens = bool({"tokens", "text"} & set(shown or []))
            found = data.worker.ask(
                "preview", user_of(request), dataset=name, config=data.options(contents), start=number - 1, count=PAGE, tokens=tokens)  # fmt: skip
            words = note_safe(say("data_no_tokens", lang, why=found["problem"]), "warn") if found["problem"] else ""
            if not found["rows"]:
                words += note(say("data_no_rows", lang, row=f"{number:,}"), "warn")
            about_ = describe(name, contents, found["layout"], None, lang)
            return words, about_, view.rows_html(found["rows"], shown or [], lang)
        except UserError as error:
            return note_safe(str(error), "bad"), "", ""

    async def total(name, request: gr.Request, *contents):
        """The number of rows, for which the whole file may have to be read: then in a process of its own."""
        if not name:
            return gr.skip()
        if len(asked) > 1000:
            asked.clear()
        asked[request.session_hash] = name
        args, count = {"dataset": name, "config": data.options(contents)}, 0
        try:
            look = await asyncio.to_thread(data.worker.ask, "preview", user_of(request), count=0, tokens=False, **args)
            if look["quick"]:
                count = await asyncio.to_thread(data.worker.ask, "count", user_of(request), **args)
            else:
                async for answer in data.worker.job("count", user=user_of(request), **args):
                    count = answer.get("result")
            words = describe(name, contents, look["layout"], count, language(request))
        except UserError:
            return gr.skip()
        return words if asked.get(request.session_hash) == name else gr.skip()

    def get_row(name, number, request: gr.Request, *contents):
        if not name:
            return gr.skip(), gr.skip(), None
        try:
            data.info(name, contents)
            text = data.worker.ask(
                "row", user_of(request), dataset=name, config=data.options(contents), number=int(number or 1)
            )
        except UserError as error:
            return note_safe(str(error), "bad"), gr.skip(), None
        return "", _pretty(text), (name, int(number or 1), text)

    def fetched(name, number, there, lang: str) -> str:
        if not there or tuple(there[:2]) != (name, int(number or 0)):
            raise UserError(say("data_fetch_first", lang))
        return there[2]

    async def save_row(request, name, number, there, text, *contents):
        lang = language(request)
        args = {"dataset": name, "config": data.options(contents), "row": int(number or 0)}
        await data.worker.change(
            "change", user=user_of(request), before=fetched(name, number, there, lang), after=text, **args
        )
        line = json.dumps(parse_json(text), ensure_ascii=False)  # as the file has it now
        return say("data_row_saved", lang, row=int(number)), (name, int(number), line)

    async def delete_row(request, name, number, there, *contents):
        lang = language(request)
        args = {"dataset": name, "config": data.options(contents), "row": int(number or 0)}
        left = await data.worker.change(
            "change", user=user_of(request), before=fetched(name, number, there, lang), after=None, **args
        )
        return say("data_row_deleted", lang, row=int(number), left=f"{left:,}"), None, ""

    def clicked(event: gr.EventData):
        """A row's button: to edit it, or (in the check's table) to look at it."""
        if number := event._data.get("edit"):
            return gr.skip(), gr.skip(), int(number), gr.update(open=True)
        return gr.update(selected="preview"), int(event._data["look"]), gr.skip(), gr.skip()

    def arrive(name, visits, *contents):
        """What can be chosen now; another dataset where the chosen one is gone; the rows anew, as the options may have changed."""
        try:
            listed, words = data.choices(contents), ""
        except UserError as error:
            listed, words = [], note_safe(str(error), "bad")
        names, wanted = [value for _, value in listed], (data.options(contents).get("dataset") or "").split(",")[0]
        if not name or (name not in names and "/" not in name and "." not in name):
            name = wanted if wanted in names else next((value for label, value in listed if label == value), None)
        return gr.update(choices=listed, value=name), (visits or 0) + 1, words

    contents = form.components
    gr.on([chosen.change, columns.change, start.change, data.looks.change, data.visits.change], show, [chosen, columns, start, *contents], [message, about, rows],
          trigger_mode="always_last", **QUIET).then(total, [chosen, *contents], about, **QUIET)  # fmt: skip
    chosen.change(lambda: (1, None, ""), None, [start, before, source], **QUIET)
    gr.on(
        [chosen.change, data.looks.change], lambda: "", None, checked, **QUIET
    )  # row numbers may not be true any more
    back.click(lambda number: max(1, int(number or 1) - PAGE), start, start, **QUIET)
    on.click(lambda number: int(number or 1) + PAGE, start, start, **QUIET)
    ids.change(None, ids, None, js=_IDS_JS, api_visibility="private")
    fetching = (get_row, [chosen, row, *contents], [edited, source, before])
    rows.click(clicked, None, [parts, start, row, editing], **QUIET).then(*fetching, **QUIET).success(
        None, js="() => document.querySelector('#data-edit')?.scrollIntoView({behavior: 'smooth', block: 'nearest'})", api_visibility="private")  # fmt: skip
    checked.click(clicked, None, [parts, start, row, editing], **QUIET)
    fetch.click(*fetching, **QUIET)
    saving = save.click(
        data.changing(save_row, 1),
        [data.looks, chosen, row, before, source, *contents],
        [edited, data.looks, before],
        **LONG,
    )
    cutting = cut.click(
        data.changing(delete_row, 2), [data.looks, chosen, row, before, *contents], [edited, data.looks, before, source], js=asking("row-sure", 2), trigger_mode="always_last", **LONG)  # fmt: skip
    halt.click(stopped, None, edited, cancels=[saving, cutting], **QUIET)
    files.wire_upload(data, drop, uploaded, halt_upload)
    return {"arrive": (arrive, [chosen, data.visits, *contents], [chosen, data.visits, message])}


def _pretty(text: str) -> str:
    try:
        shown = json.dumps(parse_json(text), ensure_ascii=False, indent=1)
        shown.encode()
        return shown
    except (ValueError, UserError):  # a broken row, to be mended; or signs that cannot be sent to the browser
        return text
