"""Grammars that an answer has to follow: JSON, or calls of tools in the model's own form, each after a thought.

A grammar is put together from parts that know nothing of a tokenizer, and written as llguidance's Lark when a request
is decoded: marks such as `<tool_call>` are one token of some vocabularies and plain letters of others.
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from workbench.engine.call_forms import ID, NAME, NUMBER, CallForm
from workbench.engine.call_reading import value_end
from workbench.engine.thoughts import Thoughts
from workbench.errors import UserError
from workbench.messages.message import Message

MAX_SCHEMA_DEPTH = 48  # of lists and objects inside each other
MAX_SCHEMA_VALUES = 5_000  # half a second of llguidance's; 20,000 take six
MAX_CALLS = 16  # that a grammar lets a model make in one turn
MAX_INTEGER = 2**53 - 1  # what every JSON reader keeps exact: https://www.rfc-editor.org/rfc/rfc7493#section-2.2
_MARK = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
_VALUES = ("enum", "const", "default", "examples")  # parts of a schema that are no schemas
_SPACES = {"whitespace_pattern": r"[ \n]{0,16}"}  # in JSON: endless white space is valid, but no answer


@dataclass(frozen=True)
class Tool:
    """A function that may be called: its name and the JSON schema of its arguments."""

    name: str
    schema: dict


@dataclass
class Plan:
    """What an answer has to be: JSON of `schema`, or calls of `tools` in `form` (`several` of them, at least one); any
    of both where both are given.

    `thoughts` with `opened`: the prompt has opened a thought, which ends first; without, there may be one.
    `free`: any text, in which calls alone are bound; the form has to have a `mark`.
    """

    schema: dict | None = None  # None: no JSON
    form: CallForm | None = None
    tools: list[Tool] = field(default_factory=list)
    several: bool = False
    thoughts: Thoughts | None = None
    opened: bool = False
    free: bool = False
    ends: tuple[int, ...] = ()  # token ids that end an answer

    def lark(self, token: Callable[[str], int | None]) -> str:
        """The grammar. `token(text)`: the id of a special token, None for what is plain text."""
        return _Writer(token).write(self)


def mark(form: CallForm) -> str:
    """What a text with calls has and one without has not: the first mark of a form. Empty where calls begin as any
    other text may."""
    found = _MARK.search((form.begin + form.opener).partition(NAME)[0])
    return found[0] if found else ""


def check_schema(schema: object, what: str) -> None:
    """Raises UserError, which names `what`, for a schema that is too deep or too large to look at."""
    waiting, seen = [(schema, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_SCHEMA_DEPTH or seen > MAX_SCHEMA_VALUES:
            raise UserError("schema_too_large", what=what, levels=MAX_SCHEMA_DEPTH, values=MAX_SCHEMA_VALUES)
        if isinstance(value, dict):
            waiting += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list):
            waiting += [(one, depth + 1) for one in value]


class _Writer:
    def __init__(self, token: Callable[[str], int | None]):
        self._token, self._rules = token, []

    def write(self, plan: Plan) -> str:
        layout, ways = plan.thoughts, []
        if plan.form and plan.free:
            ways += self._free(plan)
        elif plan.form:
            ways.append(self._calls(plan, plan.form))
        if plan.schema is not None:
            lead = self._literal(layout.answer) if layout else ""
            ways.append(f"{lead} {self._rule('json', f'%json {_json(plan.schema)}')}")
        start = self._rule("answer", " | ".join(ways))
        if layout:
            space = "" if layout.answer else self._rule("space", r"/\s{0,4}/")
            thought = f"{self._until(layout.close)} {space} {start}"
            start = thought if plan.opened else f"{self._literal(layout.open)} {thought} | {start}"
        return "\n".join([f"start: {start}", *self._rules])

    def _rule(self, name: str, body: str, options: str = "") -> str:
        """A new rule; its name."""
        name = f"{name}_{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def _literal(self, text: str) -> str:
        """A text, with special tokens where the vocabulary has them."""
        out: list[str] = []
        plain = ""
        for piece in re.split(r"(<[^<>\s]+>|\[/?[A-Z_]+\]|<\|\"\|>)", text):
            id_ = self._token(piece) if piece else None
            if id_ is None:
                plain += piece
                continue
            out += [json.dumps(plain, ensure_ascii=False), f"<[{id_}]>"] if plain else [f"<[{id_}]>"]
            plain = ""
        return " ".join([*out, json.dumps(plain, ensure_ascii=False)] if plain else out)

    def _until(self, mark: str) -> str:
        """Any text, and then `mark`."""
        literal = self._literal(mark)
        if literal.startswith("<["):
            return f"{self._rule('text', '/(?s:.*)/')} {literal}"
        first, rest = re.match(r'("(?:[^"\\]|\\.)*")(.*)', literal, re.S).groups()  # type: ignore[union-attr]
        text = self._rule("text", "/(?s:.*)/", f"[suffix={first}]")
        return text + rest

    def _free(self, plan: Plan) -> list[str]:
        """Text without calls, and text that ends with some."""
        assert plan.form is not None
        form, first = plan.form, mark(plan.form)
        if self._token(first) is not None:
            words = self._rule("words", "/(?s:.*)/")
            return [words, f"{words} {self._calls(plan, form)}"]
        self._rules.append(f"WORDS: /(?s:.*)/ & ~/(?s:.*){re.escape(first)}(?s:.*)/")
        place = (form.begin + form.opener).index(first) + len(first)
        begin, opener = form.begin[place:], form.opener[max(0, place - len(form.begin)) :]
        return ["WORDS", f"{self._until(first)} {self._calls(plan, replace(form, begin=begin, opener=opener))}"]

    def _calls(self, plan: Plan, first: CallForm) -> str:
        """Calls in the plan's form, the first in the form `first`."""
        form = plan.form
        assert form is not None
        call = self._rule("call", " | ".join(self._call(form, tool) for tool in plan.tools))
        begun = call
        if first.opener != form.opener:
            begun = self._rule("call", " | ".join(self._call(first, tool) for tool in plan.tools))
        parts = [self._literal(first.begin), begun]
        if plan.several and form.separator is not None:
            more = f"{self._literal(form.separator)} {call}"
            parts.append(f"({more.strip()}){{0,{MAX_CALLS - 1}}}")
        parts.append(self._literal(form.end))
        return " ".join(filter(None, parts))

    def _text(self, text: str, name: str) -> str:
        """A text of a form, with the function's name, and some id or number in it."""
        some = {ID: "/[a-zA-Z0-9]{9}/", NUMBER: "/[0-9]{1,3}/"}
        parts = [
            some.get(piece) or self._literal(piece) for piece in re.split(f"([{ID}{NUMBER}])", text.replace(NAME, name))
        ]
        return " ".join(filter(None, parts))

    def _call(self, form: CallForm, tool: Tool) -> str:
        opener, closer = self._text(form.opener, tool.name), self._text(form.closer, tool.name)
        if form.pairs:
            return self._pairs(form, tool)
        arguments = self._rule("arguments", f"%json {_json(tool.schema)}")
        return " ".join(filter(None, [opener, arguments, closer]))

    def _pairs(self, form: CallForm, tool: Tool) -> str:
        """A call whose arguments stand by themselves, in the order of the schema; those not required may be missing."""
        stop = "" if form.quotes[0] else value_end(form)
        joint, closer = form.joint[len(stop) :], form.closer[len(stop) :]
        properties = tool.schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = tool.schema.get("required")
        required = set(required) & set(properties) if isinstance(required, list) else set()
        rest, ways = self._text(closer, tool.name), []
        for key, schema in reversed(properties.items()):
            value = f"{self._literal(key + form.middle)} {self._value(form, schema, tool.schema, stop)}"
            ways.append(f"{self._text(form.opener, tool.name)} {value} {rest}")
            following = f"{self._text(joint, tool.name)} {value} {rest}"
            rest = self._rule("rest", following if key in required else f"{following} | {rest}")
            if key in required:
                ways = ways[-1:]
        if not required:
            ways.append(self._text(form.bare, tool.name))
        return self._rule("pairs", " | ".join(ways))

    def _value(self, form: CallForm, schema: object, root: dict, stop: str) -> str:
        """One value with what ends it: text as it is, everything else as JSON."""
        schema = _resolved(schema, root)
        types = _types(schema)
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if choices is not None and all(isinstance(one, str) for one in choices):
            texts = " | ".join(self._literal(one) or '""' for one in choices)
            ways = [f"{self._literal(form.quotes[0])} ({texts}) {self._literal(form.quotes[1] + stop)}"]
            types = set()
        elif "string" in types or not types:
            begin, end = form.quotes[0], form.quotes[1] + stop
            text = self._rule("quoted", r"/[^'\n\\]*/") + " " + self._literal(end) if begin == "'" else self._until(end)
            ways = [f"{self._literal(begin)} {text}"]
        else:
            ways = []
        if types - {"string"}:
            other = {**schema, "$defs": root["$defs"]} if "$defs" in root else dict(schema)
            if "string" in types and "type" in other:
                other["type"] = sorted(types - {"string"})
            ways.append(f"{self._rule('value', f'%json {_json(other)}')} {self._literal(stop)}")
        return self._rule("value", " | ".join(ways))


def _json(schema: dict) -> str:
    return json.dumps({**_bounded(schema), "x-guidance": _SPACES})


def _bounded(schema):
    """A schema with bounds for integers that it leaves unbounded: small models write digits without end."""
    if isinstance(schema, list):
        return [_bounded(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value if key in _VALUES else _bounded(value) for key, value in schema.items()}
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    if "integer" in types and "number" not in types:
        for bound, strict, sign in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
            if not {bound, strict, "multipleOf", *_VALUES} & set(schema):
                found[bound] = sign * MAX_INTEGER
    return found


def _resolved(schema: object, root: dict) -> dict:
    """A property's schema; where it only names a definition, that one."""
    for _ in range(MAX_SCHEMA_DEPTH):
        if not isinstance(schema, dict):
            return {}
        name = schema.get("$ref")
        if not isinstance(name, str) or not name.startswith("#/$defs/"):
            return schema
        definitions = root.get("$defs")
        schema = definitions.get(name.removeprefix("#/$defs/")) if isinstance(definitions, dict) else None
    return {}


def _types(schema: dict) -> set[str]:
    """The types that a schema allows; empty where it does not say."""
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set(declared) if isinstance(declared, list) else set()
    for union in ("anyOf", "oneOf"):
        for choice in schema.get(union) if isinstance(schema.get(union), list) else ():
            types |= _types(choice) if isinstance(choice, dict) else set()
    return {one for one in types if isinstance(one, str)}


@lru_cache(maxsize=4)
def guided(tokenizer, vocabulary: int, ends: tuple[int, ...]):
    """llguidance's view of a tokenizer; about a second for a large vocabulary."""
    import llguidance.hf

    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(ends) or None)


def matcher(tokenizer, plan: Plan, vocabulary: int):
    """llguidance's matcher of a plan.

    Raises:
        UserError: a schema that is none, or uses what llguidance does not know.
    """
    from llguidance import LLMatcher

    what = "tools" if plan.schema is None else "response_format"
    for schema in [tool.schema for tool in plan.tools] + [plan.schema]:
        check_schema(schema, what)
    guide = guided(tokenizer, vocabulary, plan.ends)
    added = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}

    def special(text: str) -> int | None:
        id_ = added.get(text)
        return id_ if id_ is not None and guide.is_special_token(id_) else None

    found = LLMatcher(guide, plan.lark(special), log_level=0)
    if found.is_error():
        reason = " ".join(found.get_error().partition("<state>")[0].split())[:300]
        if "panic" in reason:  # an assertion inside llguidance, which it survives
            reason = Message("grammars_too_large")
        raise UserError("schema_unusable", what=what, reason=reason)
    return found
