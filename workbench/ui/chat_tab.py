"""The Chat tab: load a model with an adapter, talk to it, compare base and adapter side by side.

It is a client of the engine's OpenAI protocol and nothing more. The conversation is kept in `gr.State` as plain
messages; what the Chatbot shows is made from it, with HTML in the model's answer escaped.
"""

import asyncio
import contextlib
import traceback
from html import escape

import gradio as gr

from workbench.config import validated
from workbench.engines import Engine
from workbench.errors import UserError
from workbench.fields import options
from workbench.models.locate import adapter_choices, locate_adapter
from workbench.options import EngineConfig
from workbench.runs import list_runs
from workbench.ui.conversation import Sampling, Session, bubbles
from workbench.ui.form import model_choices
from workbench.ui.notes import QUIET, note
from workbench.ui.strings import language, say, t
from workbench.workspace import DEMO_MODEL

_MORE = (
    "template",
    "flash_attn",
    "attn_fallback",
    "rope_scaling",
    "rope_factor",
    "devices",
    "trust_remote_code",
)


def build(engine: Engine) -> dict:
    """Lay the tab out and wire it; returns the handlers for the page's arrival."""
    workspace = engine.workspace
    defaults = {option.name: option for option in options(EngineConfig)}

    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            model = gr.Dropdown(
                model_choices(workspace),
                value=DEMO_MODEL,
                label=t("opt_model_name_or_path"),
                allow_custom_value=True,
                elem_id="chat-model",
            )
            adapter = gr.Dropdown(
                [],
                value=None,
                label=t("adapter"),
                info=t("adapter_info"),
                allow_custom_value=True,
                elem_id="chat-adapter",
            )
            quantisation = gr.Radio(
                [(t("none"), 0), ("8", 8), ("4", 4)],
                value=0,
                label=t("quantisation"),
                elem_id="chat-quantisation",
            )
            with gr.Accordion(t("loading_options"), open=False, elem_id="chat-loading-options"):
                more = {}
                for name in _MORE:
                    o, common = (
                        defaults[name],
                        {"label": t(f"opt_{name}"), "info": t(f"help_{name}"), "elem_id": f"chat-{name}"},
                    )
                    if o.kind == "bool":
                        more[name] = gr.Checkbox(value=o.default, **common)
                    elif o.kind == "choice":
                        more[name] = gr.Dropdown(list(o.choices), value=o.default, **common)
                    elif o.kind == "float":
                        more[name] = gr.Number(value=o.default, **common)
                    else:
                        more[name] = gr.Textbox(value=o.default, max_lines=1, **common)
            with gr.Row():
                load = gr.Button(t("load"), variant="primary", elem_id="load", min_width=100)
                unload = gr.Button(t("unload"), elem_id="unload", min_width=100)
            status = gr.HTML(elem_id="engine-status")
            with gr.Accordion(t("generation"), open=False, elem_id="generation"):
                system = gr.Textbox(value="", label=t("system_prompt"), lines=2, elem_id="system-prompt")
                max_tokens = gr.Slider(1, 4096, 256, step=1, label=t("max_tokens"), elem_id="max-tokens")
                temperature = gr.Slider(0, 2, 0.7, step=0.05, label=t("temperature"), elem_id="temperature")
                top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label=t("top_p"), elem_id="top-p")
                top_k = gr.Slider(0, 200, 0, step=1, label=t("top_k"), elem_id="top-k")
                penalty = gr.Slider(1, 2, 1.0, step=0.05, label=t("repetition_penalty"), elem_id="repetition-penalty")
                seed = gr.Textbox(value="", label=t("seed"), max_lines=1, elem_id="seed")
        with gr.Column(scale=8, min_width=480):
            compare = gr.Checkbox(label=t("compare"), value=False, elem_id="compare")
            with gr.Row():
                left = gr.Chatbot(
                    label=t("answer_column"),
                    height=520,
                    buttons=["copy"],
                    elem_id="chat-left",
                    editable="user",
                    sanitize_html=True,
                )
                right = gr.Chatbot(
                    label=t("adapter_column"),
                    height=520,
                    buttons=["copy"],
                    visible=False,
                    elem_id="chat-right",
                    sanitize_html=True,
                )
            problem = gr.HTML(elem_id="chat-problem")
            with gr.Row(equal_height=True):
                box = gr.Textbox(
                    show_label=False,
                    placeholder=t("message_placeholder"),
                    lines=2,
                    max_lines=6,
                    scale=8,
                    elem_id="message",
                    submit_btn=False,
                )
                send = gr.Button(t("send"), variant="primary", scale=1, min_width=90, elem_id="send")
                halt = gr.Button(t("stop"), variant="stop", scale=1, min_width=90, elem_id="halt")
            with gr.Row():
                again = gr.Button(t("regenerate"), size="sm", elem_id="regenerate")
                clear = gr.Button(t("clear"), size="sm", elem_id="clear")
    talk = gr.State(Session())
    seen = gr.State(None)
    sampling = [system, max_tokens, temperature, top_p, top_k, penalty, seed]

    def config_of(model_name, bits, *rest) -> EngineConfig:
        values = dict(zip(_MORE, rest, strict=True)) | {
            "model_name_or_path": model_name,
            "quantization_bit": bits or None,
        }
        return validated(values, EngineConfig)

    def start_loading(request: gr.Request, model_name, chosen, bits, *rest):
        lang = language(request)
        try:
            config = config_of(model_name, bits, *rest)
            workspace.confine(config)
            if chosen:
                workspace.inside(locate_adapter(chosen, workspace), what="adapter")
            engine.load(config, chosen or "")
        except UserError as error:
            return note(str(error), "bad"), "failed"
        return note(say("engine_loading", lang, model=engine.model, phase="…"), "warn"), None

    def look(token, chosen, request: gr.Request):
        """Engine status; sent only when it changed."""
        lang = language(request)
        state = engine.state()
        fresh = (
            lang,
            engine.model,
            state and (state.state, state.phase, state.progress, state.reason),
            tuple(sorted(engine._adapters)),
        )
        if token in (fresh, "failed"):
            return gr.skip(), gr.skip()
        return status_html(lang), fresh

    def status_html(lang: str) -> str:
        warning = note(say("trust_warning", lang), "warn") if engine.config and engine.config.trust_remote_code else ""
        return warning + engine_html(lang)

    def engine_html(lang: str) -> str:
        state = engine.state()
        if state is None:
            return note(say("engine_none", lang), "warn")
        if state.state == "running":
            names = ", ".join([engine.model, *sorted(engine._adapters)])
            return note(
                say("engine_ready", lang, model=engine.model, device=state.device)
                + "\n"
                + say("api_hint", lang, url="/v1", names=names)
            )
        if state.state in ("failed", "lost") and state.port is None and not state.reason:
            return note(say("engine_gone", lang, model=engine.model), "bad")
        if state.state == "failed":
            return note(say("engine_failed", lang, model=engine.model, reason=state.reason), "bad")
        if not state.active:
            return note(say("engine_gone", lang, model=engine.model), "bad")
        bar = f"<div class='wb-bar' style='margin-top:6px'><div style='width:{100 * state.progress:.0f}%'></div></div>"
        words = escape(say("engine_loading", lang, model=engine.model, phase=state.phase or "…"))
        return f"<div class='wb-note warn'>{words} {state.progress:.0%}{bar}</div>"

    async def adapter_name(chosen: str) -> str:
        """The model name to ask for; loads the adapter into the engine if it is not there yet."""
        import httpx

        if not engine.knows(chosen):
            workspace.inside(locate_adapter(chosen, workspace), what="adapter")
            try:
                async with httpx.AsyncClient(timeout=120) as client:
                    answer = await client.post(
                        f"{engine.url}/adapters",
                        json={"name": chosen, "path": chosen},
                        headers={"Authorization": f"Bearer {engine.key}"},
                    )
                    body = answer.json()
            except (httpx.HTTPError, ValueError) as error:
                raise UserError(
                    f"The engine could not load the adapter ({type(error).__name__}). Load the model again."
                ) from None
            if answer.status_code != 200:
                raise UserError(body["error"]["message"])
            engine.remember(chosen)
        return chosen

    async def answer(model_name: str, conversation: list[dict], settings: Sampling, seed_used: int):
        """Grow the last message of `conversation` as tokens arrive."""
        from openai import APIError, APIStatusError, AsyncOpenAI

        messages = (
            [{"role": "system", "content": settings.system}] if (settings.system or "").strip() else []
        ) + conversation[:-1]
        client = AsyncOpenAI(base_url=f"{engine.url}/v1", api_key=engine.key, max_retries=0, timeout=3600)
        try:
            stream = await client.chat.completions.create(
                model=model_name, messages=messages, stream=True, **settings.request(seed_used)
            )
            try:
                async for chunk in stream:
                    if chunk.choices and chunk.choices[0].delta.content:
                        conversation[-1]["content"] += chunk.choices[0].delta.content
                        yield
            finally:
                await stream.close()
        except APIStatusError as error:
            raise UserError(
                error.body.get("message", str(error)) if isinstance(error.body, dict) else str(error)
            ) from None
        except APIError as error:
            raise UserError(f"The engine did not answer ({str(error).rstrip('.')}). Load the model again.") from None
        finally:
            await client.close()

    async def respond(request: gr.Request, talk, chosen, comparing, *settings):
        """Stream the next assistant turn; with `comparing` both columns at once, same prompt, same seed."""
        lang, turn = language(request), talk.turn
        running: list[asyncio.Task] = []
        try:
            if not engine.ready:
                raise UserError(say("load_first", lang))
            if not talk.left or talk.left[-1]["role"] != "user":
                return
            settings = Sampling(*settings)
            seed_used = settings.chosen_seed()
            if comparing and not chosen:
                raise UserError(say("choose_adapter", lang))
            tuned = await adapter_name(chosen) if chosen else engine.model
            models = [engine.model, tuned] if comparing else [tuned]
            columns = list(talk.columns[: len(models)])
            for column in columns:
                column.append({"role": "assistant", "content": ""})
            changed = asyncio.Event()

            async def fill(model_name, column):
                async for _ in answer(model_name, column, settings, seed_used):
                    changed.set()

            running = [asyncio.create_task(fill(m, c)) for m, c in zip(models, columns, strict=True)]
            while talk.turn == turn:
                done, pending = await asyncio.wait(running, timeout=0.08)
                if (changed.is_set() or not pending) and talk.turn == turn:
                    changed.clear()
                    yield talk.shown()
                for task in done:
                    if error := task.exception():
                        raise error
                if not pending:
                    return
            # what was sent last may reach the browser after the answer to the user's next action: send how it is now
            yield talk.shown()
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()  # for whoever runs the server; the user gets a sentence
            for column in talk.columns:
                if column and column[-1]["role"] == "assistant" and not column[-1]["content"]:
                    column.pop()
            words = str(error) if isinstance(error, UserError) else say("unexpected", lang, kind=type(error).__name__)
            yield talk.shown(note(words, "bad"))
        finally:
            for task in running:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*running, return_exceptions=True)

    def ask(text, talk):
        text = text.strip()
        if not text:
            return gr.skip(), *talk.shown()
        talk.next_turn(*([*column, {"role": "user", "content": text}] for column in talk.columns))
        return "", *talk.shown()

    def drop_answer(talk):
        def without(column):
            return column[: max((i + 1 for i, m in enumerate(column) if m["role"] == "user"), default=0)]

        talk.next_turn(*map(without, talk.columns))
        return talk.shown()

    def edit(talk, event: gr.EditData):
        """A changed question: everything after it is asked anew."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        text = event.value if isinstance(event.value, str) else str(event.value.get("text", ""))
        talk.next_turn(*([*column[:index], {"role": "user", "content": text}] for column in talk.columns))
        return talk.shown()

    def hold(talk):
        """Stop: the answer stays as far as it was written."""
        talk.next_turn(list(talk.left), list(talk.right))
        return talk.shown()

    def wipe(talk):
        talk.next_turn([], [])
        return talk.shown()

    def set_compare(comparing, talk):
        """Entering comparison, the right column starts from the left one's conversation."""
        talk.next_turn(list(talk.left), [dict(m) for m in talk.left] if comparing else list(talk.right))
        return (
            gr.Chatbot(label=t("base_column") if comparing else t("answer_column"), value=bubbles(talk.left)),
            gr.Chatbot(visible=comparing, value=bubbles(talk.right)),
        )

    def refresh(request: gr.Request):
        lang = language(request)
        choices = [
            (say("adapter_none", lang), ""),
            *[(name, name) for name in adapter_choices(list_runs(workspace))],
        ]
        return gr.Dropdown(choices=choices), gr.Dropdown(choices=model_choices(workspace))

    def quantisation_of(chosen):
        """A run's adapter brings the base model and the settings it was trained with."""
        run = next((run for run in list_runs(workspace) if run.id == str(chosen).split("/")[0]), None)
        values = run.config_values() if run else {}
        if not values:
            return [gr.skip()] * (2 + len(_MORE))
        return [values.get("model_name_or_path") or gr.skip(), values.get("quantization_bit") or 0,
                *[values.get(name, defaults[name].default) if name != "devices" else gr.skip() for name in _MORE]]  # fmt: skip

    load.click(start_loading, [model, adapter, quantisation, *more.values()], [status, seen], **QUIET)
    unload.click(lambda: engine.unload(), None, None, show_progress="hidden", api_visibility="private").then(
        lambda: None, None, seen, **QUIET)  # fmt: skip
    adapter.input(quantisation_of, adapter, [model, quantisation, *more.values()], **QUIET)
    compare.change(set_compare, [compare, talk], [left, right], **QUIET)
    gr.Timer(1).tick(look, [seen, adapter], [status, seen], **QUIET)

    shown_in = [left, right, problem]
    inputs = [talk, adapter, compare, *sampling]
    # several answers of one tab may overlap for a moment: a new question starts while the last answer is ending
    stream = {
        "show_progress": "hidden",
        "api_visibility": "private",
        "concurrency_limit": 16,
        "trigger_mode": "multiple",
    }
    gr.on([box.submit, send.click], ask, [box, talk], [box, *shown_in], **QUIET).then(
        respond, inputs, shown_in, **stream
    )
    gr.on([again.click, left.retry], drop_answer, talk, shown_in, **QUIET).then(respond, inputs, shown_in, **stream)
    left.edit(edit, talk, shown_in, **QUIET).then(respond, inputs, shown_in, **stream)
    halt.click(hold, talk, shown_in, **QUIET)
    gr.on([clear.click, left.clear], wipe, talk, shown_in, **QUIET)
    return {
        "arrive": (refresh, [adapter, model]),
        "refresh": (refresh, [adapter, model]),
        "adapter": adapter,
        "take_adapter": (quantisation_of, adapter, [model, quantisation, *more.values()]),
    }
