"""An answer's text split into what is said, what is thought, and the tools that are called.

The work is done by transformers' ResponseParser, on the model's own `response_template` where its tokenizer brings one,
on TRL's for gpt-oss' channels, else on one made from what the chat template shows of thoughts and calls.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

from workbench.engine.call_forms import NAME, CallForm
from workbench.engine.call_reading import calls_fields, python_calls
from workbench.engine.call_stream import CallStream
from workbench.engine.thoughts import thoughts_of

_NO_ANCHOR = "\x00"
_REASONING = ("reasoning_content", "thinking", "reasoning")
_HERMES = CallForm("", f'<tool_call>\n{{"name": "{NAME}", "arguments": ', "}\n</tool_call>", "", "\n")


@dataclass
class Part:
    """A piece of an answer: text in `content` or `reasoning`, or a `tool_call` with JSON text as its arguments.

    An `open` call is not whole: more of its arguments come as `arguments`, and `call_end` after the last of them (not
    where they turn out not to be JSON).
    """

    kind: str
    text: str = ""
    name: str = ""
    open: bool = False


def response_template(template: str, own: dict | None, form: CallForm | None, names: list[str]) -> dict | None:
    """How a model writes thoughts and tool calls, or None when it writes plain text only.

    Args:
        template: the text of its chat template.
        own: the `response_template` of its tokenizer.
        form: how it writes calls, if that is known.
        names: the functions that it may call; none where no tools are given.
    """
    if own is not None:
        return own
    if "<|channel|>analysis<|message|>" in template:
        from trl.chat_template_utils import gptoss_template

        return gptoss_template
    fields: dict[str, dict] = {"content": {"content": "text", "content_args": {"strip": False}}}
    layout = thoughts_of(template)
    if layout:
        fields["reasoning_content"] = {"open": layout.open.strip(), "close": layout.close.strip(), "content": "text"}
    if names and form is None and "<tool_call>" in template:
        form = _HERMES
    if names and form:
        fields |= calls_fields(form, names)
    if len(fields) == 1:
        return None
    # no anchor: the parser sees only what the model writes, never the prompt
    return {"defaults": {"role": "assistant"}, "start_anchor": _NO_ANCHOR, "fields": fields}


@lru_cache(maxsize=1)
def _parser_class():
    """transformers' parser, which leaves a call that is none in the text as it was written."""
    from transformers.utils.chat_parsing import ResponseParser

    class Forgiving(ResponseParser):
        def _open_explicit(self, events, field, match):
            super()._open_explicit(events, field, match)
            self._region = match.start(), match.end()
            events[-1]["captures"] = self._captures

        def _close_current(self, events):
            if self._current != "tool_calls" or not self._opened:
                super()._close_current(events)
                return
            start, body = self._region
            closing, events_before = self._spec.fields["tool_calls"].close_re, len(events)
            try:
                open_ended = closing is None or closing.pattern.startswith("(?=")
                if not open_ended and not closing.search(self._buffer, body):
                    raise ValueError("cut off")
                super()._close_current(events)
                if isinstance(events[-1].get("value"), str):
                    events[-1]["value"] = python_calls(events[-1]["value"], list(self._tool_params))
                if not all(_is_call(call) for call in _listed(events[-1].get("value"))):
                    raise ValueError("no call")
            except (ValueError, KeyError, TypeError, RecursionError):
                del events[events_before:]
                text = self._buffer[start : self._pos]
                events.append({"type": "region_chunk", "field": "content", "text": text, "dirty": False, "call": True})
                self._reset_to_implicit()

    return Forgiving


def _listed(value) -> list:
    return value if isinstance(value, list) else [value]


def _is_call(value) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])


class Reply:
    """Takes an answer's text piece by piece and gives its parts. With no template everything is content.

    `thinking`: the prompt has opened a thought, as DeepSeek-R1's and Qwen3's do. `piecewise`: calls whose arguments are
    JSON come as they are written, by forms of ours; otherwise every call comes whole.
    """

    def __init__(
        self,
        template: dict | None,
        prompt: str,
        tools: list[dict] | None,
        thinking: bool = False,
        piecewise: bool = False,
    ):
        self._parser, self.calls = None, 0
        self._stream: CallStream | None = None
        self._sink: list[Part] = []
        self._streamed: dict | None = None  # the field of calls that come piecewise
        self._said, self._unsaid = False, ""  # of an answer of which nothing has come out yet
        if template is not None:
            self._own = template.get("start_anchor") != _NO_ANCHOR
            self._parser = _parser_class()(template, prefix=prompt if self._own else "", tools=tools)
            field = template["fields"].get("tool_calls") or {}
            if piecewise and not self._own and field.get("content") == "json" and "content_args" not in field:
                self._streamed = field
            opening = template["fields"].get("reasoning_content", {}).get("open")
            if thinking and not self._own and opening:
                self._parser.feed(opening)

    def add(self, text: str) -> list[Part]:
        if self._parser is None:
            return [Part("content", text)] if text else []
        self._unsaid += text
        try:
            return self._parts(self._parser.feed(text))
        except (ValueError, KeyError):  # a field of the model's own template that is not as it should be
            self._parser = None
            return [Part("content", self._unsaid or text)]

    def rest(self, end: str = "") -> list[Part]:
        """What was held back, at the end of the answer. `end`: the token that ended it."""
        if self._parser is None:
            return []
        events = []
        if self._own and end:  # some templates know the end of a call by the token that ends the answer
            events = self._parser.feed(end)
        try:
            events += self._parser.finalize()[1]
        except (ValueError, KeyError):  # a field that the model's own template insists on is missing
            pass
        parts = self._parts(events)
        # an answer without any of the marks of its template (gpt-oss' channels)
        return [Part("content", self._unsaid)] if self._unsaid.strip() and self._own and not parts else parts

    def _parts(self, events: list[dict]) -> list[Part]:
        parts = []
        for event in events:
            if self._streamed and event.get("field") == "tool_calls" and event["type"] != "region_close":
                self._call_piece(event, parts)
            elif event.get("call") and self._stream and self._stream.begun:
                self._sink = parts
                self._stream.cut()  # what has been sent of it cannot be taken back
                self._stream = None
            elif event["type"] == "region_chunk" and not event.get("dirty") and event.get("text"):
                if event.get("field") == "content":
                    parts.append(Part("content", event["text"]))
                elif event.get("field") in _REASONING:
                    parts.append(Part("reasoning", event["text"]))
            elif event["type"] == "region_close" and event.get("field") == "tool_calls":
                sent = self._stream.begun if self._stream else ()
                self._stream = None
                for number, call in enumerate(_listed(event["value"])):
                    if number in sent:
                        continue
                    given = call["function"].get("arguments") or {}
                    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
                    parts.append(Part("tool_call", text, call["function"]["name"]))
                    self.calls += 1
        if parts:
            self._said, self._unsaid = True, ""
        elif self._said:
            self._unsaid = ""
        return parts

    def _call_piece(self, event: dict, parts: list[Part]) -> None:
        """Text of a region of calls, or its beginning."""
        if event["type"] == "region_open":
            self._sink = parts
            self._stream = CallStream(self._streamed, event.get("captures", {}), self._schema, self._cast, self._say)
        elif self._stream:
            self._sink = parts
            self._stream.add(event["text"])

    def _say(self, what: str, text: str) -> None:
        if what == "begin":
            self._sink.append(Part("tool_call", "", text, open=True))
            self.calls += 1
        elif what == "end":
            self._sink.append(Part("call_end"))
        elif self._sink and self._sink[-1].kind == "arguments":
            self._sink[-1].text += text
        else:
            self._sink.append(Part("arguments", text))

    def _schema(self, name: str, key: str) -> object:
        return self._parser._tool_params.get(name, {}).get(key)

    def _cast(self, name: str, key: str, value: object) -> object:
        call = {"function": {"name": name, "arguments": {key: value}}}
        return self._parser._coerce_tool_calls(call)["function"]["arguments"][key]
