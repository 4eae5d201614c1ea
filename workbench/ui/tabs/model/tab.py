"""The Model tab: what a model is, from its config alone; the models on this machine."""

import gradio as gr

from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.models.anatomy import bundled
from workbench.models.anatomy.report import MAX_CONFIG, Found, find, given, report
from workbench.models.anatomy.units import memory
from workbench.storage import files
from workbench.storage.workspace import Workspace
from workbench.ui.catalogue import say
from workbench.ui.notes import LATEST, QUIET, note, told
from workbench.ui.people import needs
from workbench.ui.questions import asking
from workbench.ui.strings import language, t
from workbench.ui.tabs.model import charts, machine, view
from workbench.ui.tabs.record import Event, Tab
from workbench.ui.theme import CHART_JS

_CHART = {"html_template": "<div class='live-chart'></div>", "js_on_load": CHART_JS}
_FIRST = "DeepSeek-V2-Lite"  # what is shown before anything is chosen


def _title(key: str):
    """A heading in the browser's language."""
    return gr.HTML(t(key), html_template="<h2>${value}</h2>", elem_classes="wb-heading")


class ModelTab:
    """A model is chosen, looked at, or deleted. `found` is the one that is shown."""

    id = "model"

    def __init__(self, workspace: Workspace, engine: Engine):
        self.workspace, self.engine = workspace, engine

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        self._widgets()
        return self._wire()

    def _widgets(self) -> None:
        gr.HTML(t("model_info"), elem_classes="wb-sub")
        with gr.Row(equal_height=True):
            self.name = gr.Dropdown(
                list(bundled.ORDER),
                value=_FIRST,
                label=t("model_choose"),
                allow_custom_value=True,
                elem_id="model-name",
                scale=5,
            )
            self.look = gr.Button(t("model_look"), variant="primary", elem_id="model-look", scale=1, min_width=110)
        with gr.Accordion(t("model_drop"), open=False, elem_id="model-config"):
            self.drop = gr.File(label=t("model_drop"), file_types=[".json"], elem_id="model-drop", height=110)
        self.message = gr.HTML(elem_id="model-message")
        self.tiles = gr.HTML(elem_id="model-tiles")
        _title("model_parameters")
        self.counted = gr.HTML(elem_id="model-counted")
        self.active = gr.Checkbox(False, label=t("model_only_active"), elem_id="model-active")
        self.treemap = gr.HTML(elem_id="model-treemap", **_CHART)
        _title("model_cache")
        self.cache = gr.HTML(elem_id="model-cache", **_CHART)
        self.cache_words = gr.HTML(elem_id="model-cache-words")
        _title("model_map")
        self.map = gr.HTML(elem_id="model-map")
        _title("model_rope")
        self.factor = gr.Slider(1, 32, 4, step=0.5, label=t("rope_factor"), elem_id="model-factor")
        self.rope = gr.HTML(elem_id="model-rope", **_CHART)
        self.rope_words = gr.HTML(elem_id="model-rope-words")
        _title("model_here")
        self.here = gr.HTML(elem_id="model-here")
        _title("model_machine")
        self.machine = gr.HTML(elem_id="model-machine")
        with gr.Row(equal_height=True):
            self.remove = gr.Dropdown([], label=t("model_remove"), elem_id="model-remove", scale=3, interactive=True)
            self.delete = gr.Button(t("model_delete"), variant="stop", elem_id="model-delete", scale=1, min_width=110)
        self.deleted = gr.HTML(elem_id="model-deleted")
        with gr.Row(equal_height=True):
            self.wanted = gr.Textbox(
                label=t("model_fetch"), placeholder="Qwen/Qwen3-8B", max_lines=1, elem_id="model-wanted", scale=3
            )
            self.download = gr.Button(t("model_download"), elem_id="model-download", scale=1, min_width=110)
            self.halt = gr.Button(
                t("model_download_stop"), variant="stop", elem_id="model-download-stop", scale=1, min_width=90
            )
        self.fetched = gr.HTML(elem_id="model-download-state")
        self.fetching = gr.State(None)
        self.timer = gr.Timer(1, active=False)
        _title("model_fields")
        self.fields = gr.HTML(elem_id="model-fields")
        self.found = gr.State(None)

    def show(self, name, active, factor, request: gr.Request):
        """The model that was chosen."""
        lang = language(request)
        if not isinstance(name, str) or not name.strip():
            return note(say("model_none", lang), "warn"), *[gr.skip()] * 11
        try:
            return self._shown(find(name, self.workspace), active, factor, lang)
        except UserError as error:
            return note(told(error, lang), "bad"), *[gr.skip()] * 11

    @needs("train")
    def dropped(self, path, active, factor, request: gr.Request):
        """A config.json that the browser sent."""
        lang = language(request)
        if not path:
            return [gr.skip()] * 13
        try:
            with files.open_regular(path) as opened:
                text = opened.read(MAX_CONFIG + 1)
            return *self._shown(given(text), active, factor, lang), None
        except (UserError, OSError) as error:
            return note(told(error, lang), "bad"), *[gr.skip()] * 11, None

    def _shown(self, found: Found, active, factor, lang: str) -> list:
        """All that is shown of a model, in the order of `outputs`."""
        result, factor = report(found), _factor(factor)
        anatomy = result.anatomy
        words = [*view.cache_texts(result, lang), view.flops_text(result, lang)]
        return [
            view.problems_html(result, lang),
            view.tiles_html(result, lang),
            view.paragraphs(view.counted_text(anatomy, lang)) if anatomy else "",
            charts.treemap(found.name, anatomy, lang, bool(active)) if anatomy else "",
            charts.cache_chart(anatomy, lang) if anatomy else "",
            view.paragraphs(*words),
            view.map_html(result, lang),
            charts.rope_chart(result, factor, lang),
            view.rope_html(result, factor, lang),
            view.here_html(result, lang),
            view.fields_html(result, lang),
            found,
        ]

    def part(self, found, active, request: gr.Request):
        """The treemap, of all parameters or the active ones."""
        anatomy = report(found).anatomy if isinstance(found, Found) else None
        return charts.treemap(found.name, anatomy, language(request), bool(active)) if anatomy else gr.skip()

    def stretch(self, found, factor, request: gr.Request):
        """Wavelengths with another factor."""
        if not isinstance(found, Found):
            return gr.skip(), gr.skip()
        result, lang, factor = report(found), language(request), _factor(factor)
        return charts.rope_chart(result, factor, lang), view.rope_html(result, factor, lang)

    def refresh(self, request: gr.Request):
        """What is on this machine, for the lists; what is chosen in them stays."""
        lang, here = language(request), machine.models(self.workspace)
        own = [
            (say("model_on_machine", lang, name=m.path.name, size=memory(m.bytes)), m.path.name)
            for m in here
            if machine.loadable(m)
        ]
        others = [(say("model_bundled", lang, name=known), known) for known in bundled.ORDER]
        names = [m.path.name for m in here]
        return (
            machine.machine_html(here, lang),
            gr.Dropdown(choices=[*own, *others]),
            gr.Dropdown(choices=names),
        )

    @needs("train")
    def deleting(self, name, request: gr.Request):
        """Delete the model that was named, after the question."""
        lang = language(request)
        if not name:
            return gr.skip(), gr.skip()
        try:
            machine.delete(str(name), self.workspace, self.engine)
            return note(say("model_deleted", lang, name=name)), None
        except UserError as error:
            return note(told(error, lang), "bad"), gr.skip()

    @needs("train")
    def downloading(self, name, request: gr.Request):
        """Begin to fetch a model from a hub."""
        lang = language(request)
        try:
            return note(say("model_download_begun", lang, name=machine.start_download(name, self.workspace)), "warn")
        except UserError as error:
            return note(told(error, lang), "bad")

    @needs("train")
    def stopping(self, request: gr.Request):
        """Stop the download."""
        try:
            machine.stop_download(self.workspace)
        except UserError as error:
            return note(told(error, language(request)), "bad")
        return machine.download_html(self.workspace, language(request))[0]

    def progress(self, seen, request: gr.Request):
        """How far the download is, sent when that has changed; the lists anew when it has ended."""
        html, going = machine.download_html(self.workspace, language(request))
        if seen == (html, going):
            return [gr.skip()] * 5
        ended = seen is not None and seen[1] and not going
        return html, (html, going), *(self.refresh(request) if ended else [gr.skip()] * 3)

    def _wire(self) -> Tab:
        outputs = [
            self.message, self.tiles, self.counted, self.treemap, self.cache, self.cache_words, self.map, self.rope,
            self.rope_words, self.here, self.fields, self.found,
        ]  # fmt: skip
        asked = [self.name, self.active, self.factor]
        lists = Event(self.refresh, None, [self.machine, self.name, self.remove])
        self.look.click(self.show, asked, outputs, **QUIET)
        self.name.input(self.show, asked, outputs, **LATEST)
        self.drop.upload(self.dropped, [self.drop, self.active, self.factor], [*outputs, self.drop], **QUIET)
        self.active.input(self.part, [self.found, self.active], self.treemap, **LATEST)
        self.factor.release(self.stretch, [self.found, self.factor], [self.rope, self.rope_words], **LATEST)
        removed, ask = [self.deleted, self.remove], asking("model_delete_sure")
        gone = self.delete.click(self.deleting, self.remove, removed, js=ask, **QUIET)
        gone.then(self.refresh, lists.inputs, lists.outputs, **QUIET)
        self.download.click(self.downloading, self.wanted, self.fetched, **QUIET)
        self.halt.click(self.stopping, None, self.fetched, **QUIET)
        shown = [self.fetched, self.fetching, self.machine, self.name, self.remove]
        self.timer.tick(self.progress, self.fetching, shown, **QUIET)
        return Tab(timers=[self.timer], on_select=[(Event(self.show, asked, outputs), lists)])


def _factor(value) -> float:
    """The slider's factor, whatever a client sends."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return min(64.0, max(1.0, float(value))) if good and value == value else 4.0
