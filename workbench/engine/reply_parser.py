"""An answer's text split into what is said, what is thought, and the tools that are called.

The work is done by transformers' ResponseParser, on the model's own `response_template` where its tokenizer brings one,
else on the two layouts that most open models write: `<think>…</think>`, and `<tool_call>{"name": …}</tool_call>`
(Hermes, Qwen).
"""

import json
from dataclasses import dataclass

_NO_ANCHOR = "\x00"
_THINKING = {"open": "<think>", "close": "</think>", "content": "text"}
_TOOL_CALLS = {
    "open_pattern": r"\s*<tool_call>",
    "close": "</tool_call>",
    "repeats": True,
    "content": "json",
    "transform": {"type": "function", "function": "{content}"},
}


@dataclass
class Part:
    """A piece of an answer: text in `content` or `reasoning`, or one whole tool call with JSON text as `arguments`."""

    kind: str
    text: str = ""
    name: str = ""


def response_template(tokenizer, tools: bool) -> dict | None:
    """How this model writes thoughts and tool calls, or None when it writes plain text only."""
    own = getattr(tokenizer, "response_template", None)
    if own is not None:
        return own
    written = str(tokenizer.chat_template or "")
    fields = {"content": {"content": "text"}}
    if "<think>" in written:
        fields["reasoning_content"] = _THINKING
    if tools and "<tool_call>" in written:
        fields["tool_calls"] = _TOOL_CALLS
    if len(fields) == 1:
        return None
    # no anchor: the parser sees only what the model writes, never the prompt
    return {"defaults": {"role": "assistant"}, "start_anchor": _NO_ANCHOR, "fields": fields}


class Reply:
    """Takes an answer's text piece by piece and gives its parts. With no template everything is content."""

    def __init__(self, template: dict | None, prompt: str, tools: list[dict] | None):
        self._parser = None
        self.calls = 0
        self._raw, self._out = "", 0  # all text, and how much of it has gone out or belongs to whole calls
        if template is not None:
            from transformers.utils.chat_parsing import ResponseParser

            own = template.get("start_anchor") != _NO_ANCHOR
            # a template that opens the thoughts itself, as DeepSeek-R1's and Qwen3's do
            opened = prompt.rstrip().endswith("<think>") and not own
            self._parser = ResponseParser(template, prefix=prompt if own else "", tools=tools)
            if opened:
                self._parser.feed("<think>")

    def add(self, text: str) -> list[Part]:
        if self._parser is None:
            return [Part("content", text)] if text else []
        self._raw += text
        try:
            return self._parts(self._parser.feed(text))
        except ValueError:  # a call that is no JSON: what is left is shown as it was written
            self._parser = None
            return [Part("content", self._raw[self._out :])]

    def rest(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        if self._parser is None:
            return []
        try:
            _, events = self._parser.finalize()
        except ValueError:  # cut off in the middle of a call, or no JSON
            return [Part("content", self._raw[self._out :])] if self._out < len(self._raw) else []
        return self._parts(events)

    def _parts(self, events: list[dict]) -> list[Part]:
        parts = []
        for event in events:
            sent = event.get("text") if not event.get("dirty") else None
            if event["type"] == "region_close" and event.get("field") == "tool_calls":
                sent = _TOOL_CALLS["close"]
            if sent and (start_at := self._raw.find(sent, self._out)) >= 0:
                self._out = start_at + len(sent)
            if event["type"] == "region_chunk" and not event.get("dirty") and event.get("text"):
                if event.get("field") == "content":
                    parts.append(Part("content", event["text"]))
                elif event.get("field") in ("reasoning_content", "thinking", "reasoning"):
                    parts.append(Part("reasoning", event["text"]))
            elif event["type"] == "region_close" and event.get("field") == "tool_calls":
                call = (event.get("value") or {}).get("function") or {}
                if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                    parts.append(Part("content", json.dumps(event.get("value"), ensure_ascii=False)))
                    continue
                given = call.get("arguments", {})
                self.calls += 1
                parts.append(
                    Part(
                        "tool_call",
                        given if isinstance(given, str) else json.dumps(given, ensure_ascii=False),
                        call["name"],
                    )
                )
        return parts
