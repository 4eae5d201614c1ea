"""Rows as a person looks at them: the conversation, and the tokens that the model will see. Plain values, ready for JSON."""

import codecs
import json

from workbench.corpus.encode import IGNORE, Encoded, Encoder
from workbench.corpus.formats import Example
from workbench.corpus.registry import DatasetInfo
from workbench.corpus.rows import BadRow, Raw
from workbench.corpus.scan import look
from workbench.engine.vocabulary import Vocabulary

MOST_TOKENS = 4000  # of a row that are shown: the first and the last half of them
MOST_TEXT = 60_000  # characters of a text that are shown


def row_view(number: int, raw: Raw, info: DatasetInfo, encoder: Encoder | None, vocabulary: Vocabulary | None) -> dict:
    """One row, for JSON.

    Keys: `row` (from 1 on), `place`, `source` (the row as it stands in the file), `problems`, `turns` (role, content, mark: `chosen` or
    `rejected`), `tools`, `text`, `label`, and `encoded`: one dict as of `encoded_view` for each training row made of it.
    """
    example, encoded, problems = look(raw, info, encoder)
    found = {
        "row": number + 1,
        "place": raw.place,
        "source": _cut(source(raw)),
        "problems": [[p.kind, p.reason] for p in problems],
        "encoded": [encoded_view(one, vocabulary) for one in encoded],
    }
    return found | _conversation(example) if example else found | {"turns": [], "broken": True}


def source(raw: Raw) -> str:
    """A row as it stands in its file; of files that are not lines of JSON, the row as JSON."""
    if isinstance(raw.data, bytes):
        return raw.data.decode("utf-8", "replace")
    if isinstance(raw.data, BadRow):
        return ""
    return json.dumps(raw.data, ensure_ascii=False, default=str)


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
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + f"… (+{len(text) - MOST_TEXT:,})"


def encoded_view(encoded: Encoded, vocabulary: Vocabulary) -> dict:
    """A training row, for JSON: `tokens` as [id, text, 1 if trained], `skipped` of them in the middle that are not shown (after `head`), exact
    `text`, and what was cut: `dropped_turns`, `cuts` as [index, tokens missing before it], `answer_cut`, `full_length`."""
    trained = [int(label != IGNORE) for label in encoded.labels]
    tokens = [list(item) for item in zip(encoded.input_ids, texts(encoded.input_ids, vocabulary), trained, strict=True)]
    found = {
        "length": len(tokens), "trained": sum(trained), "full_length": encoded.full_length, "text": _cut(encoded.text),
        "dropped_turns": encoded.dropped_turns, "dropped_at": encoded.dropped_at, "cuts": [list(cut) for cut in encoded.cuts], "answer_cut": encoded.answer_cut,
    }  # fmt: skip
    return found | shortened(tokens)


def shortened(tokens: list) -> dict:
    """`tokens` without the middle of very many: `head` of them lie before `skipped` missing ones."""
    over, half = len(tokens) - MOST_TOKENS, MOST_TOKENS // 2
    if over <= 0:
        return {"tokens": tokens, "skipped": 0, "head": len(tokens)}
    return {"tokens": tokens[:half] + tokens[-half:], "skipped": over, "head": half}


def texts(ids: list[int], vocabulary: Vocabulary) -> list[str]:
    """What each token says. Of a character that is spread over several tokens, the last one has it and the others have nothing."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = [decoder.decode(vocabulary.bytes(id_)) for id_ in ids]
    if found:
        found[-1] += decoder.decode(b"", final=True)
    return found
