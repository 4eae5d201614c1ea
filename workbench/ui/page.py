"""The whole page: header, tabs, and the server that carries it together with `/v1`."""

import json
import threading
import time
import traceback

import gradio as gr
from fastapi import FastAPI

from workbench import __version__
from workbench.chat import corrections
from workbench.config.presets import list_presets
from workbench.data.worker_client import DataWorker
from workbench.engine.door import Door
from workbench.engine.process import Engine
from workbench.runs.run import list_states, run_named
from workbench.storage.workspace import Workspace
from workbench.train import queue
from workbench.ui.api import add_api
from workbench.ui.catalogue import say
from workbench.ui.gate import Gate
from workbench.ui.notes import QUIET, note
from workbench.ui.sessions import Sessions, trim
from workbench.ui.sessions import use as use_sessions
from workbench.ui.strings import i18n, language, t
from workbench.ui.tabs.chat.tab import ChatTab
from workbench.ui.tabs.data.shared import clear_temporary
from workbench.ui.tabs.data.tab import DataTab
from workbench.ui.tabs.probes import ProbesTab
from workbench.ui.tabs.runs import view as runs_view
from workbench.ui.tabs.runs.tab import RunsTab
from workbench.ui.tabs.train import TrainTab
from workbench.ui.theme import CSS, NEWS_JS, PLOTLY, PLOTLY_SCRIPT, first_script, theme

TRIM_SECONDS = 60.0  # between two times that free memory is given back
CLEAR_SECONDS = 900.0  # between two looks at what uploads and downloads left


def build_blocks(workspace: Workspace, engine: Engine, *, login: bool = False) -> gr.Blocks:
    """The page's components and events. `login`: users log in, and can log out."""
    worker = DataWorker(workspace)
    with gr.Blocks(title="QLoRA Workbench", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="topbar"):
            gr.HTML(f"<h1 title='version {__version__}'>QLoRA Workbench</h1>", scale=8)
            switch = gr.Button(t("language"), size="sm", elem_id="language", scale=0, min_width=90)
            dark = gr.Button(t("theme"), size="sm", elem_id="theme", scale=0, min_width=120)
            leave = gr.Button(t("logout"), size="sm", elem_id="logout", scale=0, min_width=90, visible=login)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(t("tab_train"), id="train", elem_id="tab-train") as train_page:
                train = TrainTab(workspace, worker).build()
            with gr.Tab(t("tab_data"), id="data", elem_id="tab-data") as data_page:
                data = DataTab(workspace, train["form"], worker).build()
            with gr.Tab(t("tab_runs"), id="runs", elem_id="tab-runs") as runs_page:
                runs = RunsTab(workspace)
                runs.build()
            with gr.Tab(t("tab_chat"), id="chat", elem_id="tab-chat") as chat_page:
                chat = ChatTab(engine).build()
            with gr.Tab(t("tab_probes"), id="probes", elem_id="tab-probes") as probes_page:
                probed = ProbesTab(chat["panel"]).build()
        switch.click(None, js="() => window.workbenchLanguage()", api_visibility="private")
        leave.click(None, js="() => { location.href = 'logout'; }", api_visibility="private")
        dark.click(None, js="() => window.workbenchTheme()", api_visibility="private")
        news = gr.HTML(html_template="<div></div>", js_on_load=NEWS_JS, elem_id="news", visible="hidden")
        known = gr.State(None)

        def clone(run_id, request: gr.Request):
            """A run's options in the form, and the Train tab in front."""
            run = run_named(workspace, run_id)
            if run is None:
                return [
                    note(say("choose_run", language(request)), "bad"),
                    *[gr.skip()] * (2 + len(train["form"].names)),
                ]
            filled = train["form"].fill(run.config_values())
            return [note(say("cloned", language(request), id=run.id)), gr.Tabs(selected="train"), run.id, *filled]

        def train_corrections(adapter, model, request: gr.Request):
            """The corrections in the Train form: on top of the adapter that was chatted with, or from the base model's
            preset."""
            lang, count = language(request), len(corrections.rows(workspace))
            if not count:
                skipped = [gr.skip()] * (2 + len(train["form"].names))
                return [note(say("corrections_none", lang), "bad"), *skipped]
            run = run_named(workspace, str(adapter or "").split("/")[0])
            presets = [preset.values for preset in list_presets() if preset.values.get("model_name_or_path") == model]
            fresh = next(iter(presets), {"model_name_or_path": model, "quantization_bit": 4})
            start = run.config_values() if run else fresh
            values = corrections.run_values(start, adapter if run else "", count)
            return [
                "",
                gr.Tabs(selected="train"),
                note(say("corrections_form", lang, count=count)),
                *train["form"].fill(values),
            ]

        def chat_with(run_id, checkpoint):
            run = run_named(workspace, run_id)
            if run is not None and not checkpoint and not run.has_adapter and (checkpoints := run.checkpoints()):
                checkpoint = checkpoints[-1].name
            name = f"{run_id}/{checkpoint}" if run is not None and checkpoint else run_id
            return gr.Tabs(selected="chat"), gr.Dropdown(value=name)

        def tell(states, request: gr.Request):
            """Runs that have ended since this tab last looked: a line on the page, and a notification where allowed."""
            lang, now = language(request), {item.run.id: item.state for item in list_states(workspace)}
            active = {name: state.state for name, state in now.items() if state.active}
            ended = [(name, now[name]) for name in states or {} if name in now and not now[name].active]
            lines = [
                say("run_ended", lang, id=name, state=say("state_" + s.state, lang), reason=s.reason).strip()
                for name, s in ended
            ]
            if states == active:
                return gr.skip(), gr.skip()
            return (json.dumps(lines) if lines else gr.skip()), active

        runs.clone.click(clone, runs.chosen, [runs.message, tabs, train["parent"], *train["form"].components], **QUIET)
        runs.chat.click(chat_with, [runs.chosen, runs.checkpoint], [tabs, chat["adapter"]], **QUIET).then(
            chat["take_adapter"][0], chat["take_adapter"][1], chat["take_adapter"][2], **QUIET
        )
        chat["train"].click(
            train_corrections,
            [chat["adapter"], chat["model"]],
            [chat["corrected"], tabs, train["message"], *train["form"].components],
            **QUIET,
        )
        gr.Timer(2).tick(tell, known, [news, known], **QUIET)
        blocks.load(runs.arrive, None, runs.chosen, **QUIET)
        runs_page.select(*runs.fresh_list, **QUIET)
        blocks.load(train["arrive"][0], None, train["arrive"][1], **QUIET)
        blocks.load(*train["preview"], **QUIET)
        train_page.select(*train["datasets"], **QUIET)
        data_page.select(*data["arrive"], **QUIET)
        blocks.load(*chat["arrive"], **QUIET)
        blocks.load(
            *chat["comeback"], js="() => [sessionStorage.getItem('workbench_conversation') || '']", **QUIET
        ).then(*chat["look"], **QUIET)
        chat_page.select(*chat["arrive"], **QUIET)
        probes_page.select(*probed["arrive"], **QUIET)
    return blocks


def build_server(
    workspace: Workspace,
    *,
    auth: list[tuple[str, str]] | None,
    api_key: str,
    lang: str | None,
    local: bool,
    door: Door | None = None,
) -> tuple[Gate, Engine]:
    """The server: the page at `/` and the API at `/v1`, behind the gate. `local`: bound to loopback only."""
    door = door or Door()
    engine = Engine(workspace)
    app = FastAPI(title="QLoRA Workbench", docs_url=None, redoc_url=None, openapi_url=None)
    add_api(app, engine, api_key, needs_key=not local or bool(auth))
    gr.set_static_paths([PLOTLY])
    blocks = build_blocks(workspace, engine, login=bool(auth)).queue(default_concurrency_limit=8)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=auth,
        i18n=i18n,
        theme=theme(),
        css=CSS,
        head=PLOTLY_SCRIPT,
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
    names = (f"access-token-{pages.cookie_id}", f"access-token-unsecure-{pages.cookie_id}")  # Gradio's

    def logged_in(cookies: dict[str, str]) -> bool:
        return any(cookies.get(name) in pages.tokens for name in names)

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
