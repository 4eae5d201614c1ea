"""Under the conversation: a closer look at one answer. Token confidence with branches, consistency, what the adapter
changed, the contradiction probe, and the correction."""

import asyncio
import random

import gradio as gr

from workbench.chat import corrections
from workbench.chat.session import Sampling, Session, asked_to_think, sent
from workbench.engine.client import complete, score
from workbench.errors import UserError
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.notes import LATEST, QUIET, note, told
from workbench.ui.strings import language, t
from workbench.ui.tabs.chat.engine_panel import EnginePanel
from workbench.ui.token_view import TOKENS_JS, confidence_html, consistency_html, contradiction_html, difference_html
from workbench.uncertainty.consistency import SAMPLES, TEMPERATURE, check
from workbench.uncertainty.contradiction import TOOL_CALLS, compare, reword, wordings

_BUSY = {"show_progress": "minimal", "api_visibility": "private", "concurrency_limit": 8}


def _system(settings: Sampling) -> list[dict]:
    return [{"role": "system", "content": settings.system}] if (settings.system or "").strip() else []


def question_of(history: list[dict]) -> str:
    """The last thing that was asked."""
    return next((m["content"] for m in reversed(history) if m["role"] == "user"), "")


class Examine:
    """The panel; `chat_tab` gives it the conversation, the engine's panel and the generation settings."""

    def __init__(self, panel: EnginePanel, keep):
        """`keep(session)` saves the conversation with what was found out."""
        self.panel, self.keep = panel, keep

    def build(self) -> None:
        """Lay the panel out."""
        with gr.Row():
            self.every = gr.Checkbox(label=t("check_every"), value=False, elem_id="check-every", scale=2)
            self.samples = gr.Slider(2, 16, SAMPLES, step=1, label=t("check_samples"), elem_id="check-samples", scale=2)
            self.branch = gr.Radio([], label=t("branches"), visible=False, elem_id="branches", scale=3)
        self.about = gr.HTML(elem_id="examined")
        with gr.Tabs(elem_id="examine"):
            with gr.Tab(t("confidence"), elem_id="tab-confidence"):
                self.confidence = gr.HTML(
                    html_template="<div>${value}</div>",
                    js_on_load=TOKENS_JS,
                    elem_id="confidence",
                    elem_classes="wb-look",
                )
            with gr.Tab(t("consistency"), elem_id="tab-consistency"):
                self.check = gr.Button(t("check"), size="sm", elem_id="check")
                self.consistency = gr.HTML(elem_id="consistency")
            with gr.Tab(t("difference"), elem_id="tab-difference"):
                gr.HTML(t("difference_info"), elem_classes="wb-sub")
                self.compare = gr.Button(t("difference_run"), size="sm", elem_id="difference-run")
                self.difference = gr.HTML(
                    html_template="<div>${value}</div>",
                    js_on_load=TOKENS_JS,
                    elem_id="difference",
                    elem_classes="wb-look",
                )
            with gr.Tab(t("contradiction"), elem_id="tab-contradiction"):
                self.wordings = gr.Textbox(
                    "\n".join(TOOL_CALLS), label=t("wordings"), info=t("wordings_info"), lines=6, elem_id="wordings"
                )
                with gr.Row():
                    self.reword = gr.Button(t("reword"), size="sm", elem_id="reword")
                    self.ask = gr.Button(
                        t("contradiction_run"), size="sm", variant="primary", elem_id="contradiction-run"
                    )
                self.contradiction = gr.HTML(elem_id="contradiction")
            with gr.Tab(t("correct"), elem_id="tab-correct"):
                self.pick = gr.Dropdown([], label=t("pick_sample"), elem_id="pick-sample")
                self.right = gr.Textbox(label=t("right_answer"), lines=3, elem_id="right-answer")
                with gr.Row():
                    self.save = gr.Button(t("save_correction"), variant="primary", size="sm", elem_id="save-correction")
                    self.train = gr.Button(t("train_corrections"), size="sm", elem_id="train-corrections")
                self.way = gr.Radio(
                    [(t(f"way_{way}"), way) for way in corrections.WAYS],
                    value="sft",
                    label=t("way"),
                    info=t("way_info"),
                    elem_id="corrections-way",
                )
                self.corrected = gr.HTML(elem_id="corrected")

    @property
    def view(self) -> list:
        """What shows the answer that is looked at; see `look`."""
        return [self.about, self.confidence, self.consistency, self.difference, self.branch, self.pick]

    def look(self, talk: Session, request: gr.Request):
        """Show the answer that is looked at."""
        lang, answered = language(request), talk.answer()
        if answered is None:
            return "", "", "", "", gr.Radio(visible=False), gr.Dropdown(choices=[])
        history, answer = answered
        branches = answer.get("branches") or []
        radio = gr.Radio(
            choices=[(f"{i + 1}: {(b['content'][-40:] or '…')}", i) for i, b in enumerate(branches)],
            value=answer.get("branch", 0),
            visible=len(branches) > 1,
        )
        head = say("examined", lang, model=answer.get("model") or "–", question=question_of(history)[:120])
        samples = answer.get("samples") or []
        consistency = consistency_html(check(answer["content"], question_of(history), samples), lang) if samples else ""
        difference = difference_html(*answer["difference"], lang) if answer.get("difference") else ""
        own = not answer.get("external")
        shown = (
            confidence_html(answer.get("tokens") or [], lang, branch=own, turn=talk.turn) if answer["content"] else ""
        )
        return note(head), shown, consistency, difference, radio, gr.Dropdown(choices=samples, value=None)

    async def run_check(self, talk: Session, external, url, key, remote, samples, request: gr.Request, *settings):
        """More samples as one batch, with their count while they are written; what they say of the answer."""
        lang, nothing = language(request), gr.skip()
        writing = None
        try:
            backend, base = self.panel.backend(external, url, key, remote, lang)
            history, answer = self._found(talk, lang)
            settings, tokens = Sampling(*settings), answer.get("tokens")
            limit = min(int(settings.max_tokens), max(32, 2 * len(tokens))) if tokens else int(settings.max_tokens)
            model = answer.get("model") or base
            if backend.own and model != base:
                await self.panel.adapter_name(model)
            counts = [0]
            writing = asyncio.create_task(
                complete(
                    backend,
                    model,
                    answer.get("system", []) + sent(history),
                    n=int(samples),
                    done=counts.append,
                    temperature=TEMPERATURE,
                    top_p=1.0,
                    max_tokens=limit,
                    seed=random.randrange(2**31),
                    extra_body=asked_to_think(answer.get("thinking")),
                )
            )
            shown = None
            while not writing.done():
                if counts[-1] != shown:
                    shown = counts[-1]
                    so_far = note(say("samples_so_far", lang, done=shown, total=int(samples)), "warn")
                    yield nothing, nothing, so_far, *[nothing] * 3
                await asyncio.wait([writing], timeout=0.2)
            answer["samples"] = await writing
            self.keep(talk)
        except UserError as error:
            yield nothing, nothing, note(told(error, lang), "bad"), *[nothing] * 3
            return
        finally:
            if writing:
                writing.cancel()
        yield self.look(talk, request)

    async def run_every(
        self, every, talk: Session, external, url, key, remote, samples, request: gr.Request, *settings
    ):
        """After an answer, when the box is ticked."""
        if not every or talk.answered != talk.turn or not talk.answer():
            yield [gr.skip()] * len(self.view)
            return
        talk.answered = -1  # once for each answer
        async for shown in self.run_check(talk, external, url, key, remote, samples, request, *settings):
            yield shown

    async def run_difference(self, talk: Session, chosen, request: gr.Request):
        """Score the answer once more without the adapter (or with it, when the base model wrote it)."""
        lang = language(request)
        try:
            backend, base = self.panel.backend(False, "", "", "", lang)
            history, answer = self._found(talk, lang)
            if not answer.get("tokens") or answer.get("external"):
                raise UserError(say("difference_own_only", lang))
            wrote = answer.get("model") or base
            if wrote != base:  # another base model's answer has other tokens
                await self.panel.adapter_name(wrote)
            other = base if wrote != base else await self.panel.adapter_name(chosen) if chosen else ""
            if not other:
                raise UserError(say("choose_adapter", lang))
            ids = [entry["token_id"] for entry in answer["tokens"]]
            given = answer.get("system", []) + sent(history)
            switch = asked_to_think(answer.get("thinking"))
            other_scores = await score(backend, other, given, answer["content"], ids, switch)
            both = (answer["tokens"], other_scores) if wrote != base else (other_scores, answer["tokens"])
            texts = [entry.get("text", "") for entry in answer["tokens"]]
            answer["difference"] = [
                [entry | {"text": text} for entry, text in zip(side, texts, strict=True)] for side in both
            ]
            self.keep(talk)
        except UserError as error:
            return note(told(error, lang), "bad")
        return difference_html(*answer["difference"], lang)

    async def run_contradiction(self, text, chosen, external, url, key, remote, request: gr.Request, *settings):
        """Ask every wording greedily, each in a conversation of its own; rows appear as they come."""
        lang = language(request)
        try:
            backend, model = self.panel.backend(external, url, key, remote, lang)
            if chosen and not external:
                model = await self.panel.adapter_name(chosen)
            asked, settings, answers = wordings(text), Sampling(*settings), []
            for number, wording in enumerate(asked, 1):
                messages = [*_system(settings), {"role": "user", "content": wording.question}]
                answers += await complete(
                    backend,
                    model,
                    messages,
                    temperature=0.0,
                    max_tokens=min(int(settings.max_tokens), 120),
                    seed=0,
                    extra_body=asked_to_think(settings.thinking),
                )
                yield contradiction_html(compare(asked[:number], answers), lang, len(asked))
        except UserError as error:
            yield note(told(error, lang), "bad")

    def suggest(self, talk: Session):
        """Wordings of the last question, by rule."""
        answered = talk.answer()
        question = question_of(answered[0] if answered else talk.left)
        return "\n".join(reword(question)) if question else gr.skip()

    def _found(self, talk: Session, lang: str) -> tuple[list[dict], dict]:
        answered = talk.answer()
        if talk.completed != talk.turn:
            raise UserError(say("still_writing", lang))
        if answered is None or not answered[1]["content"]:
            raise UserError(say("no_answer_yet", lang))
        return answered

    @people.needs("train")
    def correct(self, talk: Session, right, request: gr.Request):
        """Keep what the answer should have been."""
        lang = language(request)
        try:
            history, answer = self._found(talk, lang)
            model = answer.get("model", "")
            space = people.own(self.panel.workspace)
            count = corrections.correct(space, sent(history), answer["content"], right or "", model)
        except UserError as error:
            return note(told(error, lang), "bad"), gr.skip()
        name = corrections.own(space, corrections.DATASET)
        return note(say("corrected", lang, count=count, dataset=name)), ""

    def wire(self, talk, settings: list, adapter) -> None:
        """Connect what needs the conversation (a gr.State) and the generation settings."""
        where = self.panel.where
        self.check.click(self.run_check, [talk, *where, self.samples, *settings], self.view, **_BUSY)
        self.compare.click(self.run_difference, [talk, adapter], self.difference, **_BUSY)
        self.ask.click(self.run_contradiction, [self.wordings, adapter, *where, *settings], self.contradiction, **_BUSY)
        self.reword.click(self.suggest, talk, self.wordings, **QUIET)
        self.pick.input(lambda text: text or "", self.pick, self.right, **LATEST)
        self.save.click(self.correct, [talk, self.right], [self.corrected, self.right], **QUIET)
