"""Parts of the Data tab that change files: upload, copy, split, layout, remove; and download. All of it inside the
workspace."""

import asyncio
import json
from pathlib import Path

import gradio as gr

from workbench.data.editing import remove
from workbench.data.registry import FORMATTINGS
from workbench.errors import UserError
from workbench.storage import files
from workbench.ui.catalogue import say
from workbench.ui.notes import QUIET
from workbench.ui.strings import language, t
from workbench.ui.tabs.data import jobs
from workbench.ui.tabs.data.shared import DOWNLOAD_JS, LONG, Data, asking, clear_temporary, outgoing, stopped, user_of
from workbench.ui.tabs.data.view import note_safe


def wire_upload(data: Data, drop: gr.File, message: gr.HTML, halt: gr.Button) -> None:
    """A dropped file becomes a dataset of the workspace, and the chosen one; `halt` stops that."""

    async def added(path, looks, request: gr.Request, *contents):
        lang = language(request)
        if not path:
            return [gr.skip()] * 5
        try:
            data.workspace.check_writable()
            name, layout = await data.worker.change(
                "add", user=user_of(request), path=str(path), file_name=Path(path).name, config=data.options(contents)
            )
            message = say("data_added" if layout else "data_added_unknown", lang, name=name, layout=layout)
            return (
                note_safe(message, "ok" if layout else "warn"),
                (looks or 0) + 1,
                gr.update(choices=data.choices(contents), value=name),
                None,
                gr.update(visible=False),
            )
        except UserError as error:
            return note_safe(str(error), "bad"), gr.skip(), gr.skip(), None, gr.update(visible=False)
        finally:
            clear_temporary()

    going = drop.upload(lambda: gr.update(visible=True), None, halt, **QUIET).then(
        added,
        [drop, data.looks, *data.form.components],
        [message, data.looks, data.chosen, drop, halt],
        show_progress="minimal",
        api_visibility="private",
        concurrency_limit=None,
    )

    def halted(request: gr.Request):
        return stopped(request), None, gr.update(visible=False)

    halt.click(halted, None, [message, drop, halt], cancels=[going], **QUIET)


def build(data: Data) -> None:
    """Train on it, copy, download, remove; split; layout."""
    with gr.Row():
        use = gr.Button(t("data_use"), elem_id="data-use", variant="primary")
        copy = gr.Button(t("data_copy"), elem_id="data-copy")
        download = gr.Button(t("data_download"), elem_id="data-download")
        drop = gr.Button(t("data_remove"), elem_id="data-remove", variant="stop")
        halt = gr.Button(t("stop"), elem_id="data-files-stop", variant="stop")
    with gr.Row(equal_height=True):
        share = gr.Number(0.05, label=t("data_share"), elem_id="data-share", scale=2)
        split = gr.Button(t("data_split_run"), elem_id="data-split", scale=1)
    with gr.Accordion(t("data_layout_title"), open=False, elem_id="data-layout"):
        with gr.Row():
            automatic = (t("data_formatting_auto"), "")
            formatting = gr.Dropdown(
                [automatic, *FORMATTINGS], value="", label=t("data_formatting"), elem_id="data-formatting"
            )
            ranking = gr.Checkbox(label=t("data_ranking"), value=False, elem_id="data-ranking")
        with gr.Row():
            columns = gr.Textbox(
                label=t("data_layout_columns"),
                lines=2,
                elem_id="data-columns-json",
                placeholder='{"prompt": "question", "response": "answer"}',
            )
            tags = gr.Textbox(
                label=t("data_layout_tags"),
                lines=2,
                elem_id="data-tags-json",
                placeholder='{"role_tag": "speaker", "user_tag": "user"}',
            )
        keep = gr.Button(t("data_layout_save"), elem_id="data-layout-save", size="sm")
    filed = gr.HTML(elem_id="data-filed")

    async def change(op: str, args: dict, finish, looks, contents, request: gr.Request):
        """A job whose `finish` has words and the name of the dataset that is chosen then."""
        try:
            data.workspace.check_writable()
        except UserError as error:
            yield note_safe(str(error), "bad"), gr.skip(), gr.skip()
            return

        def outputs(result, lang):
            message, name = finish(result, lang)
            return [note_safe(message, "ok"), gr.update(choices=data.choices(contents), value=name), (looks or 0) + 1]

        async for found in data.job(op, args, outputs, 2, request):
            yield found

    def copied(result, lang):
        name, lost = result
        return say("data_copied", lang, name=name) + (say("data_left_out", lang, count=lost) if lost else ""), name

    def parted(result, lang):
        (train, train_rows), (held, held_rows), lost = result["train"], result["eval"], result["left_out"]
        message = say(
            "data_split_done", lang, train=train, train_rows=f"{train_rows:,}", eval=held, eval_rows=f"{held_rows:,}"
        )
        return message + (say("data_left_out", lang, count=f"{lost:,}") if lost else ""), train

    async def run_copy(name, looks, request: gr.Request, *contents):
        args = {"dataset": name, "config": data.options(contents)}
        async for outputs in change("copy", args, copied, looks, contents, request) if name else _nothing():
            yield outputs

    async def run_split(name, looks, share_, request: gr.Request, *contents):
        args = {"dataset": name, "config": data.options(contents), "share": float(share_ or 0)}
        async for outputs in change("split", args, parted, looks, contents, request) if name else _nothing():
            yield outputs

    async def removed(request, name, *contents):
        await asyncio.to_thread(remove, data.workspace, name, shown_file(name, contents))
        jobs.report_file(data.workspace, name).unlink(missing_ok=True)
        return say("data_removed", language(request), name=name), gr.update(choices=data.choices(contents), value=None)

    def shown_file(name, contents) -> Path | None:
        try:
            return data.info(name, contents).path
        except UserError:  # one that cannot be read can still be removed
            return None

    async def laid_out(request, name, formatting_, ranking_, columns_, tags_, *contents):
        lang = language(request)
        given = {key: _texts(key, text, lang) for key, text in (("columns", columns_), ("tags", tags_))}
        args = {
            "dataset": name,
            "config": data.options(contents),
            "formatting": formatting_ or "",
            "ranking": bool(ranking_),
            **given,
        }
        layout = await data.worker.change("layout", user=user_of(request), **args)
        return (say("data_layout_saved", lang, layout=layout),)

    def layout_of(name, *contents):
        """What dataset_info.json says of the layout."""
        try:
            info = data.info(name or "", contents)
        except UserError:
            return "", False, "", ""
        texts = [json.dumps(value, ensure_ascii=False) if value else "" for value in (info.columns, info.tags)]
        return info.formatting, info.ranking, *texts

    def downloaded(name, request: gr.Request, *contents):
        try:
            info = data.info(name or "", contents)
            if info.path is None or not info.path.is_file():
                raise UserError(say("data_no_file", language(request)))
            return outgoing(data.workspace.inside(info.path, what="dataset")), gr.skip()
        except UserError as error:
            return gr.skip(), note_safe(str(error), "bad")

    def used(name, request: gr.Request, *contents):
        lang, kept = language(request), [gr.skip()] * 3
        if not name:
            return gr.skip(), *kept
        try:
            data.info(name, contents)
            held = f"{name.removesuffix('-train')}-eval"  # as a split names it
            if name.endswith("-train") and held in [value for _, value in data.choices(contents)]:
                return note_safe(say("data_used_split", lang, name=name, held=held), "ok"), [name], held, "0"
            return note_safe(say("data_used", lang, name=name), "ok"), [name], *kept[1:]
        except UserError as error:
            return note_safe(str(error), "bad"), *kept

    chosen, looks, contents = data.chosen, data.looks, data.form.components
    chosen.change(layout_of, [chosen, *contents], [formatting, ranking, columns, tags], **QUIET)
    taken = [data.form.widgets[option] for option in ("dataset", "eval_dataset", "val_size")]
    use.click(used, [chosen, *contents], [filed, *taken], **QUIET)
    copying = copy.click(run_copy, [chosen, looks, *contents], [filed, chosen, looks], **LONG)
    splitting = split.click(run_split, [chosen, looks, share, *contents], [filed, chosen, looks], **LONG)
    drop.click(
        data.changing(removed, 1),
        [looks, chosen, *contents],
        [filed, looks, chosen],
        js=asking("dataset-sure"),
        **QUIET,
    )
    keeping = keep.click(
        data.changing(laid_out), [looks, chosen, formatting, ranking, columns, tags, *contents], [filed, looks], **LONG
    )
    halt.click(stopped, None, filed, cancels=[copying, splitting, keeping], **QUIET)
    download.click(
        downloaded, [chosen, *contents], [data.file, filed], show_progress="minimal", api_visibility="private"
    ).success(None, js=DOWNLOAD_JS)


async def _nothing():
    return
    yield


def _texts(key: str, text: str, lang: str) -> dict:
    """A JSON object of texts. Raises UserError."""
    try:
        given = files.parse_json(text) if (text or "").strip() else {}
    except files.Unreadable:
        given = None
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise UserError(say("data_json_wanted", lang, what=key))
    return given
