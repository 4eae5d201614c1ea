"""Parts of the Data tab that change files: upload, copy, split, layout, remove; and download. All of it inside the
workspace."""

import asyncio
import json
from pathlib import Path

import gradio as gr

from workbench.data.editing import remove
from workbench.data.encodings import ENCODINGS
from workbench.data.registry import FORMATTINGS
from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.workspace import slug
from workbench.ui.catalogue import say
from workbench.ui.notes import QUIET, told
from workbench.ui.people import needs
from workbench.ui.questions import asking
from workbench.ui.strings import language, t
from workbench.ui.tabs.data import jobs
from workbench.ui.tabs.data.shared import (
    DOWNLOAD_JS,
    LONG,
    OFF,
    Data,
    clear_temporary,
    outgoing,
    stoppable,
    stopped,
    user_of,
)
from workbench.ui.tabs.data.view import note_safe

USED = ("dataset", "eval_dataset", "val_size", "eval_strategy", "run_name")  # options that `train_on` sets


def held_out_rows(rows: int | None) -> str:
    """`val_size` for a dataset: a twentieth of its rows, at most 200; none of a very small one. `rows` 0: unknown."""
    if not rows:
        return "0.05"
    return "0" if rows < 40 else str(min(200, round(rows / 20)))


class Upload:
    """A dropped file becomes a dataset of the workspace, and the chosen one."""

    def __init__(self, data: Data):
        self.data = data

    @needs("train")
    async def add(self, path, looks, request: gr.Request, *contents):
        """What the browser sent, as a dataset."""
        lang, data = language(request), self.data
        if not path:
            return [gr.skip()] * 5
        try:
            data.workspace.check_writable()
            name, layout, encoding = await data.worker.change(
                "add", user=user_of(request), path=str(path), file_name=Path(path).name, config=data.options(contents)
            )
            message = say("data_added" if layout else "data_added_unknown", lang, name=name, layout=layout)
            if encoding:
                message += say("data_encoding_guessed", lang, encoding=encoding, title=say("data_layout_title", lang))
            return (
                note_safe(message, "ok" if layout and not encoding else "warn"),
                (looks or 0) + 1,
                gr.update(choices=data.choices(contents), value=name),
                None,
                gr.update(visible=False),
            )
        except UserError as error:
            return note_safe(told(error, lang), "bad"), gr.skip(), gr.skip(), None, gr.update(visible=False)
        finally:
            clear_temporary()

    def stop(self, request: gr.Request):
        """The message, an empty drop zone, no Stop button."""
        return stopped(request), None, gr.update(visible=False)

    def wire(self, drop: gr.File, message: gr.HTML, halt: gr.Button) -> None:
        """`halt` is shown while a file is taken in, and stops that."""
        data = self.data
        going = data.shown_after(
            drop.upload(needs("train", lambda: gr.update(visible=True)), None, halt, **QUIET).then(
                self.add,
                [drop, data.looks, *data.form.components],
                [message, data.looks, data.chosen, drop, halt],
                show_progress="minimal",
                api_visibility="private",
                concurrency_limit=None,
            )
        )
        halt.click(self.stop, None, [message, drop, halt], cancels=[going], **QUIET)


class Files:
    """Train on a dataset, copy, download, remove it; split it; say how its rows are laid out."""

    def __init__(self, data: Data):
        self.data = data

    def build(self) -> "Files":
        """Lay this part out and wire it."""
        self._action_widgets()
        self._layout_widgets()
        self.layout = [self.formatting, self.encoding, self.ranking, self.columns, self.tags]
        self.message = gr.HTML(elem_id="data-filed")
        self._wire()
        return self

    def _action_widgets(self) -> None:
        with gr.Row():
            self.copy = gr.Button(t("data_copy"), elem_id="data-copy", **OFF)
            self.download = gr.Button(t("data_download"), elem_id="data-download", **OFF)
            self.drop = gr.Button(t("data_remove"), elem_id="data-remove", variant="stop", **OFF)
            self.halt = gr.Button(t("stop"), elem_id="data-files-stop", variant="stop", **OFF)
        with gr.Row(equal_height=True):
            self.share = gr.Number(0.05, label=t("data_share"), elem_id="data-share", scale=2)
            self.split = gr.Button(t("data_split_run"), elem_id="data-split", scale=1, **OFF)

    def _layout_widgets(self) -> None:
        with gr.Accordion(t("data_layout_title"), open=False, elem_id="data-layout"):
            with gr.Row():
                automatic = (t("data_formatting_auto"), "")
                self.formatting = gr.Dropdown(
                    [automatic, *FORMATTINGS], value="", label=t("data_formatting"), elem_id="data-formatting"
                )
                self.encoding = gr.Dropdown(
                    [("UTF-8", ""), *ENCODINGS[1:]], value="", label=t("data_encoding"), elem_id="data-encoding"
                )
                self.ranking = gr.Checkbox(label=t("data_ranking"), value=False, elem_id="data-ranking")
            with gr.Row():
                self.columns = gr.Textbox(
                    label=t("data_layout_columns"),
                    lines=2,
                    elem_id="data-columns-json",
                    placeholder='{"prompt": "question", "response": "answer"}',
                )
                self.tags = gr.Textbox(
                    label=t("data_layout_tags"),
                    lines=2,
                    elem_id="data-tags-json",
                    placeholder='{"role_tag": "speaker", "user_tag": "user"}',
                )
            self.keep = gr.Button(t("data_layout_save"), elem_id="data-layout-save", size="sm", **OFF)

    async def change(self, op: str, args: dict, finish, looks, contents, request: gr.Request):
        """A job whose `finish` has a message and the name of the dataset that is chosen then."""
        data = self.data
        try:
            data.workspace.check_writable()
        except UserError as error:
            yield note_safe(told(error, language(request)), "bad"), gr.skip(), gr.skip()
            return

        def outputs(result, lang):
            message, name = finish(result, lang)
            return [note_safe(message, "ok"), gr.update(choices=data.choices(contents), value=name), (looks or 0) + 1]

        async for update in data.job(op, args, outputs, 2, request):
            yield update

    @needs("train")
    async def run_copy(self, name, looks, request: gr.Request, *contents):
        """A copy in the workspace, whose rows can be changed."""
        args = {"dataset": name, "config": self.data.options(contents)}
        async for outputs in self.change("copy", args, copied, looks, contents, request) if name else _nothing():
            yield outputs

    @needs("train")
    async def run_split(self, name, looks, share, request: gr.Request, *contents):
        """Two datasets: one to train on, one held out."""
        args = {"dataset": name, "config": self.data.options(contents), "share": float(share or 0)}
        async for outputs in self.change("split", args, parted, looks, contents, request) if name else _nothing():
            yield outputs

    async def remove(self, request, name, *contents):
        """Remove a dataset of the workspace, with its report."""
        await asyncio.to_thread(remove, self.data.workspace, name, self._path(name, contents))
        jobs.report_file(self.data.workspace, name).unlink(missing_ok=True)
        choices = self.data.choices(contents)
        return say("data_removed", language(request), name=name), gr.update(choices=choices, value=None)

    def _path(self, name, contents) -> Path | None:
        try:
            return self.data.info(name, contents).path
        except UserError:  # one that cannot be read can still be removed
            return None

    async def save_layout(self, request, name, formatting, encoding, ranking, columns, tags, *contents):
        """Keep what the user says of the layout."""
        lang = language(request)
        given = {key: _texts(key, text, lang) for key, text in (("columns", columns), ("tags", tags))}
        args = {
            "dataset": name,
            "config": self.data.options(contents),
            "formatting": formatting or "",
            "encoding": encoding or "",
            "ranking": bool(ranking),
            **given,
        }
        layout = await self.data.worker.change("layout", user=user_of(request), **args)
        return (say("data_layout_saved", lang, layout=layout),)

    def layout_of(self, name, contents):
        """What dataset_info.json says of the layout, for the widgets of `layout`."""
        try:
            info = self.data.info(name or "", contents)
        except UserError:
            return "", "", False, "", ""
        texts = [json.dumps(value, ensure_ascii=False) if value else "" for value in (info.columns, info.tags)]
        return info.formatting, info.encoding, info.ranking, *texts

    def give_out(self, name, request: gr.Request, *contents):
        """The dataset's file for the browser."""
        try:
            info = self.data.info(name or "", contents)
            if info.path is None or not info.path.is_file():
                raise UserError(say("data_no_file", language(request)))
            return outgoing(self.data.workspace.inside(info.path, what="dataset")), gr.skip()
        except UserError as error:
            return gr.skip(), note_safe(told(error, language(request)), "bad")

    def train_on(self, name, rows, request: gr.Request, *contents):
        """The dataset in the Train form, with rows held out and a name for the run; of a split, both sides. Outputs:
        the message, then the options of `USED`, whose values stay as they are where it is refused."""
        lang, unchanged = language(request), [gr.skip()] * len(USED)
        if not name:
            return note_safe(say("data_none", lang), "warn"), *unchanged
        try:
            self.data.info(name, contents)
            held_out = f"{name.removesuffix('-train')}-eval"  # as a split names it
            run_name, kept = slug(name.removesuffix("-train")), self.data.form.read(list(contents)).get("eval_strategy")
            evaluating = kept if kept in ("steps", "epoch") else "epoch"
            if name.endswith("-train") and held_out in [value for _, value in self.data.choices(contents)]:
                message = note_safe(say("data_used_split", lang, name=name, held=held_out), "ok")
                return message, [name], held_out, "0", evaluating, run_name
            held = held_out_rows(rows)
            message = note_safe(say("data_used", lang, name=name, held=held), "ok")
            return message, [name], "", held, evaluating if held != "0" else "no", run_name
        except UserError as error:
            return note_safe(told(error, lang), "bad"), *unchanged

    def _wire(self) -> None:
        data = self.data
        chosen, looks, contents = data.chosen, data.looks, data.form.components
        layout, halt = self.layout, self.halt
        changed = [self.message, chosen, looks]
        after = data.shown_after
        copying = after(stoppable(halt, self.copy.click, self.run_copy, [chosen, looks, *contents], changed, **LONG))
        splitting = after(
            stoppable(halt, self.split.click, self.run_split, [chosen, looks, self.share, *contents], changed, **LONG)
        )
        after(
            self.drop.click(
                data.changing(self.remove, 1),
                [looks, chosen, *contents],
                [self.message, looks, chosen],
                js=asking("data_remove_sure", 1),
                **QUIET,
            )
        )
        saving = data.changing(self.save_layout)
        keeping = after(
            stoppable(halt, self.keep.click, saving, [looks, chosen, *layout, *contents], [self.message, looks], **LONG)
        )
        self.halt.click(stopped, None, self.message, cancels=[copying, splitting, keeping], **QUIET)
        self.download.click(
            self.give_out,
            [chosen, *contents],
            [data.file, self.message],
            show_progress="minimal",
            api_visibility="private",
        ).success(None, js=DOWNLOAD_JS)


def copied(result, lang: str) -> tuple[str, str]:
    """The message and the name of a copy."""
    name, lost = result
    return say("data_copied", lang, name=name) + (say("data_left_out", lang, count=lost) if lost else ""), name


def parted(result, lang: str) -> tuple[str, str]:
    """The message of a split, and the name of its training side."""
    (train, train_rows), (held, held_rows), lost = result["train"], result["eval"], result["left_out"]
    message = say(
        "data_split_done", lang, train=train, train_rows=f"{train_rows:,}", eval=held, eval_rows=f"{held_rows:,}"
    )
    return message + (say("data_left_out", lang, count=f"{lost:,}") if lost else ""), train


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
