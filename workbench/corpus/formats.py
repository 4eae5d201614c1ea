"""Rows of any supported layout, as conversations in the OpenAI form: `[{"role": …, "content": …}]`."""

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from workbench.corpus.registry import DatasetInfo
from workbench.errors import UserError


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason."""


def conversations(info: DatasetInfo, limit: int | None = None) -> Iterator[tuple[str, list[dict]]]:
    """`(place, messages)` for each row of a dataset; `place` is `file:line` (or the row number) for messages.

    Raises:
        UserError: the file cannot be read, or a row is broken (its place and the reason).
    """
    bounds = [n for n in (limit, info.num_samples) if n]
    for place, row in islice(_rows(info), min(bounds) if bounds else None):
        try:
            yield place, to_messages(row, info)
        except BadRow as reason:
            raise UserError(f"{place}: {reason}") from None


def _rows(info: DatasetInfo) -> Iterator[tuple[str, dict]]:
    if info.hub:
        yield from _hub_rows(info)
        return
    path = info.check().path
    reader = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(
        path.suffix.lower()
    )
    if reader is None:
        raise UserError(f"{path.name}: files of this kind cannot be read. It can be .json, .jsonl, .csv or .parquet.")
    empty = True
    try:
        for line, row in reader(path):
            if not isinstance(row, dict):
                raise UserError(f"{path.name}:{line}: a row should be an object, not {type(row).__name__}.")
            empty = False
            yield f"{path.name}:{line}", row
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if empty:
        raise UserError(f"{path.name} has no rows.")


def _jsonl(path: Path):
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path.name}:{number}: not valid JSON: {error.msg} (column {error.colno})."
                    ) from None


def _json(path: Path):
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON Lines in a .json file is common
            yield from _jsonl(path)
            return
        raise UserError(f"{path.name}:{error.lineno}: not valid JSON: {error.msg}.") from None
    if not isinstance(rows, list):
        raise UserError(f"{path.name} should hold a list of rows, but holds {type(rows).__name__}.")
    yield from enumerate(rows, 1)


def _csv(path: Path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from enumerate(csv.DictReader(file), 2)


def _parquet(path: Path):
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise UserError(f"{path.name} is not a readable Parquet file: {error}.") from None


def _hub_rows(info: DatasetInfo):
    from datasets import load_dataset

    try:
        rows = load_dataset(info.hub, info.subset, split=info.split)
    except Exception as error:  # the hub client raises many kinds
        raise UserError(
            f"Dataset {info.name} ({info.hub}) cannot be fetched: {str(error).splitlines()[0]} "
            "Check the network or HF_ENDPOINT, or download it and give its file_name in dataset_info.json."
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{info.hub}:{number}", row


def to_messages(row: dict, info: DatasetInfo) -> list[dict]:
    """One row as messages. Raises BadRow with the reason."""
    messages = _alpaca(row, info.columns) if info.formatting == "alpaca" else _sharegpt(row, info.columns, info.tags)
    _check_turns(messages)
    return messages


def _alpaca(row: dict, columns: dict) -> list[dict]:
    def text(column: str, *, required: bool = False) -> str:
        value = row.get(columns.get(column) or column)
        if value is None or value == "":
            if required:
                raise BadRow(f"the field '{columns[column]}' is missing or empty.")
            return ""
        if not isinstance(value, str):
            raise BadRow(f"the field '{columns[column]}' should be text, not {type(value).__name__}.")
        return value

    messages = []
    if system := text("system"):
        messages.append({"role": "system", "content": system})
    history = row.get(columns.get("history") or "history") or []
    if not isinstance(history, list):
        raise BadRow("the field 'history' should be a list of [question, answer] pairs.")
    for pair in history:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
            raise BadRow("the field 'history' should be a list of [question, answer] pairs.")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    query = text("query")
    prompt = text("prompt", required=not query)
    answer = text("response", required=True)
    question = "\n".join(part for part in (prompt, query) if part)
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _sharegpt(row: dict, columns: dict, tags: dict) -> list[dict]:
    turns = row.get(columns["messages"])
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"the field '{columns['messages']}' should be a list of turns.")
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["system_tag"]: "system",
        tags["observation_tag"]: "tool",
        tags["function_tag"]: "assistant",
    }
    messages = []
    system = row.get(columns.get("system") or "system")
    if isinstance(system, str) and system:
        messages.append({"role": "system", "content": system})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} should be an object.")
        role, content = turn.get(tags["role_tag"]), turn.get(tags["content_tag"])
        if role not in roles:
            raise BadRow(f"turn {number} has the unknown role {role!r}. It can be {', '.join(roles)}.")
        if not isinstance(content, str) or not content.strip():
            raise BadRow(f"turn {number} has no text.")
        messages.append({"role": roles[role], "content": content})
    return messages


def _check_turns(messages: list[dict]) -> None:
    """User (or tool) and assistant take turns after an optional system text. Raises BadRow."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not any(m["role"] == "assistant" for m in turns):
        raise BadRow("the assistant never speaks, so there is nothing to learn.")
    if turns[-1]["role"] != "assistant":
        raise BadRow(f"it ends with a {turns[-1]['role']} turn, not with the assistant's answer.")
    for index, message in enumerate(turns):
        assistant = message["role"] == "assistant"
        if message["role"] == "system" or assistant != (index % 2 == 1):
            raise BadRow(f"turn {index + 1} is a {message['role']} turn out of order.")
