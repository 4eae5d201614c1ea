"""Questions and answers about documents: the passages that are asked about, what is asked of a model, what its answer
says, and the dataset of the pairs that somebody has looked at and kept."""

import itertools
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from workbench.data.dataset import raw_rows, with_layout
from workbench.data.documents import passages
from workbench.data.editing import BUNDLED, add_file
from workbench.data.formats import to_example
from workbench.data.readers import BadRow
from workbench.data.registry import DatasetInfo, read_registry
from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.locks import locked
from workbench.storage.workspace import Workspace, slug

SHORTEST, LONGEST = 200, 8000  # characters of a passage
MOST_PASSAGES = 200  # that are asked about at a time
MOST_PAIRS = 5  # of a passage
QUESTION, ANSWER = 2000, 8000  # characters that are read of one
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
        "required": ["question", "answer"],
        "additionalProperties": False,
    },
    "minItems": 1,
    "maxItems": MOST_PAIRS,
}


def passages_of(info: DatasetInfo, most: int, first: int = 1, count: int = MOST_PASSAGES) -> list[str]:
    """Passages of a dataset of plain text, number `first` (from 1 on) and those after it.

    Raises:
        UserError: its rows are no plain text.
    """
    info = with_layout(info)
    if info.formatting != "text":
        raise UserError("passages_need_text", name=info.name, layout=info.formatting)
    most = max(SHORTEST, min(LONGEST, most))
    start = max(0, first - 1)
    return list(itertools.islice(passages(_texts(info), most), start, start + max(0, min(MOST_PASSAGES, count))))


def _texts(info: DatasetInfo) -> Iterator[str]:
    for raw in raw_rows(info):
        try:
            text = to_example(raw.row(), info).text
        except BadRow:
            continue
        if text and text.strip():
            yield text.strip()


def request(passage: str, count: int) -> list[dict]:
    """What a model is asked for a passage, as messages."""
    words = (
        f"Write {count} question{'s' * (count > 1)} that the text below answers, each with its answer. Write in the"
        " language of the text. Use only what it says. A question must make sense to somebody who has not seen the"
        ' text. Answer with a JSON list and nothing else: [{"question": "…", "answer": "…"}]\n\nText:\n'
    )
    return [{"role": "user", "content": words + passage}]


def found_in(answer: str) -> list[tuple[str, str]]:
    """The `(question, answer)` pairs in what a model wrote: a JSON list, its objects alone, or lines that begin with
    `Q:` and `A:`. Nothing where there are none."""
    answer = answer[: MOST_PAIRS * (QUESTION + ANSWER) * 2]
    found = _in_json(answer) or _in_lines(answer)
    pairs = [(question.strip()[:QUESTION], right.strip()[:ANSWER]) for question, right in found]
    return [pair for pair in dict.fromkeys(pairs) if all(pair)][:MOST_PAIRS]


def _in_json(answer: str) -> list[tuple[str, str]]:
    begin, end = answer.find("["), answer.rfind("]")
    texts = [answer[begin : end + 1]] if 0 <= begin < end else []
    texts += re.findall(r"\{[^{}]*\}", answer)  # of a list that was cut off
    pairs: list[tuple[str, str]] = []
    for text in texts:
        try:
            value = files.parse_json(text)
        except UserError:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                pair = item.get("question"), item.get("answer")
                if isinstance(pair[0], str) and isinstance(pair[1], str):
                    pairs.append((pair[0], pair[1]))
        if pairs and value is not None and isinstance(value, list):
            break
    return pairs


_LINE = re.compile(r"^\W*(?:(q|question|问题?)|(a|answer|答案?))\s*\d*\s*[:：]\s*(.*)$", re.I)


def _in_lines(answer: str) -> list[tuple[str, str]]:
    pairs: list[list[str]] = []
    for line in answer.splitlines():
        match = _LINE.match(line[:QUESTION])
        if match and match[1]:
            pairs.append([match[3], ""])
        elif match and pairs:
            pairs[-1][1] = line.split(match[0][: match.start(3)], 1)[-1]
        elif pairs and pairs[-1][1]:
            pairs[-1][1] += f"\n{line}"
    return [(question, right) for question, right in pairs]


def keep(workspace: Workspace, source: str, question: str, answer: str, *, beside: Path = BUNDLED) -> tuple[str, int]:
    """Put a pair into the dataset of those about `source`: `(its name, how many it has)`.

    Raises:
        UserError: one of the two is empty, or nothing can be written.
    """
    workspace.check_writable()
    question, answer = question.strip(), answer.strip()
    if not question or not answer:
        raise UserError("pair_incomplete")
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    line = json.dumps({"messages": turns}, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"
    name = f"{slug(Path(source).name.split('.')[0])}-qa"
    workspace.uploads.mkdir(parents=True, exist_ok=True)
    with locked(workspace.uploads / f".{name}.lock"):
        path = _own_file(workspace, name)
        if path is not None:
            old = files.read_text(path)
            old += "\n" if old and not old.endswith("\n") else ""
            write_atomically(path, old + line)  # anew, so that a full disk or a crash leaves the old one
            return name, old.count("\n") + 1
        with tempfile.TemporaryDirectory(prefix=".new-", dir=workspace.uploads) as folder:
            first = Path(folder) / f"{name}.jsonl"
            first.write_text(line, encoding="utf-8")
            return add_file(workspace, first, first.name, name, beside=beside)[0], 1


def _own_file(workspace: Workspace, name: str) -> Path | None:
    """The file of a dataset of the workspace that pairs can be put into."""
    try:
        known = read_registry(workspace.uploads, workspace).get(name)
    except UserError:
        return None
    usable = known is not None and known.path is not None and known.path.suffix == ".jsonl" and known.path.is_file()
    return known.path if known is not None and usable else None
