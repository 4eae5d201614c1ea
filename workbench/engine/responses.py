"""OpenAI's answers from a job's tokens: whole or streamed, chat or plain, each choice with its parts and
log-probabilities."""

import json
import uuid
from collections.abc import Iterator

from workbench.engine.backend import Job, Token, TokenInfo
from workbench.engine.reply_parser import Part, Reply


def logprob_entry(info: TokenInfo) -> dict:
    """One entry of `logprobs.content`. `token_id`, `rank` and `entropy` (nats) are ours."""
    return {
        "token": info.bytes.decode(errors="replace"),
        "logprob": info.logprob,
        "bytes": list(info.bytes),
        "top_logprobs": [
            {
                "token": raw.decode(errors="replace"),
                "logprob": logprob,
                "bytes": list(raw),
                "token_id": id_,
                "ends": ends,
            }
            for id_, raw, logprob, ends in info.top
        ],
        "text": info.text,
        "token_id": info.id,
        "rank": info.rank,
        "entropy": info.entropy,
    }


def usage(job: Job) -> dict:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "total_tokens": job.prompt_tokens + job.completion_tokens,
    }


class Chat:
    """`/v1/chat/completions`."""

    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, job: Job, head: dict):
        self.job, self.head = job, head
        self.with_logprobs = job.sampling.logprobs is not None
        self._replies: dict[int, Reply] = {}

    def _parts(self, token: Token) -> list[Part]:
        reply = self._replies.get(token.index)
        if reply is None:  # made with the first token: by then the decoder has rendered the prompt
            reply = self._replies[token.index] = Reply(self.job.response_template, self.job.prompt_text, self.job.tools)
        parts = reply.add(token.text)
        return parts + reply.rest() if token.finish else parts

    def _finish(self, token: Token) -> str | None:
        called = token.finish == "stop" and self._replies[token.index].calls
        return "tool_calls" if called else token.finish

    def chunks(self, token: Token) -> Iterator[dict]:
        """The chunks of a stream that this token makes."""
        logprobs = {"content": [logprob_entry(info) for info in token.infos], "refusal": None} if token.infos else None
        first = token.index not in self._replies
        parts = self._parts(token)
        if first:
            yield self._chunk(token.index, {"role": "assistant", "content": ""})
        for number, part in enumerate(parts):
            yield self._chunk(token.index, self._delta(token.index, part), logprobs=None if number else logprobs)
        if logprobs and not parts:
            yield self._chunk(token.index, {}, logprobs=logprobs)
        if token.finish:
            yield self._chunk(token.index, {}, self._finish(token))

    def _delta(self, index: int, part: Part) -> dict:
        if part.kind == "content":
            return {"content": part.text}
        if part.kind == "reasoning":
            return {"reasoning_content": part.text}
        call = {"index": self._replies[index].calls - 1, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
        return {"tool_calls": [call | {"function": {"name": part.name, "arguments": part.text}}]}

    def _chunk(self, index: int, delta: dict, finish: str | None = None, logprobs: dict | None = None) -> dict:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**self.head, "object": f"{self.kind}.chunk", "choices": [choice]}

    def choice(self, index: int, tokens: list[Token]) -> dict:
        """One whole choice."""
        content, reasoning, calls = [], [], []
        for token in tokens:
            for part in self._parts(token):
                if part.kind == "content":
                    content.append(part.text)
                elif part.kind == "reasoning":
                    reasoning.append(part.text)
                else:
                    function = {"name": part.name, "arguments": part.text}
                    calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        message = {"role": "assistant", "content": "".join(content) if content or not calls else None, "refusal": None}
        if reasoning:
            message["reasoning_content"] = "".join(reasoning)
        if calls:
            message["tool_calls"] = calls
        entries = [logprob_entry(info) for token in tokens for info in token.infos]
        logprobs = {"content": entries, "refusal": None} if self.with_logprobs else None
        return {"index": index, "message": message, "finish_reason": self._finish(tokens[-1]), "logprobs": logprobs}


class Plain:
    """`/v1/completions`."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, job: Job, head: dict, echo: bool = False):
        self.job, self.head, self.echo = job, head, echo
        self.with_logprobs = job.sampling.logprobs is not None
        self._length: dict[int, int] = {}

    def _logprobs(self, index: int, infos: list[TokenInfo]) -> dict | None:
        if not self.with_logprobs:
            return None
        out = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for info in infos:
            offset = self._length.get(index, len(self.job.prompt_text) if self.echo else 0)
            out["tokens"].append(info.bytes.decode(errors="replace"))
            out["token_logprobs"].append(info.logprob)
            out["top_logprobs"].append({raw.decode(errors="replace"): logprob for _, raw, logprob, _ in info.top})
            out["text_offset"].append(offset)
            self._length[index] = offset + len(info.text)
        return out

    def chunks(self, token: Token) -> Iterator[dict]:
        first = self.echo and token.index not in self._length
        self._length.setdefault(token.index, len(self.job.prompt_text) if self.echo else 0)
        text = (self.job.prompt_text if first else "") + token.text
        if text or token.finish or token.infos:
            choice = {
                "index": token.index,
                "text": text,
                "finish_reason": token.finish,
                "logprobs": self._logprobs(token.index, token.infos),
            }
            yield {**self.head, "object": self.kind, "choices": [choice]}

    def choice(self, index: int, tokens: list[Token]) -> dict:
        text = (self.job.prompt_text if self.echo else "") + "".join(token.text for token in tokens)
        logprobs = self._logprobs(index, [info for token in tokens for info in token.infos])
        return {"index": index, "text": text, "finish_reason": tokens[-1].finish, "logprobs": logprobs}


def whole(answer: Chat | Plain, tokens: list[Token]) -> dict:
    """The body of an answer that is not streamed."""
    rows: dict[int, list[Token]] = {}
    for token in tokens:
        rows.setdefault(token.index, []).append(token)
    choices = [answer.choice(index, rows[index]) for index in sorted(rows)]
    return {**answer.head, "object": answer.kind, "choices": choices, "usage": usage(answer.job)}


def event(body: dict) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
