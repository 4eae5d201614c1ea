"""`train_dataset` of LLaMA-Factory's v1 form: a data file, a dataset of a hub, or a YAML file of several."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workbench.config.run_config import parse_yaml
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

_PAIRS = re.compile(r"(^|[^a-z])(dpo|rm)([^a-z]|$)")


@dataclass
class Datasets:
    """What a `train_dataset` comes to.

    Attributes:
        options: of ours.
        left_out: `(key, value, why, whether something is lost)`.
        pairs: whether the rows are known to be pairs of answers.
    """

    options: dict[str, Any] = field(default_factory=dict)
    left_out: list[tuple[str, Any, Message, bool]] = field(default_factory=list)
    pairs: bool = False


def datasets_of(name, read: Callable[[str], str | None]) -> Datasets:
    """What `train_dataset: name` means. `read` as in `llamafactory_v1.fill`.

    Raises:
        UserError: it is no name, or the file is none of datasets.
    """
    if not isinstance(name, str):
        raise UserError("import_v1_group", key="train_dataset", value=files.shown(name, 80))
    found = Datasets({"dataset": name}, pairs=bool(_PAIRS.search(name.lower())))
    if not name.endswith((".yaml", ".yml")):
        return found
    text = read(name)
    if text is None:
        found.options["dataset"] = re.split(r"[/\\]", name)[-1].rpartition(".")[0]
        found.left_out.append(("train_dataset", name, Message("why_v1_datasets"), False))
        return found
    drawn = []
    for key, entry in parse_yaml(text, where=name).items():
        if not isinstance(entry, dict) or not entry.get("path"):
            raise UserError("import_v1_group", key=f"{name}: {key}", value=files.shown(entry, 80))
        drawn.append((str(entry["path"]), entry.get("size")))
        found.pairs = found.pairs or entry.get("converter") == "pair"
        if entry.get("weight") is not None:
            found.left_out.append((f"{key}.weight", entry["weight"], Message("why_v1_drawn"), True))
        if entry.get("split", "train") != "train":
            found.left_out.append((f"{key}.split", entry["split"], Message("why_v1_split"), True))
        if entry.get("streaming"):
            found.options["streaming"] = True
    found.options["dataset"] = ",".join(path for path, _ in drawn)
    sizes = [size for _, size in drawn if size]
    if sizes and all(size == sizes[0] for size in sizes) and _others_are_smaller(drawn, sizes[0], read):
        found.options["max_samples"] = sizes[0]
        found.left_out.append(("size", sizes[0], Message("why_v1_size"), False))
    elif sizes:
        found.left_out.append(("size", ", ".join(str(size) for _, size in drawn), Message("why_v1_drawn"), True))
    return found


def _others_are_smaller(drawn: list[tuple[str, Any]], size, read: Callable[[str], str | None]) -> bool:
    """Whether datasets of which all rows are used have no more than those of which some are: one limit fits all."""
    return all(own or 0 < _rows(path, read) <= (size if isinstance(size, int) else 0) for path, own in drawn)


def _rows(path: str, read: Callable[[str], str | None]) -> int:
    """Rows of a JSON file that can be read; 0 where they cannot be counted."""
    try:
        text = read(path) if path.endswith((".json", ".jsonl")) else None
        rows = json.loads(text) if text and path.endswith(".json") else (text or "").split("\n")
    except (UserError, ValueError, RecursionError):
        return 0
    return sum(bool(row) for row in rows) if isinstance(rows, list) else 0
