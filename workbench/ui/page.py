"""The whole page: header, tabs, and the server that carries it together with `/v1`."""

import json
import threading
import time
import traceback
from html import escape

import gradio as gr
from fastapi import FastAPI

from workbench import __version__
from workbench.chat import corrections
from workbench.config.presets import list_presets
from workbench.data.worker_client import DataWorker
from workbench.engine.door import Door
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.runs.run import Run, is_model, list_states, run_named
from workbench.storage.users import User, role_word
from workbench.storage.workspace import Workspace, slug
from workbench.train import queue, slurm
from workbench.ui import people as people_
from workbench.ui.api import add_api
from workbench.ui.catalogue import say
from workbench.ui.gate import Gate
from workbench.ui.notes import QUIET, note
from workbench.ui.people import People
from workbench.ui.scripts import QuickScripts
from workbench.ui.sessions import Sessions, trim
from workbench.ui.sessions import use as use_sessions
from workbench.ui.strings import i18n, language, t
from workbench.ui.tabs.chat.tab import ChatTab
from workbench.ui.tabs.data.files import USED
from workbench.ui.tabs.data.shared import clear_temporary
from workbench.ui.tabs.data.tab import DataTab
from workbench.ui.tabs.evaluate.tab import EvaluateTab
from workbench.ui.tabs.model.tab import ModelTab
from workbench.ui.tabs.probes import ProbesTab
from workbench.ui.tabs.record import Event, bind
from workbench.ui.tabs.runs import view as runs_view
from workbench.ui.tabs.runs.tab import LINK_JS, RunsTab
from workbench.ui.tabs.train.base import Base
from workbench.ui.tabs.train.importing import imported_of
from workbench.ui.tabs.train.tab import TrainTab
from workbench.ui.theme import AHEAD_JS, CSS, GUIDE_JS, NEWS_JS, PHONE_STYLE, PLOTLY, PLOTLY_SCRIPT, first_script, theme

TRIM_SECONDS = 60.0  # between two times that free memory is given back
CLEAR_SECONDS = 900.0  # between two looks at what uploads and downloads left


_NO_LINK_JS = "() => workbenchLink({run: '', words: '', states: '', sort: '', group: ''})"


class Page:
    """The tabs, and what leads from one to another."""

    def __init__(self, workspace: Workspace, engine: Engine):
        self.workspace = workspace
        worker = DataWorker(workspace)
        self.train = TrainTab(workspace, worker)
        self.data = DataTab(workspace, self.train.form, worker)
        self.runs = RunsTab(workspace)
        self.chat = ChatTab(engine)
        self.evaluate = EvaluateTab(workspace)
        self.probes = ProbesTab(self.chat.panel)
        self.model = ModelTab(workspace, engine)

    def build(self, people: People | None = None) -> people_.Guarded:
        """The page's components and events. `people`: users log in, and can log out."""
        with people_.Guarded(title="QLoRA Workbench", analytics_enabled=False, fill_width=True) as blocks:
            blocks.people = people
            self._header(bool(people))
            gr.HTML(
                json.dumps({lang: _guide(lang) for lang in ("en", "zh")}, ensure_ascii=False),
                html_template="<div class='wb-guide'></div>",
                js_on_load=GUIDE_JS,
                elem_id="guide",
            )
            built = []
            with gr.Tabs(elem_id="tabs") as self.tabs:
                for part in (self.train, self.data, self.runs, self.chat, self.evaluate, self.probes, self.model):
                    with gr.Tab(t(f"tab_{part.id}"), id=part.id, elem_id=f"tab-{part.id}") as container:
                        built.append((container, part.id, part.build()))
            clocks = [timer for *_, tab in built for timer in tab.timers]
            for container, tab_id, tab in built:
                for chain in tab.on_load:
                    bind(blocks.load, chain)
                # first, as gradio's events of one kind wait in line
                container.select(None, None, clocks, js=_ticking(tab.timers, clocks), api_visibility="private")
                for chain in tab.on_select:
                    bind(container.select, chain)
                if tab_id != "runs":
                    container.select(None, js=_NO_LINK_JS, api_visibility="private")
            ids = json.dumps([container._id for container, *_ in built])
            gr.HTML(ids, html_template="<div></div>", js_on_load=AHEAD_JS, elem_id="ahead", visible="hidden")
            blocks.load(self.follow_link, self.runs.link, self.tabs, js=LINK_JS, **QUIET)
            self._wire(blocks)
            if people:
                self._greet(blocks)
        return blocks

    def _greet(self, blocks: people_.Guarded) -> None:
        """Say who is logged in, and disable what the role may not do."""
        needed = blocks.needed()

        def greet(request: gr.Request):
            user, lang = people_.current(), language(request)
            if user is None:
                return [gr.skip()] * (1 + len(needed))
            shown = escape(say("logged_in_as", lang, name=user.name, role=role_word(user.role)))
            closed = [gr.skip() if user.may(role) else _closed(blocks.blocks[part]) for part, role in needed.items()]
            return [f"<span class='wb-sub' title='{shown}'>{shown}</span>", *closed]

        blocks.load(greet, None, [self.who, *(blocks.blocks[part] for part in needed)], **QUIET)

    def follow_link(self, link):
        """The tab that the page's address means: a run's page is on the Runs tab."""
        named = isinstance(link, dict) and any(link.get(key) for key in ("run", "words", "states", "sort", "group"))
        return gr.Tabs(selected="runs") if named else gr.skip()

    def _header(self, login: bool) -> None:
        with gr.Row(elem_id="topbar"):
            gr.HTML(f"<h1 title='version {__version__}'>QLoRA Workbench</h1>", scale=8)
            switch = gr.Button(t("language"), size="sm", elem_id="language", scale=0, min_width=90)
            dark = gr.Button(t("theme"), size="sm", elem_id="theme", scale=0, min_width=120)
            self.who = gr.HTML(elem_id="who", visible=login, scale=0, min_width=90)
            leave = gr.Button(t("logout"), size="sm", elem_id="logout", scale=0, min_width=90, visible=login)
        switch.click(None, js="() => window.workbenchLanguage()", api_visibility="private")
        leave.click(None, js="() => { location.href = 'logout'; }", api_visibility="private")
        dark.click(None, js="() => window.workbenchTheme()", api_visibility="private")

    def clone(self, run_id, request: gr.Request):
        """A run's options in the form, and the Train tab in front."""
        lang, run = language(request), run_named(self.workspace, run_id)
        if run is None:
            return [note(say("choose_run", lang), "bad"), gr.skip(), *self.train.unfilled()]
        message, values = note(say("cloned", lang, id=run.id)), run.config_values()
        return [message, gr.Tabs(selected="train"), *self.train.based_on(Base("clone", run.id, values), values, lang)]

    def import_for_chat(self, text, given=None):
        """What was pasted for training may be for chatting or exporting: that goes to the Chat tab."""
        try:
            imported = imported_of(text, given)
        except UserError:  # the Train tab tells
            return self.chat.panel.unfilled()
        if imported.purpose == "train":
            return self.chat.panel.unfilled()
        return self.chat.panel.filled(imported.values, imported.name)

    def train_corrections(self, adapter, model, way, request: gr.Request):
        """The corrections in the Train form: on top of the adapter that was chatted with, or from the base model's
        preset."""
        lang, own = language(request), people_.own(self.workspace)
        way = way if way in corrections.WAYS else "sft"
        kept, dataset = corrections.rows(own), corrections.DATASET
        if way != "sft":
            kept, dataset = corrections.pairs(own), corrections.PAIRS
        count = len(kept)
        if not count:
            return [note(say("corrections_none", lang), "bad"), gr.skip(), gr.skip(), *self.train.unfilled()]
        run = run_named(self.workspace, str(adapter or "").split("/")[0])
        presets = [preset.values for preset in list_presets() if preset.values.get("model_name_or_path") == model]
        fresh = next(iter(presets), {"model_name_or_path": model, "quantization_bit": 4})
        values = corrections.run_values(
            run.config_values() if run else fresh,
            adapter if run else "",
            count,
            corrections.own(own, dataset),
            way,
        )
        message = note(say("corrections_form" if way == "sft" else "corrections_pairs", lang, count=count))
        base = Base("corrections", run.id if run else str(model), values)
        return ["", gr.Tabs(selected="train"), message, *self.train.based_on(base, values, lang)]

    def train_on(self, name, rows, request: gr.Request, *contents):
        """The chosen dataset in the Train form, and the Train tab in front."""
        message, *options = self.data.files.train_on(name, rows, request, *contents)
        refused = options[0] == gr.skip()
        return message, gr.skip() if refused else gr.Tabs(selected="train"), *options

    def chat_with(self, run_id, checkpoint=""):
        """The Chat tab with a run's adapter, or that of its checkpoint; with its model where it trained all of one."""
        run = run_named(self.workspace, run_id)
        if run is None:
            return gr.Tabs(selected="chat"), gr.Dropdown(value=run_id), gr.skip()
        whole = run.has_adapter or run.has_model
        if not checkpoint and not whole and (checkpoints := run.checkpoints()):
            checkpoint = checkpoints[-1].name
        name = f"{run_id}/{checkpoint}" if checkpoint else run_id
        if is_model(run.path / (checkpoint or "")):
            return gr.Tabs(selected="chat"), gr.Dropdown(value=""), gr.Dropdown(value=name)
        return gr.Tabs(selected="chat"), gr.Dropdown(value=name), gr.skip()

    def export_run(self, run_id, checkpoint=""):
        """The Chat tab's export of a run's adapter, or that of its checkpoint, filled in."""
        run = run_named(self.workspace, run_id)
        if run is None:
            return [gr.skip()] * 3 + self.chat.panel.unfilled()
        adapter = f"{run.id}/{checkpoint}" if checkpoint else adapter_of(run)
        values = run.config_values() | {"adapter_name_or_path": adapter}
        name = slug(run.notes().get("title") or run.id)
        return [gr.Tabs(selected="chat"), gr.Accordion(open=True), None, *self.chat.panel.filled(values, name)]

    def tell(self, states, request: gr.Request):
        """Runs that have ended since this tab last looked: a line on the page, and a notification where allowed."""
        lang, now = language(request), {item.run.id: item.state for item in list_states(self.workspace)}
        active = {name: state.state for name, state in now.items() if state.active}
        ended = [(name, now[name]) for name in states or {} if name in now and not now[name].active]
        lines = [
            say("run_ended", lang, id=name, state=say("state_" + s.state, lang), reason=s.reason).strip()
            for name, s in ended
        ]
        if states == active:
            return gr.skip(), gr.skip()
        return (json.dumps(lines) if lines else gr.skip()), active

    def _wire(self, blocks: gr.Blocks) -> None:
        train, runs, chat = self.train, self.runs, self.chat
        form = train.form.components
        self.data.pairs.wire(chat.panel)
        self.data.use.click(
            self.train_on,
            [self.data.chosen, self.data.rows_in_all, *form],
            [self.data.used, self.tabs, *(train.form.widgets[name] for name in USED)],
            **QUIET,
        )
        runs.clone.click(self.clone, runs.chosen, [runs.message, self.tabs, *train.filled], **QUIET)
        train.take.click(self.import_for_chat, [train.pasted, train.given], chat.panel.settings, **QUIET)
        take_adapter = Event(*chat.panel.take_adapter)
        taken = [self.tabs, chat.panel.adapter, chat.panel.model]
        to_chat = Event(self.chat_with, [runs.chosen, runs.checkpoint], taken)
        bind(runs.chat.click, (to_chat, take_adapter))
        to_export = [self.tabs, chat.panel.merging, chat.panel.exports.seen, *chat.panel.settings]
        runs.export.click(self.export_run, [runs.chosen, runs.checkpoint], to_export, **QUIET)
        shown_to_chat = Event(self.chat_with, train.panel.list, taken)
        bind(train.panel.chat.click, (shown_to_chat, take_adapter))
        chat.examine.train.click(
            self.train_corrections,
            [chat.panel.adapter, chat.panel.model, chat.examine.way],
            [chat.examine.corrected, self.tabs, train.report, *train.filled],
            **QUIET,
        )
        news = gr.HTML(html_template="<div></div>", js_on_load=NEWS_JS, elem_id="news", visible="hidden")
        known = gr.State(None)
        blocks.load(self.tell, known, [news, known], **QUIET)  # what goes on now: its end will be news
        gr.Timer(4).tick(self.tell, known, [news, known], **QUIET)


def adapter_of(run: Run) -> str:
    """The name of a run's adapter: its own, or that of its last checkpoint."""
    checkpoints = [] if run.has_adapter else run.checkpoints()
    return f"{run.id}/{checkpoints[-1].name}" if checkpoints else run.id


def _ticking(timers: list, clocks: list) -> str:
    """JavaScript that lets of all `clocks` only `timers` tick."""
    updates = [{"__type__": "update", "active": clock in timers} for clock in clocks]
    return f"() => {json.dumps(updates)}"


def _closed(component) -> dict:
    """What a role may not use: disabled, a place to drop files not there at all."""
    return gr.update(visible=False) if isinstance(component, gr.File) else gr.update(interactive=False)


def _guide(lang: str) -> dict:
    """Texts of the first visit's guide; a step is a tab and what to do there."""
    steps = [(tab, say(f"guide_{tab}", lang)) for tab in ("data", "train", "runs", "chat")]
    return {"title": say("guide", lang), "steps": steps, "close": say("guide_close", lang)}


def build_server(
    workspace: Workspace,
    *,
    auth: People | None,
    api_key: str,
    lang: str | None,
    local: bool,
    door: Door | None = None,
) -> tuple[Gate, Engine]:
    """The server: the page at `/` and the API at `/v1`, behind the gate.

    `auth`: who may log in; None: nobody has to. `local`: bound to loopback only.
    """
    door = door or Door()
    engine = Engine(workspace)
    app = FastAPI(title="QLoRA Workbench", docs_url=None, redoc_url=None, openapi_url=None)
    add_api(app, engine, api_key, needs_key=not local or bool(auth))
    gr.set_static_paths([PLOTLY])
    blocks = Page(workspace, engine).build(auth).queue(default_concurrency_limit=8)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=auth.login if auth else None,
        i18n=i18n,
        theme=theme(),
        css=CSS,
        head=PLOTLY_SCRIPT + PHONE_STYLE,
        ssr_mode=False,
        run_history=False,
        show_error=False,
        root_path=door.root_path or None,
        footer_links=[],
        favicon_path=None,
        enable_monitoring=False,
        mcp_server=False,
    )
    blocks.has_launched = True  # without it Gradio checks no path that an event names; only its own launch() sets it
    pages = next(route.app for route in app.routes if hasattr(route, "app") and hasattr(route.app, "state_holder"))
    sessions = use_sessions(pages, blocks)
    threading.Thread(target=_keep_house, args=(workspace, sessions), daemon=True).start()
    app.add_middleware(ScriptFirst, script=first_script(lang))
    app.add_middleware(QuickScripts)
    names = (f"access-token-{pages.cookie_id}", f"access-token-unsecure-{pages.cookie_id}")  # Gradio's

    def logged_in(cookies: dict[str, str]) -> User | None:
        found = (auth.holder(pages.tokens, cookies.get(name)) for name in names) if auth else ()
        return next((user for user in found if user), None)

    return Gate(app, door, logged_in if auth else None), engine


def _keep_house(workspace: Workspace, sessions: Sessions) -> None:
    """Start queued runs as devices become free, forget tabs that are closed; for good. What the Runs tab shows of
    thousands of runs is read beforehand."""
    warm, cleared, trimmed = False, time.monotonic(), time.monotonic()
    while True:
        try:
            sessions.delete_all_expired_state()
            if time.monotonic() - cleared > CLEAR_SECONDS:
                cleared = time.monotonic()
                clear_temporary()
            if time.monotonic() - trimmed > TRIM_SECONDS:
                trimmed = time.monotonic()
                trim()
            if not workspace.read_only:
                queue.start_queued(workspace)
                slurm.look(workspace)
            if not warm:
                warm = True
                runs_view.summaries(workspace)
        except Exception:  # a full disk, say: the next look may succeed
            traceback.print_exc()
        time.sleep(1.5)


class ScriptFirst:
    """Puts a script at the top of the page's HTML; gradio's own `head=` is added only after its scripts have run."""

    def __init__(self, app, script: str):
        self.app, self.script = app, script.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        start, body = None, b""

        async def collect(message):
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            changed = body.replace(b"<head>", b"<head>" + self.script, 1)
            headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(changed)).encode())]})
            await send({"type": "http.response.body", "body": changed})

        # asked for without compression, so that the HTML can be read here
        plain = [(k, v) for k, v in scope["headers"] if k.lower() != b"accept-encoding"]
        await self.app({**scope, "headers": plain}, receive, collect)
