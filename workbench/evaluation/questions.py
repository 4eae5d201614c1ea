"""The rows of a dataset as questions: the prompt as chat asks it, and the last answer as the label.

Rows are read and rendered by what training uses (`data/`). Rows without an answer are questions, too.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from workbench.data.dataset import raw_rows, with_layout
from workbench.data.encode import Encoder
from workbench.data.formats import Example, parsed, to_example
from workbench.data.readers import BadRow, Raw
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.messages.message import Message

_STAND_IN = "Zq5kW"  # an answer where a row has none, so that the row is read as the others are
_QUESTION_FIELDS = ("prompt", "question", "query", "instruction", "input")


@dataclass
class Question:
    """One row. `row` counts from 1 on over all datasets; `place` is `file:line`. `label` is empty where the row has
    none. `problem`: why the row cannot be asked; then there is no prompt."""

    row: int
    place: str
    prompt: str = ""
    ids: list[int] = field(default_factory=list)
    label: str = ""
    problem: str = ""


def rows_of(info: DatasetInfo, most: int | None) -> Iterator[Raw]:
    """The rows that are asked: the first `most`, or as many as the dataset's entry says. Raises UserError."""
    limits = [limit for limit in (most, info.num_samples) if limit]
    return itertools.islice(raw_rows(info), min(limits) if limits else None)


def count(infos: list[DatasetInfo], most: int | None) -> int:
    """How many rows there are to ask. Raises UserError: a dataset cannot be read, or has no rows."""
    return sum(1 for info in infos for _ in rows_of(info, most))


def questions(
    infos: list[DatasetInfo], encoder: Encoder, most: int | None, answered: frozenset[int] | set[int] = frozenset()
) -> Iterator[Question]:
    """All rows of some datasets, in their order, without those that are `answered` (their numbers).

    Raises:
        UserError: a dataset cannot be read, or its layout is not known.
    """
    number = 0
    for info in infos:
        known = layout(info)
        for raw in rows_of(info, most):
            number += 1
            if number not in answered:
                yield question(number, raw, known, encoder)


def question(number: int, raw: Raw, info: DatasetInfo, encoder: Encoder) -> Question:
    """One row as a question, or what is wrong with it. `info` has its layout."""
    asked = Question(number, raw.place)
    try:
        messages, tools, labeled = turns(raw.row(), info)
        asked.prompt, asked.ids, label = encoder.prompt(messages, tools)
        asked.label = label if labeled else ""
        if not asked.ids:
            raise UserError("prompt_empty")
    except (BadRow, UserError) as error:
        asked.problem = error.message
    except RecursionError:
        asked.problem = Message("row_nested_template")
    return asked


def layout(info: DatasetInfo) -> DatasetInfo:
    """`info` with the layout of its rows, which may be bare questions (`{"prompt": …}`). Raises UserError."""
    try:
        return with_layout(info)
    except UserError as error:
        if getattr(error.message, "code", "") != "layout_unknown":
            raise
        for raw in itertools.islice(raw_rows(info), 50):
            try:
                fields = raw.row()
            except BadRow:
                continue
            if name := next((name for name in _QUESTION_FIELDS if isinstance(fields.get(name), str)), ""):
                columns = {"prompt": name, "response": "completion", "system": "system", "tools": "tools"}
                return replace(info, formatting="prompt_completion", columns=columns)
        raise


def turns(row: dict, info: DatasetInfo) -> tuple[list[dict], list[dict] | None, bool]:
    """`(messages, tools, whether the last of them is a wanted answer)`. Raises BadRow."""
    try:
        example = to_example(row, info)
    except BadRow:
        filled = _filled(row, info)
        if filled is None:
            raise
        example = _without_stand_in(to_example(filled, info))
    if example.text is not None:
        raise BadRow("missing", "row_plain_text")
    messages = example.conversation
    return messages, example.tools, messages[-1]["role"] == "assistant" and example.label is not False


def _filled(row: dict, info: DatasetInfo) -> dict | None:
    """A row with something in the place of its missing answer; None where that is not what it lacks."""
    if info.ranking:
        return None
    if info.formatting in ("alpaca", "prompt_completion"):
        name = info.columns.get("response") or ("output" if info.formatting == "alpaca" else "completion")
        value = row.get(name)
        return (
            {**row, name: _STAND_IN} if value in (None, []) or (isinstance(value, str) and not value.strip()) else None
        )
    if info.formatting not in ("sharegpt", "openai"):
        return None
    name, tags = info.columns.get("messages") or "messages", info.tags
    conversation = parsed(row.get(name))
    if not isinstance(conversation, list) or not conversation or not isinstance(conversation[-1], dict):
        return None
    last, answer = conversation[-1], {tags["role_tag"]: tags["assistant_tag"], tags["content_tag"]: _STAND_IN}
    if last.get(tags["role_tag"]) == tags["assistant_tag"]:
        empty = not last.get("tool_calls") and last.get(tags["content_tag"]) in (None, "")
        return {**row, name: [*conversation[:-1], answer]} if empty else None
    return {**row, name: [*conversation, answer]}


def _without_stand_in(example: Example) -> Example:
    """The example that ends with its question."""
    if example.messages and example.messages[-1].get("content") == _STAND_IN:
        example.messages = example.messages[:-1]
    return example
