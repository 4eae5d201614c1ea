"""What the parts of the Data tab share: the options that matter, the chosen dataset, long jobs with a bar, changes with
an answer."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from workbench.config.options import RunConfig, options_that_affect
from workbench.data.registry import DatasetInfo, registries, unlisted
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.storage.workspace import Workspace, dataset_folder
from workbench.ui.catalogue import say
from workbench.ui.form import Form, by_length
from workbench.ui.gate import COOKIE
from workbench.ui.notes import note, told
from workbench.ui.people import needs
from workbench.ui.strings import language
from workbench.ui.tabs.data.view import bar_html, note_safe

OPTIONS = options_that_affect("data", RunConfig)
LONG = {
    "show_progress": "hidden",
    "show_progress_on": [],
    "api_visibility": "private",
    "concurrency_limit": None,
}  # the worker limits them, by user
DOWNLOAD_JS = "() => setTimeout(() => document.querySelector('#data-file')?.click(), 300)"


OFF = {"interactive": False}  # a button, until there is something to which it applies
_ON_JS, _OFF_JS = (f"() => ({{__type__: 'update', interactive: {on}}})" for on in ("true", "false"))


def stoppable(halt: gr.Button, trigger: Callable, *event, **options):
    """The event of a long job, such as a button's click. `halt` is enabled while it goes on."""
    trigger(None, None, halt, js=_ON_JS, api_visibility="private")  # first: gradio's events of one click wait in line
    going = trigger(*event, **options)
    going.then(None, None, halt, js=_OFF_JS, api_visibility="private")
    return going


def user_of(request: gr.Request) -> str:
    """Who asks, for the limits that each user and each address have: the address, and a browser, or a tab of one that
    keeps no cookies."""
    return f"{request.client.host} {request.cookies.get(COOKIE) or request.session_hash}"


class Data:
    """The tab's dataset, worker and form. `chosen` is the dataset's name, `looks` goes up with every change to data,
    `file` gives files out.

    No event hangs on a `change` of what the server writes: a user's action is one chain, which ends. What shows the
    data anew follows whatever is given to `shown_after`.
    """

    def __init__(self, workspace: Workspace, form: Form, worker: DataWorker):
        self.workspace, self.form, self.worker = workspace, form, worker
        self.chosen: gr.Dropdown
        self.looks = gr.Number(0, visible="hidden", elem_id="data-looks")
        self.file = gr.DownloadButton(visible="hidden", elem_id="data-file")
        self.actions: list = []  # events that choose another dataset or change one

    def shown_after(self, action):
        """Show the data anew after `action`, an event of a component; returns it."""
        self.actions.append(action)
        return action

    def options(self, contents) -> dict:
        """The Train form's options that matter here; nothing is checked yet."""
        return {name: value for name, value in self.form.read(list(contents)).items() if name in OPTIONS}

    def info(self, name: str, contents) -> DatasetInfo:
        """The dataset that `name` names. Raises UserError, also with the reason why it cannot be read."""
        datasets = self._registry(contents)
        return (datasets.get(name) or unlisted(name, self._folder(contents), datasets, self.workspace)).check()

    def choices(self, contents) -> list[tuple[str, str]]:
        """`(label, name)` of all datasets, those that cannot be read marked. Raises UserError: the folder has none."""
        datasets = self._registry(contents).values()
        return [(f"⚠ {d.name}" if d.problem else d.name, d.name) for d in sorted(datasets, key=by_length)]

    def _folder(self, contents) -> Path:
        return dataset_folder(self.options(contents).get("dataset_dir") or "data", self.workspace)

    def _registry(self, contents) -> dict[str, DatasetInfo]:
        return registries(self._folder(contents), self.workspace)

    async def job(
        self, op: str, args: dict, finish: Callable, others: int, request: gr.Request, *, torch: bool = False
    ):
        """Ask for a long operation: a progress bar as the first of `1 + others` outputs, until `finish(result, lang)`
        has all of them."""
        try:
            async for answer in self.worker.job(op, user=user_of(request), torch=torch, **args):
                if "progress" in answer:
                    words, share = answer["progress"]
                    yield [bar_html(told(words, language(request)), share), *[gr.skip()] * others]
                else:
                    yield finish(answer["result"], language(request))
        except UserError as error:
            yield [note_safe(told(error, language(request)), "bad"), *[gr.skip()] * others]

    def changing(self, action: Callable, others: int = 0):
        """A handler that changes data: `await action(request, name, …)` has the words and `others` more outputs.
        Outputs: words, `looks`, the others."""

        @needs("train")
        async def handler(request: gr.Request, looks, name, *given):
            if not name:  # nothing is chosen, or the question was answered with no
                return [gr.skip()] * (2 + others)
            try:
                self.workspace.check_writable()
                message, *more = await action(request, name, *given)
                return note_safe(message, "ok"), (looks or 0) + 1, *more
            except UserError as error:
                return note_safe(told(error, language(request)), "bad"), gr.skip(), *[gr.skip()] * others

        return handler


def stopped(request: gr.Request) -> str:
    """What Stop says of a job."""
    return note(say("data_stopped", language(request)), "warn")


def outgoing_folder() -> Path:
    """A new folder for a file that is given out; it is deleted after a while."""
    return Path(tempfile.mkdtemp(prefix="out-", dir=os.environ.get("GRADIO_TEMP_DIR")))


def outgoing(path: Path, name: str = "") -> str:
    """A file under gradio's own folder, from where it is given out: a link where that is possible, which takes no
    room."""
    target = outgoing_folder() / (name or path.name)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
    return str(target)


def clear_temporary(age: float = 3600.0) -> None:
    """Delete what uploads and downloads left in gradio's folder more than `age` seconds ago."""
    folder = os.environ.get("GRADIO_TEMP_DIR")
    for path in Path(folder).iterdir() if folder and Path(folder).is_dir() else ():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
