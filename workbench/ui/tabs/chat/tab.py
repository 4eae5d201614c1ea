"""The Chat tab: talk to a model, beside up to three adapters; look closer at an answer; correct it.

It is a client of the OpenAI protocol and nothing more. The conversation is kept in `gr.State` as plain messages; what
the Chatbots show is made from it, with HTML in the model's answer escaped.
"""

import asyncio
import contextlib
import traceback

import gradio as gr

from workbench.chat import branches, conversations, corrections
from workbench.chat.math import DELIMITERS
from workbench.chat.session import MAX_COLUMNS, Sampling, Session, from_bubble, go_on, sent, settled, unshown
from workbench.engine.client import joined_calls, stream
from workbench.engine.process import SILENT, Engine
from workbench.errors import UserError
from workbench.storage import files
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.notes import EACH, LATEST, QUIET, note, told
from workbench.ui.strings import language, t
from workbench.ui.tabs.chat.engine_panel import EnginePanel
from workbench.ui.tabs.chat.examine import Examine
from workbench.ui.tabs.chat.history import History
from workbench.ui.tabs.record import Event, Tab

COLUMN_IDS = ("chat-left", "chat-right", "chat-third", "chat-fourth")


_LAST_CONVERSATION = "() => [sessionStorage.getItem('workbench_conversation') || '']"


class ChatTab:
    """The conversation in up to four columns, with the engine's panel, the history and the closer look beside it."""

    id = "chat"

    def __init__(self, engine: Engine):
        self.engine = engine
        self.workspace = self.engine.workspace
        self.panel, self.history = EnginePanel(self.engine), History(self.workspace)
        self.examine = Examine(self.panel, self.history.keep)

    def build(self) -> Tab:
        """Lay the tab out inside a `gr.Tab` and wire it."""
        self._widgets()
        return self._wire()

    def _widgets(self) -> None:
        with gr.Row(elem_id="chat-columns"):
            with gr.Column(scale=3, min_width=300, elem_id="chat-side"):
                self.panel.build()
                with gr.Accordion(t("generation"), open=False, elem_id="generation"):
                    self.system = gr.Textbox(value="", label=t("system_prompt"), lines=2, elem_id="system-prompt")
                    self.max_tokens = gr.Slider(1, 4096, 256, step=1, label=t("max_tokens"), elem_id="max-tokens")
                    self.temperature = gr.Slider(0, 2, 0.7, step=0.05, label=t("temperature"), elem_id="temperature")
                    self.top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label=t("top_p"), elem_id="top-p")
                    self.top_k = gr.Slider(0, 200, 0, step=1, label=t("top_k"), elem_id="top-k")
                    self.penalty = gr.Slider(
                        1, 2, 1.0, step=0.05, label=t("repetition_penalty"), elem_id="repetition-penalty"
                    )
                    self.seed = gr.Textbox(value="", label=t("seed"), max_lines=1, elem_id="seed")
                    self.thinking = gr.Radio(
                        [(t("thinking_loaded"), "auto"), (t("thinking_on"), "on"), (t("thinking_off"), "off")],
                        value="auto",
                        label=t("opt_enable_thinking"),
                        info=t("thinking_info"),
                        elem_id="thinking",
                    )
                    self.tools = gr.Textbox(value="", label=t("tools"), info=t("tools_info"), lines=3, elem_id="tools")
                    with gr.Row():
                        self.price_in = gr.Number(0, label=t("price_in"), minimum=0, elem_id="price-in", min_width=100)
                        self.price_out = gr.Number(
                            0, label=t("price_out"), minimum=0, elem_id="price-out", min_width=100
                        )
                self.history.build()
            with gr.Column(scale=8, min_width=320, elem_id="chat-main"):
                drawer = gr.Button(t("drawer"), size="sm", elem_id="drawer")
                drawer.click(None, js="() => document.body.classList.toggle('drawer')", api_visibility="private")
                with gr.Row():
                    self.compare = gr.Checkbox(label=t("compare"), value=False, elem_id="compare", scale=2)
                    self.others = gr.Dropdown(
                        [],
                        value=[],
                        multiselect=True,
                        max_choices=2,
                        label=t("compare_more"),
                        visible=False,
                        allow_custom_value=True,
                        elem_id="compare-more",
                        scale=5,
                    )
                with gr.Row():
                    self.boxes = [
                        gr.Chatbot(
                            label=t("answer_column") if number == 0 else t("adapter_column"),
                            height=460,
                            buttons=["copy"],
                            visible=number == 0,
                            elem_id=id_,
                            sanitize_html=True,
                            latex_delimiters=DELIMITERS,
                            min_width=200,
                            **({"editable": "user"} if number == 0 else {}),
                        )
                        for number, id_ in enumerate(COLUMN_IDS)
                    ]
                self.problem = gr.HTML(elem_id="chat-problem")
                with gr.Row(equal_height=True):
                    self.box = gr.Textbox(  # of one line at first: Enter sends then, and Shift+Enter breaks the line
                        label=t("message"),
                        show_label=False,
                        placeholder=t("message_placeholder"),
                        lines=1,
                        max_lines=6,
                        scale=8,
                        elem_id="message",
                        submit_btn=False,
                    )
                    self.send = gr.Button(t("send"), variant="primary", scale=1, min_width=90, elem_id="send")
                    self.halt = gr.Button(
                        t("stop"), variant="stop", scale=1, min_width=90, elem_id="halt", interactive=False
                    )
                with gr.Row():
                    self.more = gr.Button(t("continue_answer"), size="sm", elem_id="continue", visible=False)
                    self.again = gr.Button(t("regenerate"), size="sm", elem_id="regenerate", interactive=False)
                    self.clear = gr.Button(t("clear"), size="sm", elem_id="clear", interactive=False)
                    self.best = gr.Radio([], label=t("best_answer"), visible=False, elem_id="best", scale=3)
                    self.vote = gr.Button(t("vote"), size="sm", visible=False, elem_id="vote")
                self.used = gr.HTML(elem_id="chat-used")
                self.examine.build()
        self.talk = gr.State(Session())
        self.last = gr.Textbox(
            "", visible="hidden", elem_id="last-conversation"
        )  # kept by the browser; gr.BrowserState comes too late for `load`
        self.sampling = [
            self.system,
            self.max_tokens,
            self.temperature,
            self.top_p,
            self.top_k,
            self.penalty,
            self.seed,
            self.thinking,
        ]
        self.left = self.boxes[0]
        self.shown_in = [*self.boxes, self.problem]

    def request_tools(self, text: str, lang: str) -> dict:
        """Tool definitions for the API: a JSON list as OpenAI writes it, or empty."""
        if not (text or "").strip():
            return {}
        try:
            tools_given = files.parse_json(text)
            if not isinstance(tools_given, list) or not all(isinstance(tool, dict) for tool in tools_given):
                raise files.Unreadable("", "it should be a list of objects.")
        except files.Unreadable as error:
            raise UserError(say("tools_wrong", lang, error=error.reason)) from None
        return {"tools": tools_given}

    async def fill(
        self, backend, model: str, column: list[dict], settings: dict, prefix: list[dict], changed, talk
    ) -> None:
        """Grow the last message of `column` as tokens arrive."""
        answer = column[-1]
        answer |= {"model": model, "tokens": answer.get("tokens") or [], "system": prefix}
        if not backend.own:
            answer["external"] = True
        messages = prefix + sent(column if answer["content"] else column[:-1])
        going_on = {"continue_final_message": True, "add_generation_prompt": False} if answer["content"] else {}
        if going_on:
            settings = settings | {"extra_body": settings.get("extra_body", {}) | going_on}
        async for delta in stream(backend, model, messages, settings):
            answer["content"] += delta.content
            answer["tokens"] = answer["tokens"] + delta.entries if delta.entries else answer["tokens"]
            if delta.reasoning:
                answer["reasoning"] = answer.get("reasoning", "") + delta.reasoning
            if delta.calls:
                answer["calls"] = joined_calls(answer.get("calls", []), delta.calls)
            if delta.finish == "length":
                answer["cut"] = settings.get("max_tokens")
            if delta.usage:
                talk.prompt_tokens += delta.usage["prompt_tokens"]
                talk.completion_tokens += delta.usage["completion_tokens"]
            changed.set()

    async def respond(self, request: gr.Request, talk, chosen, comparing, more, tools_text, *rest):
        """Stream the next assistant turn; when comparing all columns at once, same prompt, same seed."""
        where, settings = rest[:4], Sampling(*rest[4:])
        lang, turn = language(request), talk.turn
        running: list[asyncio.Task] = []
        try:
            backend, base = self.panel.backend(*where, lang)
            # a branch goes on in its own column; everything else is answered in all
            branched = next((c for c in talk.columns if c and c[-1].get("unfinished")), None)
            if branched is None and (not talk.left or talk.left[-1]["role"] != "user"):
                return
            asked = settings.request(settings.chosen_seed(), backend.own) | self.request_tools(tools_text, lang)
            if branched is not None:
                branched[-1]["unfinished"] = False
                wrote = branched[-1].get("model") or base
                models = [wrote if wrote == base or not backend.own else await self.panel.adapter_name(wrote)]
                columns = [branched]
            else:
                if comparing and not chosen:
                    raise UserError(say("choose_adapter", lang))
                wanted = [name for name in (chosen, *(more if comparing else [])) if name] if backend.own else []
                adapters = [await self.panel.adapter_name(name) for name in wanted]
                models = [base, *adapters][:MAX_COLUMNS] if comparing else [adapters[0] if adapters else base]
                columns = talk.columns[: len(models)]
            if talk.turn != turn:  # the user went on while an adapter was loading
                return
            if branched is None:
                talk.models, talk.width, so_far = models, len(models), list(columns[0])
                for column in columns:
                    if not column:  # a column that has just come: it begins with the first one's conversation
                        column += [dict(message) for message in so_far]
                    column.append({"role": "assistant", "content": "", "thinking": settings.thinking})
            changed = asyncio.Event()
            prefix = [{"role": "system", "content": settings.system}] if (settings.system or "").strip() else []
            running = [
                asyncio.create_task(self.fill(backend, m, c, asked, prefix, changed, talk))
                for m, c in zip(models, columns, strict=True)
            ]
            while talk.turn == turn:
                done, pending = await asyncio.wait(running, timeout=0.08)
                if backend.own and self.engine.silent:
                    raise UserError(SILENT)
                if (changed.is_set() or not pending) and talk.turn == turn:
                    changed.clear()
                    yield talk.shown()
                for task in done:
                    if error := task.exception():
                        raise error
                if not pending and talk.turn == turn:
                    talk.answered = turn
                    return
            # what was sent last may reach the browser after the answer to the user's next action: send how it is now
            yield talk.shown()
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()  # for whoever runs the server; the user gets a sentence
            if talk.turn != turn:
                return
            talk.columns = [settled(column) for column in talk.columns]
            ours = isinstance(error, UserError)
            message_text = told(error, lang) if ours else say("unexpected", lang, kind=type(error).__name__)
            yield talk.shown(note(message_text, "bad"))
        finally:
            for task in running:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*running, return_exceptions=True)
            if talk.turn == turn:
                talk.completed = turn

    def answers_of(self, talk) -> dict[str, str]:
        """The last answer of each column that has one, by its model."""
        pairs = zip(talk.models, talk.columns[: talk.width], strict=False)
        return {name: column[-1]["content"] for name, column in pairs if column and column[-1]["role"] == "assistant"}

    def after(self, talk, price_in, price_out, request: gr.Request):
        """An answer is there: keep the conversation, say what it took, show the closer look."""
        lang, wrong = language(request), self.history.keep(talk)
        used = say("tokens_used", lang, prompt=f"{talk.prompt_tokens:,}", completion=f"{talk.completion_tokens:,}")
        cost = (talk.prompt_tokens * float(price_in or 0) + talk.completion_tokens * float(price_out or 0)) / 1e6
        used += say("cost", lang, cost=f"{cost:.6f}".rstrip("0").rstrip(".")) if cost else ""
        line = f"<div class='wb-sub'>{used}</div>" if talk.completion_tokens else ""
        cuts = [column[-1]["cut"] for column in talk.columns[: talk.width] if column and column[-1].get("cut")]
        if cuts:
            line = note(say("answer_cut", lang, count=cuts[0]), "warn") + line
        begun = any(talk.columns)
        several = list(self.answers_of(talk))
        voting = len(several) > 1 and talk.width > 1
        return (
            note(told(wrong, lang), "bad") or line,
            talk.id if any(talk.columns) else "",
            gr.Radio(choices=several, value=None, visible=voting),
            gr.Button(visible=voting),
            gr.Button(visible=bool(cuts)),
            gr.Button(interactive=False),
            gr.Button(interactive=begun),
            gr.Button(interactive=begun),
            *self.examine.look(talk, request),
        )

    def ask(self, text, talk):
        text = text.strip()
        if not text:
            return gr.skip(), *talk.shown()
        columns = [settled(column) for column in talk.columns]
        talk.next_turn([[*c, {"role": "user", "content": text}] if c or not n else c for n, c in enumerate(columns)])
        return "", *talk.shown()

    def write_on(self, talk):
        """Go on with an answer that was cut."""
        go_on(talk)
        return talk.shown()

    def drop_answer(self, talk):
        def without(column):
            return column[: max((i + 1 for i, m in enumerate(column) if m["role"] == "user"), default=0)]

        talk.next_turn([*map(without, talk.columns)])
        return talk.shown()

    def edit(self, talk, event: gr.EditData):
        """A changed question: everything after it is asked anew."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        index = from_bubble(talk.left, index) or 0
        text = unshown(event.value if isinstance(event.value, str) else str(event.value.get("text", "")))
        talk.next_turn(
            [[*column[:index], {"role": "user", "content": text}] if column else [] for column in talk.columns]
        )
        return talk.shown()

    def hold(self, talk):
        """Stop: the answer stays as far as it was written."""
        talk.next_turn([list(column) for column in talk.columns])
        talk.completed = talk.turn
        return talk.shown()

    def wipe(self, talk):
        """A new conversation; the old one stays in the list."""
        self.history.keep(talk)
        talk.next_turn([[]])
        talk.completed, talk.saved_at = talk.turn, 0.0
        talk.id, talk.title, talk.prompt_tokens, talk.completion_tokens = conversations.new_id(), "", 0, 0
        return talk.shown()

    def labels(self, width: int, models: list[str], lang: str) -> list[str]:
        """What stands above each column."""
        if width == 1:
            return [say("answer_column", lang)] * MAX_COLUMNS
        names = [*models, *[""] * MAX_COLUMNS]
        return [say("base_column", lang), *(name or say("adapter_column", lang) for name in names[1:MAX_COLUMNS])]

    def in_boxes(self, session: Session, titles: list[str]) -> list:
        """A session's columns in the Chatbots."""
        return [
            gr.Chatbot(value=value, visible=number < session.width, label=title)
            for number, (value, title) in enumerate(zip(session.shown(), titles, strict=False))
        ]

    def set_compare(self, comparing, chosen, more, talk, request: gr.Request):
        """Entering comparison, every new column starts from the first one's conversation."""
        width = min(2 + len(more or []), MAX_COLUMNS) if comparing else 1
        self.history.keep(talk)
        if width < talk.width:  # the wider conversation stays in the list as it was
            talk.id, talk.saved_at = conversations.new_id(), 0.0
        columns = [list(talk.left) if n == 0 or n >= talk.width else list(talk.columns[n]) for n in range(width)]
        columns = [columns[0], *([dict(m) for m in column] for column in columns[1:])]
        talk.next_turn(columns)
        talk.width, talk.completed = width, talk.turn
        titles = self.labels(width, ["", chosen or "", *(more or [])], language(request))
        return (*self.in_boxes(talk, titles), gr.Dropdown(visible=bool(comparing)))

    def refresh(self, request: gr.Request):
        adapters, models = self.panel.refresh(request)
        names = gr.Dropdown(choices=self.panel.adapters())
        return adapters, models, names, names, gr.Dropdown(choices=self.history.choices())

    def opened(self, session: Session, lang: str) -> list:
        """A session in the Chatbots."""
        return [
            *self.in_boxes(session, self.labels(session.width, session.models, lang)),
            "",
            session.width > 1,
            gr.Dropdown(value=session.models[2:], visible=session.width > 1),
        ]

    def comeback(self, id_, request: gr.Request):
        """A reloaded page: the conversation that was open."""
        try:
            session = Session.opened(conversations.load(people.own(self.workspace), id_)) if id_ else Session()
        except UserError:
            session = Session()
        return [session, *self.opened(session, language(request))]

    def choose(self, number: int):
        def chosen(talk, request: gr.Request, event: gr.SelectData):
            index = event.index if isinstance(event.index, int) else event.index[0]
            turn = from_bubble(talk.columns[number], index)
            if turn is None:
                return [gr.skip()] * len(self.examine.view)
            while turn < len(talk.columns[number]) - 1 and talk.columns[number][turn]["role"] == "user":
                turn += 1  # a click on a question means its answer
            talk.focus = (number, turn)
            return self.examine.look(talk, request)

        return chosen

    def branch_off(self, talk, request: gr.Request, event: gr.EventData):
        """Another token in the place of one: the answer goes on from there; the old one is kept beside it."""
        try:
            if int(event._data["turn"]) != talk.turn:  # a click on what was shown before
                return talk.shown()
            branches.branch(talk, int(event._data["place"]), int(event._data["alternative"]))
        except branches.Impossible:
            return talk.shown(note(say("branch_impossible", language(request)), "bad"))
        except (LookupError, TypeError, ValueError):
            pass
        return talk.shown()

    def switch_branch(self, number, talk, request: gr.Request):
        if number is None or not branches.switch(talk, int(number)):
            return [gr.skip()] * (len(self.shown_in) + len(self.examine.view))
        self.history.keep(talk)
        return (*talk.shown(), *self.examine.look(talk, request))

    @people.needs("train")
    def cast(self, best, talk, request: gr.Request):
        """Keep which column's answer was best."""
        lang = language(request)
        try:
            if not best:
                raise UserError(say("vote_which", lang))
            answers = self.answers_of(talk)
            if best not in answers:
                raise UserError(say("vote_which", lang))
            space = people.own(self.workspace)
            count = corrections.vote(space, sent(talk.left[:-1]), answers, best)
        except UserError as error:
            return note(told(error, lang), "bad")
        return note(say("voted", lang, count=count, dataset=corrections.own(space, corrections.PAIRS)))

    def rename(self, comparing, chosen, more, talk, request: gr.Request):
        """Another adapter is chosen: the column says which one will answer."""
        if not comparing:
            return [gr.skip()] * MAX_COLUMNS
        titles = self.labels(talk.width, ["", chosen or "", *(more or [])], language(request))
        return [gr.Chatbot(label=title) for title in titles]

    def remember(self, talk):
        """Keep what was just done, and let the browser know which conversation is open."""
        self.history.keep(talk)
        return talk.id if any(talk.columns) else ""

    def begun(self, talk):
        """`remember`; an answer can be stopped now, and the conversation be cleared."""
        return self.remember(talk), gr.Button(interactive=True), gr.Button(visible=False), gr.Button(interactive=True)

    @property
    def after_view(self) -> list:
        """What `after` shows."""
        buttons = [self.more, self.halt, self.again, self.clear]
        return [self.used, self.last, self.best, self.vote, *buttons, *self.examine.view]

    def then_answer(self, event) -> None:
        """After what the user did: the answer, then what follows from it."""
        begun = event.then(self.begun, self.talk, [self.last, self.halt, self.more, self.clear], **QUIET)
        answered = begun.then(self.respond, self.inputs, self.shown_in, **self.streaming)
        kept = answered.then(branches.settle, self.talk, None, **QUIET)
        seen = kept.then(
            self.after,
            [self.talk, self.price_in, self.price_out],
            self.after_view,
            **QUIET,
        )
        seen.then(
            self.examine.run_every,
            [self.examine.every, self.talk, *self.panel.where, self.examine.samples, *self.sampling],
            self.examine.view,
            show_progress="hidden",
            show_progress_on=[],
            api_visibility="private",
        )

    def _wire(self) -> Tab:
        self.last.change(
            None,
            self.last,
            None,
            js="(id) => { sessionStorage.setItem('workbench_conversation', id || ''); }",
            api_visibility="private",
        )
        compare_in = [self.compare, self.panel.adapter, self.others, self.talk]
        gr.on(
            [self.compare.input, self.others.input], self.set_compare, compare_in, [*self.boxes, self.others], **LATEST
        )
        self.panel.adapter.change(self.rename, compare_in, self.boxes, **QUIET)
        self.inputs = [
            self.talk,
            self.panel.adapter,
            self.compare,
            self.others,
            self.tools,
            *self.panel.where,
            *self.sampling,
        ]
        # several answers of one tab may overlap for a moment: a new question starts while the last answer is ending
        self.streaming = {
            "show_progress": "hidden",
            "show_progress_on": [],
            "api_visibility": "private",
            "concurrency_limit": 16,
            "trigger_mode": "multiple",
        }
        looking = self.examine.look, self.talk, self.examine.view
        self.then_answer(
            gr.on(
                [self.box.submit, self.send.click], self.ask, [self.box, self.talk], [self.box, *self.shown_in], **QUIET
            )
        )
        self.then_answer(
            gr.on([self.again.click, self.left.retry], self.drop_answer, self.talk, self.shown_in, **QUIET)
        )
        self.then_answer(self.more.click(self.write_on, self.talk, self.shown_in, **QUIET))
        self.then_answer(self.left.edit(self.edit, self.talk, self.shown_in, **QUIET))
        self.then_answer(self.examine.confidence.click(self.branch_off, self.talk, self.shown_in, **QUIET))
        self.examine.branch.input(
            self.switch_branch, [self.examine.branch, self.talk], [*self.shown_in, *self.examine.view], **LATEST
        )
        self.halt.click(self.hold, self.talk, self.shown_in, **QUIET)
        gr.on([self.clear.click, self.left.clear], self.wipe, self.talk, self.shown_in, **QUIET).then(
            self.after,
            [self.talk, self.price_in, self.price_out],
            self.after_view,
            **QUIET,
        )
        self.vote.click(self.cast, [self.best, self.talk], self.problem, **QUIET)
        for number, chatbot in enumerate(self.boxes):
            chatbot.select(self.choose(number), self.talk, self.examine.view, **EACH)
        self.examine.wire(self.talk, self.sampling, self.panel.adapter)
        self.history.wire(
            self.talk,
            self.opened,
            [*self.shown_in, self.compare, self.others],
            lambda event: event.then(*looking, **QUIET).then(self.remember, self.talk, self.last, **QUIET),
        )
        arriving = Event(
            self.refresh, None, [self.panel.adapter, self.panel.model, self.others, self.panel.pick, self.history.list]
        )
        coming_back = Event(
            self.comeback, self.last, [self.talk, *self.shown_in, self.compare, self.others], js=_LAST_CONVERSATION
        )
        return Tab(
            on_load=[(arriving,), (coming_back, Event(*looking))],
            on_select=[(arriving,), (self.panel.costs.expecting,)],
            timers=[self.panel.timer],
        )
