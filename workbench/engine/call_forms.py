"""The form in which a model writes tool calls, found by rendering calls with its chat template and looking at what it
made of them.

Two kinds of form are told apart: the arguments as one JSON object (Hermes, Llama, Mistral, DeepSeek, gpt-oss …), or
each argument by itself between marks (Qwen3-Coder, GLM-4.5, Gemma 4 …). Some templates show tools and leave calls
out; what their models write is listed here.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from workbench.engine.call_ids import named
from workbench.engine.thoughts import KNOWN
from workbench.errors import UserError

NAME, ID, NUMBER = "\x00", "\x01", "\x02"  # stand in a form for a function's name, a call's id, and its number
_NAMES = ("Zname1kW", "Zname2kW")
_KEYS = ("Zkey1kW", "Zkey2kW", "Zkey3kW")
_ARGUMENTS = {_KEYS[0]: "Zval1kW", _KEYS[1]: 7351, _KEYS[2]: "Zval2kW"}
_IDS = ("Zid1kWabc", "Zid2kWabc")  # nine letters and digits, which Mistral's templates insist on
_HANDS_OVER = ("<|call|>", "<|tool_response>")  # ends of turns with calls, which need not be the model's end tokens
_QUESTION = {"role": "user", "content": "Zq1kW"}
PROBE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Zd",
            "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in _KEYS}},
        },
    }
    for name in _NAMES
]


@dataclass(frozen=True)
class CallForm:
    """What is written around a call. `NAME`, `ID` and `NUMBER` stand in the texts for the function's name, the call's
    id, and its number in a conversation.

    An answer with calls is `begin`, a call, `separator`, the next call …, `end`; one call in a turn where `separator`
    is None. A call is `opener`, its arguments, `closer`. `bare` is a whole call without arguments.

    Where each argument stands by itself (`pairs`), the arguments are key, `middle`, value, `joint`, key …, with texts
    between `quotes`.
    """

    begin: str
    opener: str
    closer: str
    end: str
    separator: str | None = None
    pairs: bool = False
    middle: str = ""
    joint: str = ""
    quotes: tuple[str, str] = ("", "")
    bare: str = ""


# of templates that show tools and render no calls, Phi-4-mini's and Granite 3's: (what their text holds, form)
_UNRENDERED = (
    (
        "<|tool|>",
        CallForm("<|tool_call|>[", f'{{"name": "{NAME}", "arguments": ', "}", "]<|/tool_call|>", ", "),
    ),
    ("<|tool_call|>", CallForm("<|tool_call|>[", f'{{"name": "{NAME}", "arguments": ', "}", "]", ", ")),
)


def call_form(render: Callable[..., str], template: str, ends: tuple[str, ...]) -> CallForm | None:
    """The form of a template's calls, or None where it shows none.

    Args:
        render: renders messages with the tools `PROBE_TOOLS`, `add_generation_prompt` as a keyword; raises UserError.
        template: the template's text.
        ends: texts that end an answer.
    """
    return _rendered_form(render, ends) or next((form for mark, form in _UNRENDERED if mark in template), None)


def _rendered_form(render: Callable[..., str], ends: tuple[str, ...]) -> CallForm | None:
    try:
        prompt = render([_QUESTION], add_generation_prompt=True)
        plain = render([_QUESTION, {"role": "assistant", "content": "Zq2kW"}])
    except UserError:
        return None
    ends = (*ends, *_HANDS_OVER, plain[plain.rfind("Zq2kW") + 5 :].strip())

    def written(calls: list[tuple[str, dict]]) -> str:
        """What an answer with these calls adds to the prompt; empty where the template does not do it."""
        names = [named(name, number) for number, (name, _) in enumerate(calls)]
        for arguments, content, ids in product((dict, json.dumps), ("", None), (_IDS, names)):
            listed = [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments(given)}}
                for (name, given), id_ in zip(calls, ids, strict=False)
            ]
            try:
                text = render([_QUESTION, {"role": "assistant", "content": content, "tool_calls": listed}])
            except UserError:
                continue
            same = min(len(_common(text, prompt)), _before_thought(prompt))
            if len(prompt) - same <= 40 and all(name in text[same:] for name, _ in calls):
                return _answer(text[same:], ends)
        return ""

    one = written([(_NAMES[0], _ARGUMENTS)])
    two = written([(_NAMES[0], _ARGUMENTS), (_NAMES[1], _ARGUMENTS)])
    return _json_form(one, two) or _pair_form(one, two, written([(_NAMES[0], {})]))


def _answer(text: str, ends: tuple[str, ...]) -> str:
    """Without a thought before the first call, and what ends the turn after the last."""
    first = text.find(_NAMES[0])
    for layout in KNOWN:
        if (closed := text.rfind(layout.close, 0, first)) >= 0:
            text = text[closed + len(layout.close) :].lstrip()
            first = text.find(_NAMES[0])
    stops = [at for end in ends if end and (at := text.find(end, first)) >= 0]
    return text[: min(stops, default=len(text))].rstrip()


def _before_thought(prompt: str) -> int:
    """Where a prompt opens a thought at its end, which answers with calls do not have; else its length."""
    end = prompt.rstrip()
    return min((len(end) - len(o) for layout in KNOWN if end.endswith(o := layout.open.strip())), default=len(prompt))


def _common(one: str, other: str) -> str:
    """What both begin with."""
    same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return one[: min(len(one), len(other)) if same is None else same]


def _marked(text: str) -> str:
    for name in _NAMES:
        text = text.replace(name, NAME)
    for id_ in _IDS:
        text = text.replace(id_, ID)
    return re.sub(f"functions\\.{NAME}:[01]", f"functions.{NAME}:{NUMBER}", text)


def _arguments(text: str, start: int) -> tuple[int, int] | None:
    """Where the probe's arguments stand as one JSON object."""
    decoder = json.JSONDecoder()
    while (start := text.find("{", start)) >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except ValueError:
            found, end = None, start
        if found == _ARGUMENTS:
            return start, end
        start += 1
    return None


def _json_form(one: str, two: str) -> CallForm | None:
    first = _arguments(one, 0)
    if first is None:
        return None
    before, after = _marked(one[: first[0]]), _marked(one[first[1] :])
    pair = _arguments(two, 0)
    second = _arguments(two, pair[1]) if pair else None
    between = _marked(two[pair[1] : second[0]]) if pair and second else ""
    return _split(before, after, between) if NAME in before else CallForm("", before, after, "")


def _in_tag(text: str) -> bool:
    """Whether a text ends within a tag: marks are not cut in two."""
    return text.rfind("<") > text.rfind(">")


def _split(before: str, after: str, between: str) -> CallForm:
    """Tell what belongs to each call from what stands once around all."""
    if not between:
        return CallForm("", before, after, "")
    opener = _common(before[::-1], between[::-1])[::-1]
    if opener.find(">") >= 0 and _in_tag(before[: len(before) - len(opener)]):
        opener = opener[opener.find(">") + 1 :]
    closer = _common(after, between[: len(between) - len(opener)])
    if _in_tag(closer):
        closer = closer[: closer.rfind("<")]
    if NAME not in opener:
        return CallForm("", before, after, "")
    separator = between[len(closer) : len(between) - len(opener)]
    return CallForm(before[: len(before) - len(opener)], opener, closer, after[len(closer) :], separator)


def _pair_form(one: str, two: str, bare: str) -> CallForm | None:
    places, at = [], one.find(_NAMES[0])
    for key, value in _ARGUMENTS.items():
        start = one.find(key, at)
        at = one.find(str(value), start)
        if start < 0 or at < 0:
            return None
        places.append((start, start + len(key), at, at + len(str(value))))
        at += len(str(value))
    (_, key1, text1, end1), (start2, key2, number, end2), (start3, _, _, end3) = places
    middle, joint = one[key2:number], one[end2:start3]
    opening, closing = one[key1:text1], one[end1:start2]
    if not opening.startswith(middle) or not closing.endswith(joint):
        return None
    quotes = opening[len(middle) :], closing[: len(closing) - len(joint)]
    before, after = _marked(one[: places[0][0]]), _marked(one[end3:].removeprefix(quotes[1]))
    between = ""
    if two:
        end, start = two.find("Zval2kW") + 7, two.find(_KEYS[0], two.find(_NAMES[1]))
        between = _marked(two[end:start].removeprefix(quotes[1]))
    form = _split(before, after, between)
    empty = _marked(bare)
    if empty.startswith(form.begin) and empty.endswith(form.end):
        empty = empty[len(form.begin) : len(empty) - len(form.end)]
    return CallForm(form.begin, form.opener, form.closer, form.end, form.separator, True, middle, joint, quotes, empty)
