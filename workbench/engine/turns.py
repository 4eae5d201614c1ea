"""Answers of the Responses API: items that a stream brings piece by piece, and the whole at its end."""

import json
import uuid

from workbench.engine.backend import Job, Token
from workbench.engine.logprobs import logprob_entry
from workbench.engine.responses import Chat, usage


class Turn:
    """The answer to one request. `shown`: the fields of the response object that repeat the request; `piecewise`: calls
    may come in pieces, for a stream."""

    last = ""  # a stream ends with `response.completed`

    def __init__(self, job: Job, shown: dict, piecewise: bool = False):
        self._chat, self._job, self._shown = Chat([job], {}, piecewise=piecewise), job, shown
        self._with_logprobs = job.sampling.logprobs is not None
        self._number, self._begun = 0, False
        self._thought = 0  # tokens of thoughts
        self.output: list[dict] = []
        self._open = ""  # the kind of part that is being written
        self._finish: str | None = None

    def done(self) -> bool:
        return self._chat.done()

    def encode(self, piece: dict) -> str:
        if "error" in piece and "type" not in piece:  # an error of the API, in the words of a stream
            error = piece["error"]
            piece = {"type": "error", **{name: error[name] for name in ("code", "message", "param")}}
            piece["sequence_number"] = self._number
        return f"event: {piece['type']}\ndata: {json.dumps(piece, ensure_ascii=False)}\n\n"

    def take(self, token: Token) -> list[dict]:
        events = []
        if not self._begun:
            self._begun = True
            events += [
                self._event(f"response.{name}", response=self._response()) for name in ("created", "in_progress")
            ]
        entries = [logprob_entry(info) for info in token.infos]
        parts = self._chat.parts(token)
        self._thought += any(part.kind == "reasoning" for part in parts)
        for part in parts:
            if part.kind == "call_end":
                continue
            if (part.kind != self._open and part.kind != "arguments") or part.kind == "tool_call":
                events += self._close()
                events += self._begin(part.kind)
            item = self.output[-1]
            place = {"item_id": item["id"], "output_index": len(self.output) - 1}
            if part.kind == "content":
                item["content"][0]["text"] += part.text
                item["content"][0]["logprobs"] += entries
                delta = {"delta": part.text, "content_index": 0, "logprobs": entries}
                events.append(self._event("response.output_text.delta", **place, **delta))
                entries = []
            elif part.kind == "reasoning":
                item["content"][0]["text"] += part.text
                delta = {"delta": part.text, "content_index": 0}
                events.append(self._event("response.reasoning_text.delta", **place, **delta))
            elif part.kind == "arguments":
                item["arguments"] += part.text
                events.append(self._event("response.function_call_arguments.delta", **place, delta=part.text))
            else:
                call = self._chat.choices[token.index].calls[
                    sum(one["type"] == "function_call" for one in self.output) - 1
                ]
                item |= {"call_id": call["id"], "name": part.name}
                events.append(self._event("response.output_item.added", output_index=place["output_index"], item=item))
                item["arguments"] = part.text
                if not part.open:
                    events.append(self._event("response.function_call_arguments.delta", **place, delta=part.text))
        self._finish = self._chat.choices[token.index].finish
        return events

    def closing(self) -> list[dict]:
        events = self._close()
        response = self._response()
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def body(self) -> dict:
        self._close()
        return self._response()

    def message(self) -> dict:
        """The answer as a message of a chat, for the turn that follows."""
        choice = self._chat.choices.get(0)
        if choice is None:
            return {"role": "assistant", "content": ""}
        message: dict = {"role": "assistant", "content": "".join(choice.content)}
        if choice.reasoning:
            message["reasoning_content"] = "".join(choice.reasoning)
        if choice.calls:
            message["tool_calls"] = choice.calls
        return message

    def _event(self, kind: str, **fields) -> dict:
        # a copy: what an event shows is changed by those after it
        event = json.loads(json.dumps({"type": kind, "sequence_number": self._number, **fields}))
        self._number += 1
        return event

    def _begin(self, kind: str) -> list[dict]:
        """Open a new item; a call is announced when its name is there."""
        self._open = kind
        if kind == "tool_call":
            self.output.append({"type": "function_call", "id": _id("fc"), "status": "in_progress", "arguments": ""})
            return []
        if kind == "content":
            item = {"type": "message", "id": _id("msg"), "status": "in_progress", "role": "assistant", "content": []}
            part: dict = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"type": "reasoning", "id": _id("rs"), "status": "in_progress", "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        self.output.append(item)
        place = {"output_index": len(self.output) - 1}
        events = [self._event("response.output_item.added", **place, item=item)]
        item["content"] = [part]
        where = {"item_id": item["id"], **place, "content_index": 0}
        return [*events, self._event("response.content_part.added", **where, part=part)]

    def _close(self) -> list[dict]:
        if not self._open:
            return []
        kind, self._open = self._open, ""
        item = self.output[-1]
        item["status"] = "incomplete" if self._finish == "length" else "completed"
        place = {"item_id": item["id"], "output_index": len(self.output) - 1}
        if kind == "tool_call":
            arguments = {"arguments": item["arguments"], "name": item["name"]}
            events = [self._event("response.function_call_arguments.done", **place, **arguments)]
        else:
            part = item["content"][0]
            name = "output_text" if kind == "content" else "reasoning_text"
            more = {"logprobs": part["logprobs"]} if kind == "content" else {}
            done = {**place, "content_index": 0, "text": part["text"], **more}
            events = [
                self._event(f"response.{name}.done", **done),
                self._event("response.content_part.done", **place, content_index=0, part=part),
            ]
        return [*events, self._event("response.output_item.done", output_index=place["output_index"], item=item)]

    def _response(self) -> dict:
        status = {None: "in_progress", "length": "incomplete"}.get(self._finish, "completed")
        used = usage([self._job])
        return {
            **self._shown,
            "object": "response",
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self.output,
            "usage": {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": self._thought},
                "total_tokens": used["total_tokens"],
            }
            if self._finish
            else None,
        }


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
