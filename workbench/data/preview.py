"""Rows as a person looks at them: the conversation, and the tokens that the model will see. Plain values, ready for
JSON."""

import codecs
import json

from workbench.data.encode import IGNORE, Encoded, Encoder
from workbench.data.formats import Example
from workbench.data.pipeline import look
from workbench.data.readers import BadRow, Raw
from workbench.data.registry import DatasetInfo
from workbench.messages.message import Message
from workbench.models.vocabulary import Vocabulary

MOST_TOKENS = 4000  # of a row that are shown: the first and the last half of them
MOST_TEXT = 60_000  # characters of a text that are shown
MOST_PIECES = 3  # of a plain text
LARGE = 1 << 20  # bytes of a row from which on it is not tokenized to be looked at


def row_view(number: int, raw: Raw, info: DatasetInfo, encoder: Encoder | None, vocabulary: Vocabulary | None) -> dict:
    """One row, for JSON.

    Keys: `row` (from 1 on), `place`, `source` (the row as it stands in the file), `problems`, `turns` (role, content,
    mark: `chosen` or `rejected`), `tools`, `text`, `label`, `encoded`: one dict as of `encoded_view` for each of the
    first training rows made of it, `pieces`: how many there are, `kind` as of `Encoder` (of `pairs`, the first two are
    the chosen and the rejected answer), and `large`: whether it is too large to be tokenized here.
    """
    text = source(raw)
    large = len(text) > LARGE
    example, encoded, problems = look(raw, info, None if large else encoder)
    if example is None and problems[-1].kind == "template":  # the conversation itself is fine
        example = look(raw, info, None)[0]
    if example is not None and example.label is False and (encoder is None or encoder.kind == "conversations"):
        encoded = []  # not trained on, so there are no training rows of it
    view = {
        "row": number + 1,
        "place": readable(raw.place),
        "source": _cut(text),
        "problems": [[p.kind, readable(p.reason)] for p in problems],
        "encoded": [encoded_view(one, vocabulary) for one in encoded[:MOST_PIECES]] if vocabulary else [],
        "pieces": len(encoded),
        "kind": encoder.kind if encoder is not None else "conversations",
        "large": large and encoder is not None,
    }
    return view | _conversation(example) if example else view | {"turns": [], "broken": True}


def source(raw: Raw) -> str:
    """A row as it stands in its file, bytes that are not UTF-8 as `\\x..`; of files that are not lines of JSON, the row
    as JSON."""
    if isinstance(raw.data, bytes):
        return raw.data.decode("utf-8", "backslashreplace")
    if isinstance(raw.data, BadRow):
        return ""
    return readable(json.dumps(raw.data, ensure_ascii=False, default=str))


def readable(text: str) -> str:
    """`text` without lone surrogates, which cannot be sent or written."""
    if isinstance(text, Message):
        return text.mapped(readable)
    return text.encode("utf-8", "backslashreplace").decode()


def _conversation(example: Example) -> dict:
    turns = [_turn(message) for message in example.messages]
    for mark in ("chosen", "rejected"):
        turns += [_turn(message) | {"mark": mark} for message in getattr(example, mark) or []]
    tools = json.dumps(example.tools, ensure_ascii=False, indent=1) if example.tools else ""
    return {
        "turns": turns,
        "tools": _cut(tools),
        "text": None if example.text is None else _cut(example.text),
        "label": example.label,
    }


def _turn(message: dict) -> dict:
    calls = [json.dumps(call["function"], ensure_ascii=False, indent=1) for call in message.get("tool_calls") or []]
    return {"role": message["role"], "content": _cut(message["content"]), "calls": [_cut(call) for call in calls]}


def _cut(text: str) -> str:
    return readable(text) if len(text) <= MOST_TEXT else readable(text[:MOST_TEXT]) + f"… (+{len(text) - MOST_TEXT:,})"


def encoded_view(encoded: Encoded, vocabulary: Vocabulary) -> dict:
    """A training row, for JSON: `tokens` as of `tokens_view`, exact `text`, and what was cut: `dropped_turns`,
    `dropped_at`, `cuts` as [index, tokens missing before it], `answer_cut`, `full_length`."""
    return {
        "length": len(encoded.input_ids),
        "trained": encoded.trained,
        "full_length": encoded.full_length,
        "text": _cut(encoded.text),
        "dropped_turns": encoded.dropped_turns,
        "dropped_at": encoded.dropped_at,
        "cuts": [list(cut) for cut in encoded.cuts],
        "answer_cut": encoded.answer_cut,
        **tokens_view(encoded.input_ids, encoded.labels, vocabulary),
    }


def tokens_view(ids: list[int], labels: list[int], vocabulary: Vocabulary) -> dict:
    """`tokens` as [id, text, 1 if trained] without the middle of very many: `head` of them lie before `skipped` missing
    ones."""
    over, half = max(0, len(ids) - MOST_TOKENS), MOST_TOKENS // 2
    parts = [(ids[:half], labels[:half]), (ids[-half:], labels[-half:])] if over else [(ids, labels)]
    tokens = [
        [id_, text, int(label != IGNORE)]
        for some, their in parts
        for id_, text, label in zip(some, texts(some, vocabulary), their, strict=True)
    ]
    return {"tokens": tokens, "skipped": over, "head": half if over else len(tokens)}


def texts(ids: list[int], vocabulary: Vocabulary) -> list[str]:
    """What each token says. Of a character that is spread over several tokens, the last one has it and the others have
    nothing."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(vocabulary.bytes(id_)) for id_ in ids]
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return pieces
