"""A dataset from a document: a model is asked for questions and answers about its passages, and each pair is looked at
before it is kept."""

from collections import deque
from dataclasses import dataclass, field

import gradio as gr

from workbench.data import pairs
from workbench.engine.client import complete
from workbench.errors import UserError
from workbench.ui.catalogue import say
from workbench.ui.notes import QUIET, told
from workbench.ui.people import needs
from workbench.ui.strings import language, t
from workbench.ui.tabs.data.shared import Data, stopped, user_of
from workbench.ui.tabs.data.view import bar_html, note_safe
from workbench.ui.token_view import safe

MOST_WAITING = 500  # pairs that nobody has looked at yet
MAX_TOKENS = 1024
_TEMPERATURE = 0.3


@dataclass(eq=False)
class Review:
    """Pairs of one tab that wait to be looked at; the first is shown."""

    waiting: deque = field(default_factory=deque)  # (dataset that it is about, passage, question, answer)
    kept: int = 0
    left: int = 0

    def __deepcopy__(self, memo) -> "Review":
        return Review()  # a new tab begins anew


class Pairs:
    """Asking, and the pair that is looked at."""

    def __init__(self, data: Data):
        self.data = data

    def build(self) -> "Pairs":
        """Lay this part out; `wire` follows when the Chat tab is there, whose model is asked."""
        gr.HTML(t("pairs_info"), elem_classes="wb-sub")
        with gr.Row(equal_height=True):
            limits = {"precision": 0, "min_width": 110}
            self.length = gr.Number(
                1200,
                minimum=pairs.SHORTEST,
                maximum=pairs.LONGEST,
                label=t("pairs_length"),
                elem_id="pairs-length",
                **limits,
            )
            self.count = gr.Number(
                2, minimum=1, maximum=pairs.MOST_PAIRS, label=t("pairs_count"), elem_id="pairs-count", **limits
            )
            self.first = gr.Number(1, minimum=1, label=t("pairs_first"), elem_id="pairs-first", **limits)
            self.most = gr.Number(
                10, minimum=1, maximum=pairs.MOST_PASSAGES, label=t("pairs_most"), elem_id="pairs-most", **limits
            )
            self.ask = gr.Button(t("pairs_ask"), variant="primary", elem_id="pairs-ask", scale=2, min_width=140)
            self.halt = gr.Button(t("stop"), variant="stop", elem_id="pairs-stop", scale=1, min_width=80)
        self.asked = gr.HTML(elem_id="pairs-asked")
        self.counted = gr.HTML(elem_id="pairs-counted")
        self.passage = gr.HTML(elem_id="pairs-passage")
        self.question = gr.Textbox(label=t("pairs_question"), lines=2, elem_id="pairs-question")
        self.answer = gr.Textbox(label=t("pairs_answer"), lines=4, max_lines=12, elem_id="pairs-answer")
        with gr.Row():
            self.keep = gr.Button(t("pairs_keep"), variant="primary", elem_id="pairs-keep", interactive=False)
            self.leave = gr.Button(t("pairs_leave"), elem_id="pairs-leave", interactive=False)
        self.message = gr.HTML(elem_id="pairs-message")
        self.review = gr.State(Review())
        return self

    @property
    def shown_in(self) -> list:
        """What `shown` fills."""
        return [self.counted, self.passage, self.question, self.answer, self.keep, self.leave]

    def shown(self, review: Review, lang: str) -> list:
        """The pair to be looked at, and how many wait."""
        if not review.waiting:
            off = gr.update(interactive=False)
            return [self.counts(review, lang), "", "", "", off, off]
        _, passage, question, answer = review.waiting[0]
        lines = safe(passage).replace("\n", "<br>")
        card = f"<div class='wb-card'><div class='wb-turn'>{lines}</div></div>"
        on = gr.update(interactive=True)
        return [self.counts(review, lang), card, question, answer, on, on]

    def counts(self, review: Review, lang: str) -> str:
        """How many pairs wait, were kept and left out; nothing before there was one."""
        if not review.waiting and not review.kept + review.left:
            return ""
        words = say("pairs_waiting", lang, count=len(review.waiting), kept=review.kept, left=review.left)
        return f"<div class='wb-sub'>{safe(words)}</div>"

    def asking(self, panel):
        """The handler that asks, with the Chat tab's panel."""

        @needs("train")
        async def ask(name, length, count, first, most, review: Review, request: gr.Request, *rest):
            lang, where, contents = language(request), rest[:4], rest[4:]
            none = [gr.skip()] * len(self.shown_in)
            if not name:
                yield note_safe(say("data_none", lang), "warn"), *none
                return
            try:
                self.data.workspace.check_writable()
                backend, model = panel.backend(*where, lang)
                wanted = {"most": int(length or 0), "first": int(first or 1), "count": int(most or 1)}
                args = {"dataset": name, "config": self.data.options(contents)} | wanted
                found = await self.data.worker.change("passages", user=user_of(request), **args)
                if not found:
                    raise UserError(say("pairs_no_passage", lang, first=wanted["first"]))
                got = failed = 0
                for number, passage in enumerate(found, 1):
                    words = say("pairs_asking", lang, number=number, total=len(found), got=got)
                    yield bar_html(words, (number - 1) / len(found)), *none
                    fresh = await self._pairs(backend, model, passage, max(1, min(pairs.MOST_PAIRS, int(count or 1))))
                    got, failed = got + len(fresh), failed + (not fresh)
                    empty = not review.waiting
                    review.waiting.extend((name, passage, *pair) for pair in fresh)
                    if fresh:
                        shown = self.shown(review, lang)
                        yield gr.skip(), *(shown if empty else [shown[0], *none[1:]])
                    if len(review.waiting) >= MOST_WAITING:
                        break
                done = say("pairs_done", lang, got=got, passages=number)
                done += " " + say("pairs_none_of", lang, count=failed) if failed else ""
                yield note_safe(done, "warn" if failed else "ok"), *none
            except UserError as error:
                yield note_safe(told(error, lang), "bad"), *none

        return ask

    async def _pairs(self, backend, model: str, passage: str, count: int) -> list[tuple[str, str]]:
        """What a model says of one passage; our own engine writes nothing but the list."""
        schema = pairs.SCHEMA | {"maxItems": count}
        wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "pairs", "schema": schema}}}
        settings = {"temperature": _TEMPERATURE, "max_tokens": MAX_TOKENS} | (wanted if backend.own else {})
        (answer,) = await complete(backend, model, pairs.request(passage, count), **settings)
        return pairs.found_in(answer)[:count]

    @needs("train")
    async def keep_it(self, review: Review, question, answer, request: gr.Request, *contents):
        """Put the pair, as it stands now, into the dataset; the next one is shown."""
        lang = language(request)
        if not review.waiting:
            return gr.skip(), *self.shown(review, lang), gr.skip()
        looked_at = review.waiting[0]
        try:
            args = {"dataset": looked_at[0], "config": self.data.options(contents)}
            pair = {"question": question or "", "answer": answer or ""}
            name, rows = await self.data.worker.change("keep_pair", user=user_of(request), **args, **pair)
            choices = gr.update(choices=self.data.choices(contents))
        except UserError as error:
            return note_safe(told(error, lang), "bad"), *[gr.skip()] * (len(self.shown_in) + 1)
        if review.waiting and review.waiting[0] is looked_at:
            review.waiting.popleft()
            review.kept += 1
        return note_safe(say("pairs_kept", lang, name=name, rows=rows), "ok"), *self.shown(review, lang), choices

    @needs("train")
    def leave_it(self, review: Review, request: gr.Request):
        """The next pair, without this one."""
        if review.waiting:
            review.waiting.popleft()
            review.left += 1
        return "", *self.shown(review, language(request))

    def wire(self, panel) -> None:
        """`panel`: the Chat tab's, which says what is asked."""
        data, contents = self.data, self.data.form.components
        asked = [data.chosen, self.length, self.count, self.first, self.most, self.review, *panel.where, *contents]
        going = self.ask.click(
            self.asking(panel),
            asked,
            [self.asked, *self.shown_in],
            show_progress="hidden",
            show_progress_on=[],
            api_visibility="private",
            concurrency_limit=4,
        )
        self.halt.click(stopped, None, self.asked, cancels=[going], **QUIET)
        self.keep.click(
            self.keep_it,
            [self.review, self.question, self.answer, *contents],
            [self.message, *self.shown_in, data.chosen],
            show_progress="hidden",
            show_progress_on=[],
            api_visibility="private",
            concurrency_limit=None,
        )
        self.leave.click(self.leave_it, self.review, [self.message, *self.shown_in], **QUIET)
