"""A call's name and its arguments while the model writes them, where both are JSON.

The arguments come out as `json.dumps` writes them, piece by piece, so that what a stream has sent joins to what a whole
answer has. Of text that turns out not to be JSON the rest comes out as it is written.
"""

import json
from collections.abc import Callable, Generator

_DEEPEST = 64  # objects and lists within each other
_LITERAL = 400  # characters of a number
_SPACE = " \t\r\n"

Reader = Generator[None, str, str]
Write = Callable[[str], None]


def _nothing(text: str) -> None:
    pass


class CallStream:
    """Reads one region of calls. `begun`: the numbers of its calls whose name and arguments have come out, at least in
    part.

    Args:
        field: as `calls_fields` makes it, with JSON as its content.
        captures: what its opening pattern has found: the name, where it stands outside of the JSON.
        schema: gives the schema of a function's parameter.
        cast: gives a parameter's value as the schema wants it.
        say: takes `("begin", name)`, `("arguments", text)` and `("end", "")`.
    """

    def __init__(
        self,
        field: dict,
        captures: dict[str, str],
        schema: Callable[[str, str], object],
        cast: Callable[[str, str, object], object],
        say: Callable[[str, str], None],
    ):
        self._schema, self._cast, self._say = schema, cast, say
        self.begun: set[int] = set()
        self._number, self._name = 0, captures.get("name", "")
        self._within = False  # of arguments
        self._unsaid, self._peek, self._done, self._raw = "", "", False, False
        path = [field["transform"]["function"][key].strip("{}").split(".") for key in ("name", "arguments")]
        self._paths = [[one for one in keys if one != "content"] for keys in path]
        self._reader = self._region(bool(field.get("transform_each")))
        next(self._reader)

    def add(self, text: str) -> None:
        for place, letter in enumerate(text):
            if self._raw:
                self._say("arguments", text[place:])
                return
            if self._done:
                return
            self._unsaid += letter
            try:
                self._reader.send(letter)
            except StopIteration:
                self._done = True
            except (ValueError, RecursionError):
                self._done, self._raw = not self._within, self._within
                if self._raw:
                    self._write(self._unsaid.lstrip() or self._unsaid)

    def cut(self) -> None:
        """The region ended without an end of its own: what is held back of arguments comes out as it is."""
        if self._within and self._unsaid:
            self._write(self._unsaid)

    def _write(self, text: str) -> None:
        self._unsaid = ""
        self._say("arguments", text)

    # readers take a letter with each `yield`; those of values are given their first

    def _next(self) -> Reader:
        if self._peek:
            letter, self._peek = self._peek, ""
            return letter
        return (yield)

    def _sign(self) -> Reader:
        """The next letter that is no space."""
        while (letter := (yield from self._next())) in _SPACE:
            pass
        return letter

    def _region(self, listed: bool) -> Reader:
        letter = yield from self._sign()
        if not listed:
            yield from self._call(letter)
            return ""
        if letter != "[":
            raise ValueError("no list")
        while True:
            letter = yield from self._sign()
            if letter == "]":
                return ""
            yield from self._call(letter)
            self._number += 1
            if (yield from self._sign()) != ",":
                return ""

    def _call(self, letter: str) -> Reader:
        if self._paths[1] == []:  # the arguments are all that the region holds
            yield from self._arguments(letter)
            return ""
        self._name = ""
        if letter != "{":
            raise ValueError("no object")
        return (yield from self._object(_nothing, 0, lambda key, first: self._field([key], first)))

    def _field(self, path: list[str], letter: str) -> Reader:
        """A value of what is around the arguments."""
        if path == self._paths[0] and letter == '"':
            self._name = yield from self._string(_nothing)
        elif path == self._paths[1] and letter == "{" and self._name:
            yield from self._arguments(letter)
        elif letter == "{" and path == self._paths[1][: len(path)]:
            yield from self._object(_nothing, 1, lambda key, first: self._field([*path, key], first))
        else:
            yield from self._value(letter, _nothing, 1)
        return ""

    def _arguments(self, letter: str) -> Reader:
        if letter != "{":
            raise ValueError("no object")
        if self._number in self.begun:
            raise ValueError("twice")
        self.begun.add(self._number)
        self._say("begin", self._name)
        self._within = True
        yield from self._object(self._write, 1, self._argument)
        self._within, self._unsaid = False, ""
        self._say("end", "")
        return ""

    def _argument(self, key: str, letter: str) -> Reader:
        schema = self._schema(self._name, key)
        wanted = {'"': "string", "[": "array"}.get(letter)
        plain = (
            isinstance(schema, dict)
            and schema.get("type") == wanted
            and not {"anyOf", "oneOf", "nullable"} & set(schema)
        )
        if schema is None or wanted is None or plain:
            return (yield from self._value(letter, self._write, 2))
        held: list[str] = []  # it may become another value
        yield from self._value(letter, held.append, 2)
        value = self._cast(self._name, key, json.loads("".join(held)))
        self._write(json.dumps(value, ensure_ascii=False))
        return ""

    def _value(self, letter: str, write: Write, depth: int) -> Reader:
        if depth > _DEEPEST:
            raise ValueError("too deep")
        if letter == "{":
            return (yield from self._object(write, depth, lambda _, first: self._value(first, write, depth + 1)))
        if letter == "[":
            return (yield from self._list(write, depth))
        if letter == '"':
            return (yield from self._string(write))
        literal = letter
        while (following := (yield from self._next())) not in ",]}" + _SPACE:
            literal += following
            if len(literal) > _LITERAL:
                raise ValueError("too long")
        text = json.dumps(json.loads(literal))
        write(text)
        if write == self._write:
            self._unsaid = following
        self._peek = following
        return ""

    def _object(self, write: Write, depth: int, member: Callable[[str, str], Reader]) -> Reader:
        write("{")
        letter = yield from self._sign()
        if letter == "}":
            write("}")
            return ""
        while True:
            if letter != '"':
                raise ValueError("no key")
            key = yield from self._string(write)
            if (yield from self._sign()) != ":":
                raise ValueError("no colon")
            write(": ")
            yield from member(key, (yield from self._sign()))
            letter = yield from self._sign()
            if letter == "}":
                write("}")
                return ""
            if letter != ",":
                raise ValueError("no comma")
            write(", ")
            letter = yield from self._sign()

    def _list(self, write: Write, depth: int) -> Reader:
        write("[")
        letter = yield from self._sign()
        if letter == "]":
            write("]")
            return ""
        while True:
            yield from self._value(letter, write, depth + 1)
            letter = yield from self._sign()
            if letter == "]":
                write("]")
                return ""
            if letter != ",":
                raise ValueError("no comma")
            write(", ")
            letter = yield from self._sign()

    def _string(self, write: Write) -> Reader:
        """A text, of which the opening quote has been read."""
        whole, escape = "", ""
        write('"')
        while True:
            letter = yield from self._next()
            if letter != "\\" and escape:
                raise ValueError("half of a pair")
            if letter == '"':
                write('"')
                return whole
            if letter != "\\":
                if letter < " ":
                    raise ValueError("a control character")
                text = letter
            else:
                escape += letter + (yield from self._next())
                if escape[-1] == "u":
                    for _ in range(4):
                        escape += yield from self._next()
                text = json.loads(f'"{escape}"')
                if len(text) == 1 and "\ud800" <= text < "\udc00":
                    continue  # the other half comes
                if any("\ud800" <= one <= "\udfff" for one in text):
                    raise ValueError("half of a pair")
                escape = ""
            whole += text
            write(json.dumps(text, ensure_ascii=False)[1:-1])
