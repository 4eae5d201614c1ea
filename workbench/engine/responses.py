"""OpenAI's answers of completions from a request's tokens: whole or streamed, chat or plain, each choice with its parts
and log-probabilities."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from workbench.engine.backend import Job, Token, TokenInfo
from workbench.engine.logprobs import Listed, logprob_entry
from workbench.engine.protocol import Generation
from workbench.engine.reply_parser import Part, Reply


def usage(jobs: list[Job]) -> dict:
    read, written = sum(job.prompt_tokens for job in jobs), sum(job.completion_tokens for job in jobs)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def head(prefix: str, model: str) -> dict:
    """The first fields of an answer."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def with_usage(body: Generation) -> bool:
    """Whether a stream ends with what was used."""
    return bool(body.stream_options and body.stream_options.include_usage)


class _Streamed:
    """What the answers of both kinds of completions share."""

    kind = ""
    last = "data: [DONE]\n\n"

    def __init__(self, jobs: list[Job], head: dict, with_usage: bool = False):
        self.jobs, self.head, self._with_usage = jobs, head, with_usage
        self.with_logprobs = bool(jobs) and jobs[0].sampling.logprobs is not None

    def done(self) -> bool:
        return False

    def closing(self) -> list[dict]:
        if not self._with_usage:
            return []
        return [{**self.head, "object": self.chunk_kind, "choices": [], "usage": usage(self.jobs)}]

    @property
    def chunk_kind(self) -> str:
        return self.kind

    def encode(self, piece: dict) -> str:
        return f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"


@dataclass
class Choice:
    """One choice of a chat: what has come so far."""

    reply: Reply
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict] = field(default_factory=list)
    infos: list[TokenInfo] = field(default_factory=list)
    finish: str | None = None


class Chat(_Streamed):
    """`/v1/chat/completions`."""

    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, jobs: list[Job], head: dict, with_usage: bool = False, piecewise: bool = False):
        """`piecewise`: calls may come in pieces, for a stream."""
        super().__init__(jobs, head, with_usage)
        self.job, self._piecewise = jobs[0], piecewise
        self.choices: dict[int, Choice] = {}

    @property
    def chunk_kind(self) -> str:
        return "chat.completion.chunk"

    def done(self) -> bool:
        """Where one call is all that is wanted, an answer ends with it."""
        ended = sum(choice.finish is not None for choice in self.choices.values())
        return ended == self.job.sampling.n

    def parts(self, token: Token) -> list[Part]:
        """The parts that a token brings, which are kept in its choice."""
        choice = self.choices.get(token.index)
        if choice is None:  # made with the first token: by then the decoder has rendered the prompt
            job = self.job
            reply = Reply(job.response_template, job.prompt_text, job.tools, job.thinking, self._piecewise)
            choice = self.choices[token.index] = Choice(reply)
        if choice.finish is not None:
            return []
        parts = choice.reply.add(token.text)
        if token.finish:
            parts = parts + choice.reply.rest(token.end)
        choice.infos += token.infos
        kept = []
        for part in parts:
            if part.kind == "tool_call" and choice.calls and not self.job.several_calls:
                choice.finish = "tool_calls"  # the first one had no end, for it was no JSON
                break
            kept.append(part)
            if part.kind == "content":
                choice.content.append(part.text)
            elif part.kind == "reasoning":
                choice.reasoning.append(part.text)
            elif part.kind == "arguments":
                choice.calls[-1]["function"]["arguments"] += part.text
            elif part.kind == "tool_call":
                function = {"name": part.name, "arguments": part.text}
                choice.calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
            whole = part.kind == "call_end" or (part.kind == "tool_call" and not part.open)
            if whole and not self.job.several_calls:
                choice.finish = "tool_calls"
                break
        if token.finish and choice.finish is None:
            choice.finish = "tool_calls" if choice.calls and token.finish == "stop" else token.finish
        return kept

    def take(self, token: Token) -> list[dict]:
        first = token.index not in self.choices
        was = None if first else self.choices[token.index].finish
        if was is not None:
            return []
        return list(self._chunks(token, first))

    def _chunks(self, token: Token, first: bool) -> Iterator[dict]:
        parts = self.parts(token)
        choice = self.choices[token.index]
        logprobs = {"content": [logprob_entry(info) for info in token.infos], "refusal": None} if token.infos else None
        if first:
            yield self._chunk(token.index, {"role": "assistant", "content": ""})
        called = len(choice.calls) - sum(part.kind == "tool_call" for part in parts)
        parts = [part for part in parts if part.kind != "call_end"]
        for number, part in enumerate(parts):
            if part.kind == "tool_call":
                function = {"name": part.name, "arguments": part.text}
                delta: dict = {"tool_calls": [{"index": called, **choice.calls[called], "function": function}]}
                called += 1
            elif part.kind == "arguments":
                delta = {"tool_calls": [{"index": called - 1, "function": {"arguments": part.text}}]}
            else:
                delta = {"content" if part.kind == "content" else "reasoning_content": part.text}
            yield self._chunk(token.index, delta, logprobs=None if number else logprobs)
        if logprobs and not parts:
            yield self._chunk(token.index, {}, logprobs=logprobs)
        if choice.finish:
            yield self._chunk(token.index, {}, choice.finish)

    def _chunk(self, index: int, delta: dict, finish: str | None = None, logprobs: dict | None = None) -> dict:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**self.head, "object": self.chunk_kind, "choices": [choice]}

    def _choice(self, index: int, choice: Choice) -> dict:
        content = "".join(choice.content)
        if choice.calls and not content.strip():
            message: dict = {"role": "assistant", "content": None, "refusal": None}
        else:
            message = {"role": "assistant", "content": content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = "".join(choice.reasoning)
        if choice.calls:
            message["tool_calls"] = choice.calls
        entries = [logprob_entry(info) for info in choice.infos]
        logprobs = {"content": entries, "refusal": None} if self.with_logprobs else None
        return {"index": index, "message": message, "finish_reason": choice.finish, "logprobs": logprobs}

    def body(self) -> dict:
        choices = [self._choice(index, self.choices[index]) for index in sorted(self.choices)]
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage(self.jobs)}


@dataclass
class Echo:
    """A prompt that an answer of plain completions begins with, with the measurements of its tokens if wanted: none of
    the first."""

    text: str = ""
    infos: list[TokenInfo | None] = field(default_factory=list)

    def texts(self) -> list[str]:
        """The text of each token; the first takes what the others leave."""
        rest = [info.text for info in self.infos if info]
        return [self.text[: max(0, len(self.text) - sum(map(len, rest)))], *rest] if self.infos else []


class Plain(_Streamed):
    """`/v1/completions`. `echoes`: one for each job where the prompt is to be repeated. Without jobs the answers are
    the prompts alone (`max_tokens: 0`)."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, jobs: list[Job], head: dict, with_usage: bool = False, echoes: list[Echo] | None = None):
        super().__init__(jobs, head, with_usage)
        self._echoes = echoes
        self._texts: dict[int, list[str]] = {}
        self._listed: dict[int, Listed] = {}
        self._logprobs: dict[int, list[dict]] = {}
        self._finish: dict[int, str] = {}

    def take(self, token: Token) -> list[dict]:
        index, first = token.index, token.index not in self._texts
        text, infos, texts = token.text, list(token.infos), [info.text for info in token.infos]
        if token.end_info:  # counted, as OpenAI does: lm-evaluation-harness takes the last entry away, whatever it is
            infos, texts = [*infos, token.end_info], [*texts, ""]
        if first:
            self._texts[index], self._logprobs[index], self._listed[index] = [], [], Listed()
            if self._echoes is not None:
                number = index // self.jobs[0].sampling.n
                echo = self._echoes[number]
                before = echo.text or self.jobs[number].prompt_text
                text, infos, texts = before + text, [*echo.infos, *infos], [*echo.texts(), *texts]
                if not echo.infos:
                    self._listed[index].offset = len(before)
        self._texts[index].append(text)
        lists = self._listed[index].lists(infos, texts) if self.with_logprobs else None
        if lists:
            self._logprobs[index].append(lists)
        if token.finish:
            self._finish[index] = token.finish
        if not (text or token.finish or token.infos):
            return []
        choice = {"index": index, "text": text, "finish_reason": token.finish, "logprobs": lists}
        return [{**self.head, "object": self.kind, "choices": [choice]}]

    def body(self) -> dict:
        choices = []
        for index in sorted(self._texts):
            lists = {name: [one for piece in self._logprobs[index] for one in piece[name]] for name in _LISTS}
            choices.append(
                {
                    "index": index,
                    "text": "".join(self._texts[index]),
                    "finish_reason": self._finish.get(index),
                    "logprobs": lists if self.with_logprobs else None,
                }
            )
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage(self.jobs)}


_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
