"""One sentence that can be told in English and Chinese: a code of the catalogue and its values.

A `Message` is its English text, so that logs, JSON and comparisons need to know nothing of it. It crosses processes
pickled, or as `stored` beside its English text.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from workbench.messages import (
    anatomy,
    chat,
    cli,
    config,
    costs,
    data,
    datasets,
    engine,
    evaluation,
    imports,
    models,
    page,
    rows,
    runs,
    storage,
    train,
    users,
)

_AREAS = (
    storage,
    config,
    imports,
    data,
    datasets,
    rows,
    models,
    anatomy,
    costs,
    runs,
    train,
    engine,
    evaluation,
    chat,
    page,
    cli,
    users,
)
SENTENCES: dict[str, tuple[str, str]] = {code: texts for area in _AREAS for code, texts in area.SENTENCES.items()}
PARTS: dict[str, tuple[str, str]] = {
    code: texts for area in _AREAS for code, texts in getattr(area, "PARTS", {}).items()
}
CATALOGUE = SENTENCES | PARTS
LANGUAGES = ("en", "zh")
# how the items of a list are joined, by the format that a text gives it
_JOINED = {
    "": (", ", "、"),
    "and": (" and ", "和"),
    "clauses": (" and ", "，"),
    "lines": ("\n", "\n"),
    "sentences": (" ", ""),
}
# of what is read back
_DEPTH, _VALUES, _CHARACTERS = 8, 200, 20_000


class Message(str):
    """The English text of `code` with its values; `text` gives it in another language.

    Values are texts, numbers, other messages (an error counts as its message), or lists of these. Anything else is
    taken as its text.

    Raises:
        KeyError: there is no such code, or a value is missing.
    """

    code: str
    values: dict[str, Any]

    def __new__(cls, code: str, /, **values):
        values = {name: _value(value) for name, value in values.items()}
        message = super().__new__(cls, _text(code, values, "en"))
        message.code, message.values = code, values
        return message

    def __getnewargs_ex__(self):
        return (self.code,), self.values

    def text(self, lang: str) -> str:
        """This in `lang`: `en` or `zh`."""
        return _text(self.code, self.values, lang)

    def mapped(self, change: Callable[[str], str]) -> "Message":
        """This with every text in its values changed."""
        return Message(self.code, **{name: _mapped(value, change) for name, value in self.values.items()})


class _Items:
    """The items of a list in one language."""

    def __init__(self, items: list, lang: str):
        self.items, self.index = [str(_shown(item, lang)) for item in items], LANGUAGES.index(lang)

    def __format__(self, spec: str) -> str:
        return _JOINED[spec][self.index].join(self.items)


def _value(value):
    message = getattr(value, "message", None)  # of an error
    if isinstance(message, Message):
        return message
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return [_value(item) for item in value] if isinstance(value, list | tuple | set | dict) else str(value)


def _mapped(value, change: Callable[[str], str]):
    if isinstance(value, Message):
        return value.mapped(change)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _text(code: str, values: Mapping[str, Any], lang: str) -> str:
    template = CATALOGUE[code][LANGUAGES.index(lang)]
    return template.format(**{name: _shown(value, lang) for name, value in values.items()})


def _shown(value, lang: str):
    if isinstance(value, Message):
        return value.text(lang)
    return _Items(value, lang) if isinstance(value, list) else value


def told(text: str, lang: str) -> str:
    """A message in `lang`; text that is none as it is."""
    return text.text(lang) if isinstance(text, Message) else text


def stored(text):
    """A message, plain text, number or list of these as JSON can hold it."""
    if isinstance(text, Message):
        return {"code": text.code, "values": {name: stored(value) for name, value in text.values.items()}}
    return [stored(item) for item in text] if isinstance(text, list) else text


def restored(kept, english: str) -> str:
    """What `stored` made of a message whose text is `english`.

    It may have been written by an older version, or by a stranger: where the two do not say the same, the English text
    is what counts.
    """
    try:
        message = _restored(kept, _DEPTH, [_VALUES, _CHARACTERS])
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError):
        return english
    return message if isinstance(message, Message) and message == english else english


def _restored(kept, depth: int, left: list[int]):
    """One value of `stored`. `left`: how many values and characters may still come."""
    left[0] -= 1
    left[1] -= len(kept) if isinstance(kept, str) else 0
    if depth == 0 or min(left) < 0:
        raise ValueError("a message of this size is not read")
    if isinstance(kept, dict):
        values = {str(name): _restored(value, depth - 1, left) for name, value in kept["values"].items()}
        return Message(kept["code"], **values)
    if isinstance(kept, list):
        return [_restored(item, depth - 1, left) for item in kept]
    if (
        kept is None
        or isinstance(kept, str | bool)
        or (isinstance(kept, int | float) and math.isfinite(kept) and abs(kept) < 2**63)
    ):
        return kept
    raise ValueError("not a value of a message")
