"""The Chat tab's left column: which model answers, how it is loaded; adapters added up and merged; another server
instead."""

import itertools
import re
from html import escape

import gradio as gr

from workbench.config.fields import options
from workbench.config.options import EngineConfig, options_that_affect
from workbench.config.run_config import validated
from workbench.engine.client import Endpoint, add_adapter, models
from workbench.engine.process import SILENT, Engine
from workbench.errors import UserError
from workbench.models.locate import adapter_choices, locate_adapter
from workbench.runs.run import list_runs
from workbench.storage.workspace import DEMO_MODEL
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.costs.chat_panel import ChatCosts
from workbench.ui.form import model_choices
from workbench.ui.notes import LATEST, QUIET, note, told
from workbench.ui.strings import language, t
from workbench.ui.tabs.chat.export_panel import ExportPanel

_MORE = sorted(
    options_that_affect("loading", EngineConfig), key=lambda name: name == "trust_remote_code"
)  # the risky one last
# which engine it is, and how that is set up: kept when another adapter brings its other settings
_ENGINE = ("engine", "engine_url", "tensor_parallel_size", "gpu_memory_utilization", "max_model_len")
_KEPT = (*_ENGINE, "devices")

MAX_MERGED = 16  # adapters


class EnginePanel:
    """Its widgets and what the rest of the tab asks of it: the backend, and the names that models have there."""

    def __init__(self, engine: Engine):
        self.engine, self.workspace = engine, engine.workspace
        self.exports = ExportPanel(engine, self._weights)
        self.costs = ChatCosts(self.workspace)
        self.defaults = {option.name: option for option in options(EngineConfig)}

    def build(self) -> None:
        """Lay the column out and wire what concerns only itself."""
        self.model = gr.Dropdown(
            model_choices(self.workspace),
            value=DEMO_MODEL,
            label=t("opt_model_name_or_path"),
            allow_custom_value=True,
            elem_id="chat-model",
        )
        self.adapter = gr.Dropdown(
            [], value=None, label=t("adapter"), info=t("adapter_info"), allow_custom_value=True, elem_id="chat-adapter"
        )
        self.quantization = gr.Radio(
            [(t("none"), 0), ("8", 8), ("4", 4)], value=0, label=t("quantization"), elem_id="chat-quantization"
        )
        with gr.Accordion(t("loading_options"), open=False, elem_id="chat-loading-options"):
            made = {name: self._widget(name) for name in _MORE if name not in _ENGINE}
        with gr.Accordion(t("other_engine"), open=False, elem_id="chat-other-engine"):
            made |= {name: self._widget(name) for name in _ENGINE}
            self.engine_key = gr.Textbox(
                label=t("engine_key"),
                info=t("engine_key_info"),
                type="password",
                max_lines=1,
                elem_id="chat-engine-key",
            )
        self.more = {name: made[name] for name in _MORE}
        with gr.Row():
            load = gr.Button(t("load"), variant="primary", elem_id="load", min_width=100)
            unload = gr.Button(t("unload"), elem_id="unload", min_width=100, interactive=False)
        self.status = gr.HTML(elem_id="engine-status")
        self.costs.build()
        with gr.Accordion(t("other_server"), open=False, elem_id="other-server"):
            self.external = gr.Checkbox(label=t("use_other_server"), value=False, elem_id="external")
            self.external.needs = "train"
            self.url = gr.Textbox(
                label=t("server_url"), placeholder="http://127.0.0.1:8000/v1", max_lines=1, elem_id="server-url"
            )
            self.key = gr.Textbox(label=t("server_key"), type="password", max_lines=1, elem_id="server-key")
            self.remote_model = gr.Dropdown(
                [], label=t("server_model"), allow_custom_value=True, elem_id="server-model"
            )
            find = gr.Button(t("find_models"), size="sm", elem_id="find-models")
            models_found = gr.HTML(elem_id="server-found")
        self.timer = gr.Timer(1, active=False)  # not in the section: what is in a closed one does not tick
        with gr.Accordion(t("merge_title"), open=False, elem_id="merge") as self.merging:
            self.pick = gr.Dropdown([], value=None, label=t("merge_pick"), elem_id="merge-pick")
            self.weights = gr.Textbox(label=t("merge_weights"), info=t("merge_info"), lines=3, elem_id="merge-weights")
            self.name = gr.Textbox(label=t("merge_name"), max_lines=1, elem_id="merge-name")
            add = gr.Button(t("merge_add"), size="sm", elem_id="merge-add", min_width=90)
            merged = gr.HTML(elem_id="merge-note")
            self.exports.build(self.model, self.weights, self.name, self.timer)
        # what was sent to a closed section is not in it: all is sent again when it is opened
        self.merging.expand(lambda: None, None, self.exports.seen, **QUIET)
        self.seen = gr.State(None)

        load.click(
            self._load,
            [self.model, self.adapter, self.quantization, self.engine_key, *self.more.values()],
            [self.status, self.seen],
            **QUIET,
        )
        unload.click(
            people.needs("train", lambda: self.engine.unload()),
            None,
            None,
            show_progress="hidden",
            show_progress_on=[],
            api_visibility="private",
        ).then(lambda: None, None, self.seen, **QUIET)
        self.adapter.input(*self.take_adapter, **LATEST)
        asked = [self.model, self.quantization, *self.more.values()]
        self.costs.wire(self.config_of, self.adapter, asked)
        self.timer.tick(self._look, [self.seen, *asked], [self.status, unload, self.seen], **QUIET)
        self.pick.input(_with_line, [self.pick, self.weights], [self.weights, self.pick], **QUIET)
        find.click(
            self._find,
            [self.url, self.key],
            [models_found, self.remote_model],
            show_progress="minimal",
            api_visibility="private",
        )
        add.click(
            self._merge,
            [self.weights, self.name],
            [merged, self.adapter],
            show_progress="minimal",
            api_visibility="private",
        )

    def _widget(self, name: str):
        option = self.defaults[name]
        common = {"label": t(f"opt_{name}"), "info": t(f"help_{name}"), "elem_id": f"chat-{name}"}
        if name == "trust_remote_code" and not self.workspace.remote_code:
            return gr.Checkbox(value=False, **common | {"info": t("remote_code_off"), "interactive": False})
        if option.kind == "bool":
            return gr.Checkbox(value=option.default, **common)
        if option.kind == "choice":
            return gr.Dropdown(list(option.choices), value=option.default, **common)
        if option.kind in ("int", "float") and option.default is not None:  # an empty number would arrive as 0
            whole = {"precision": 0} if option.kind == "int" else {}
            return gr.Number(value=option.default, **whole, **common)
        return gr.Textbox(value=option.default, max_lines=1, **common)

    @property
    def where(self) -> list:
        """Inputs that say which server answers: hand them to `backend`."""
        return [self.external, self.url, self.key, self.remote_model]

    def backend(self, external: bool, url: str, key: str, remote_model: str, lang: str) -> tuple[Endpoint, str]:
        """The server, and its model's name.

        Raises:
            UserError: no model is loaded, or the other server is not named; or the user's role may not ask it.
        """
        if not external:
            if self.engine.silent:
                raise UserError(SILENT)
            if not self.engine.ready:
                raise UserError(say("load_first", lang))
            return Endpoint(f"{self.engine.url}/v1", self.engine.key), self.engine.model
        people.check("train")  # the server would be asked from here
        if not re.fullmatch(r"https?://\S+", (url or "").strip()):
            raise UserError(say("server_url_wrong", lang))
        if not remote_model:
            raise UserError(say("server_model_missing", lang))
        return Endpoint(url.strip().rstrip("/"), key or "", own=False), remote_model

    async def adapter_name(self, chosen: str) -> str:
        """The model name to ask for; loads the adapter into the engine if it is not there yet. Raises UserError."""
        if not self.engine.knows(chosen):
            people.check("train")
            self.workspace.inside(locate_adapter(chosen, self.workspace), what="adapter")
            await self._add({"name": chosen, "path": chosen})
        return chosen

    async def _add(self, body: dict) -> None:
        await add_adapter(Endpoint(self.engine.url, self.engine.key), body)
        self.engine.remember(body["name"])

    def config_of(self, model_name, bits, *rest) -> EngineConfig:
        values = dict(zip(_MORE, rest, strict=True)) | {
            "model_name_or_path": model_name,
            "quantization_bit": bits or None,
        }
        return validated(values, EngineConfig)

    @people.needs("train")
    def _load(self, request: gr.Request, model_name, chosen, bits, engine_key, *rest):
        lang = language(request)
        try:
            config = self.config_of(model_name, bits, *rest)
            self.workspace.confine(config)
            if chosen:
                self.workspace.inside(locate_adapter(chosen, self.workspace), what="adapter")
            self.engine.load(config, chosen or "", engine_key or "")
        except UserError as error:
            return note(told(error, lang), "bad"), "failed"
        return note(say("engine_loading", lang, model=self.engine.model, phase="…"), "warn"), None

    def _differs(self, asked: tuple) -> list[str]:
        """Names of the load settings that differ from those of the loaded model."""
        loaded = self.engine.config
        if loaded is None or self.engine.state() is None or not self.engine.state().active:
            return []
        try:
            wanted = self.config_of(*asked)
        except UserError:  # Load tells
            return []
        names = ("model_name_or_path", "quantization_bit", *_MORE)
        return [name for name in names if getattr(wanted, name) != getattr(loaded, name)]

    def _look(self, token, request: gr.Request, *asked):
        """Status of the engine, sent only when it changed."""
        lang, state = language(request), self.engine.state()
        differs = tuple(self._differs(asked))
        fresh = (
            lang,
            self.engine.model,
            state and (state.state, state.phase, state.progress, state.reason, state.warning),
            self.engine.silent,
            tuple(sorted(self.engine._adapters)),
            differs,
        )
        if token in (fresh, "failed"):
            return [gr.skip()] * 3
        trusted = self.engine.config and self.engine.config.trust_remote_code
        status = (note(say("trust_warning", lang), "warn") if trusted else "") + self._status_html(lang)
        if differs:
            status += note(say("reload_to_apply", lang, names=", ".join(differs)), "warn")
        return status, gr.Button(interactive=bool(state and state.active)), fresh

    def _status_html(self, lang: str) -> str:
        state, model = self.engine.state(), self.engine.model
        if state is None:
            return note(say("engine_none", lang), "warn")
        if state.state == "running" and self.engine.silent:
            return note(told(SILENT, lang), "bad")
        if state.state == "running":
            names = ", ".join([model, *sorted(self.engine._adapters)])
            status = (
                say("engine_ready", lang, model=model, device=state.device)
                + "\n"
                + say("api_hint", lang, url="/v1", names=names)
            )
            return note(status) + (note(told(state.warning, lang), "warn") if state.warning else "")
        if state.state == "failed" and (state.port is not None or state.reason):
            return note(say("engine_failed", lang, model=model, reason=state.reason), "bad")
        if not state.active:
            return note(say("engine_gone", lang, model=model), "bad")
        bar = f"<div class='wb-bar' style='margin-top:6px'><div style='width:{100 * state.progress:.0f}%'></div></div>"
        status = escape(say("engine_loading", lang, model=model, phase=state.phase or "…"))
        return f"<div class='wb-note warn'>{status} {state.progress:.0%}{bar}</div>"

    @property
    def take_adapter(self) -> tuple:
        """(handler, inputs, outputs): a run's adapter brings the base model and the settings it was trained with."""

        def take(chosen):
            run = next((run for run in list_runs(self.workspace) if run.id == str(chosen).split("/")[0]), None)
            values = run.config_values() if run else {}
            if not values:
                return [gr.skip()] * (2 + len(_MORE))
            kept = [gr.skip() if name in _KEPT else values.get(name, self.defaults[name].default) for name in _MORE]
            return [values.get("model_name_or_path") or gr.skip(), values.get("quantization_bit") or 0, *kept]

        return take, self.adapter, [self.model, self.quantization, *self.more.values()]

    @property
    def settings(self) -> list:
        """The components that `filled` fills."""
        return [self.model, self.adapter, self.quantization, *self.more.values(), self.weights, self.name]

    def filled(self, values: dict, name: str) -> list:
        """Their values for an EngineConfig's `values`; with a `name`, its adapter is one to be merged under it."""
        adapter = str(values.get("adapter_name_or_path") or "")
        more = [values.get(key, self.defaults[key].default) for key in _MORE]
        merge = [f"{adapter} = 1", name] if name else [gr.skip(), gr.skip()]
        return [
            values.get("model_name_or_path") or gr.skip(),
            adapter,
            values.get("quantization_bit") or 0,
            *more,
            *merge,
        ]

    @staticmethod
    def unfilled() -> list:
        """`filled` where all stays as it is."""
        return [gr.skip()] * (5 + len(_MORE))

    def adapters(self) -> list[str]:
        """Adapters that can be chosen: runs and their checkpoints, and those that are loaded."""
        return list(dict.fromkeys([*sorted(self.engine._adapters), *adapter_choices(list_runs(self.workspace))]))

    def refresh(self, request: gr.Request):
        """Fresh lists of adapters and models."""
        names = [(name, name) for name in self.adapters()]
        return gr.Dropdown(choices=[(say("adapter_none", language(request)), ""), *names]), gr.Dropdown(
            choices=model_choices(self.workspace)
        )

    @people.needs("train")
    async def _find(self, url, key, request: gr.Request):
        try:
            if not re.fullmatch(r"https?://\S+", (url or "").strip()):
                raise UserError(say("server_url_wrong", language(request)))
            names = await models(Endpoint(url.strip().rstrip("/"), key or "", own=False))
        except UserError as error:
            return note(told(error, language(request)), "bad"), gr.skip()
        return note(", ".join(names) or "–"), gr.Dropdown(choices=names, value=names[0] if names else None)

    @staticmethod
    def _weights(text: str, lang: str) -> dict[str, float]:
        """`ADAPTER = WEIGHT` lines. Raises UserError."""
        weights = {}
        for line in itertools.islice(filter(None, map(str.strip, (text or "").splitlines())), MAX_MERGED + 1):
            name, _, weight = line.rpartition("=") if "=" in line else (line, "", "1")
            try:
                weights[name.strip()] = float(weight)
            except ValueError:
                raise UserError(say("merge_line_wrong", lang, line=line)) from None
        if not weights:
            raise UserError(say("merge_empty", lang))
        if len(weights) > MAX_MERGED:
            raise UserError(say("merge_many", lang, most=MAX_MERGED))
        return weights

    @people.needs("train")
    async def _merge(self, text, name, request: gr.Request):
        """Add several adapters up inside the engine, as one more that can be chosen."""
        lang = language(request)
        try:
            self.backend(False, "", "", "", lang)
            weights = self._weights(text, lang)
            if not (name or "").strip():
                raise UserError(say("merge_name_missing", lang))
            for adapter in weights:
                await self.adapter_name(adapter)
            await self._add({"name": name.strip(), "merge": weights})
        except UserError as error:
            return note(told(error, lang), "bad"), gr.skip()
        return note(say("merged", lang, name=name.strip())), gr.Dropdown(
            choices=[(say("adapter_none", lang), ""), *[(n, n) for n in self.adapters()]], value=name.strip()
        )


def _with_line(name, text):
    """The adapters to merge with one more, and an empty choice."""
    lines = [line for line in (text or "").splitlines() if line.strip()]
    if name and not any(line.rpartition("=")[0].strip() == name for line in lines):
        lines.append(f"{name} = 1")
    return "\n".join(lines), None
