"""What is known of a run's rows before it starts: counted by an earlier run of the same data, or bounded by their
bytes. No tokenizer here: milliseconds, and again only when a file has changed."""

import json
from dataclasses import dataclass
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.data.dataset import data_files
from workbench.data.registry import DatasetInfo, select
from workbench.errors import UserError
from workbench.models.cost.batch import Rows
from workbench.runs.run import Listed, list_states
from workbench.storage import files
from workbench.storage.workspace import Workspace, dataset_folder

MAX_LINES = 64 << 20  # bytes of a file of lines that is looked through
MAX_JSON = 2 << 20  # bytes of a JSON file that is read
LISTED = 200  # runs that are looked at for the same data
_TEMPLATE = 64  # tokens that a chat template adds to a row
_SAME = ("stage", "cutoff_len", "template", "max_samples", "train_on_prompt", "mask_history", "enable_thinking")


@dataclass(frozen=True)
class _Bytes:
    """Of a file: its rows, their bytes in all, and those of the longest."""

    rows: int
    total: int
    longest: int


_looked: dict[tuple[str, int, int], _Bytes | None] = {}


def rows_of(config: RunConfig, workspace: Workspace) -> Rows:
    """What is known of the rows that a run trains on; an empty `Rows` where nothing is."""
    try:
        infos = select(config.dataset or "", dataset_folder(config.dataset_dir, workspace), workspace)
        paths = [path for info in infos for path in _files(info)]
    except (UserError, OSError):
        return Rows()
    if counted := _counted(config, infos, paths, workspace):
        return _without_evaluation(counted, config)
    if not infos or any(info.path is None for info in infos):
        return Rows()
    found = [_bytes_of(path) for path in paths]
    if not found or any(one is None for one in found):
        return Rows()
    known = [one for one in found if one is not None]
    count = sum(one.rows for one in known)
    longest = max(one.longest for one in known) + _TEMPLATE
    together = 2 if config.preferences else 1  # conversations of a row, each up to the cutoff
    cut = config.cutoff_len * together or longest
    tokens = min(sum(one.total for one in known) + count * _TEMPLATE, count * min(longest, cut))
    if config.max_samples and config.max_samples < count:
        tokens, count = min(tokens, config.max_samples * min(longest, cut)), config.max_samples
    return _without_evaluation(Rows(count, tokens, longest, "bytes"), config)


def _files(info: DatasetInfo) -> list[Path]:
    return data_files(info) if info.path is not None else []


def _without_evaluation(rows: Rows, config: RunConfig) -> Rows:
    """Less the rows that are held back for evaluation."""
    if not config.val_size or not rows.count:
        return rows
    held = int(rows.count * config.val_size) if config.val_size < 1 else int(config.val_size)
    left = max(1, rows.count - held)
    return Rows(left, int(rows.tokens * left / rows.count), rows.longest, rows.source, rows.uniform)


def _counted(config: RunConfig, infos: list[DatasetInfo], paths: list[Path], workspace: Workspace) -> Rows | None:
    """From the newest run that read the same data in the same way and whose files have not changed since."""
    names = {info.name for info in infos}
    if not names:
        return None
    changed = max((path.stat().st_mtime for path in paths), default=0.0)
    defaults = RunConfig.model_fields
    for item in list_states(workspace)[:LISTED]:
        if item.state.created < changed:
            continue
        values, data = _read(item)
        if values.get("model_name_or_path") != config.model_name_or_path:
            continue
        if any(values.get(key, defaults[key].get_default()) != getattr(config, key) for key in _SAME):
            continue
        told = [one for name in names if isinstance(one := data.get(name), dict) and one.get("longest")]
        if len(told) < len(names):
            continue
        try:
            kept, tokens = (sum(int(one.get(key) or 0) for one in told) for key in ("kept", "tokens"))
            longest = max(int(one["longest"]) for one in told)
        except (TypeError, ValueError):
            continue
        return Rows(kept, tokens, longest, "counted", uniform=kept > 0 and tokens == kept * longest)
    return None


_known: dict[str, tuple[int, tuple[dict, dict]]] = {}


def _read(item: Listed) -> tuple[dict, dict]:
    """Options of a run, and what its data came to; read again only when the run has changed."""
    key = str(item.run.path)
    kept = _known.get(key)
    if kept is None or kept[0] != item.changed:
        try:
            data = files.read_object(item.run.path / "data.json")
        except (OSError, UserError):
            data = {}
        kept = item.changed, (item.run.config_values(), data)
        if len(_known) > 5 * LISTED:
            _known.clear()
        _known[key] = kept
    return kept[1]


def _bytes_of(path: Path) -> _Bytes | None:
    """Rows of a file by their bytes; None for other kinds of files, and for large ones."""
    stat = path.stat()
    key = str(path), stat.st_size, stat.st_mtime_ns
    if key not in _looked:
        if len(_looked) > 500:
            _looked.clear()
        _looked[key] = _look(path, stat.st_size)
    return _looked[key]


def _look(path: Path, size: int) -> _Bytes | None:
    if path.suffix == ".jsonl" and size <= MAX_LINES:
        count = total = longest = 0
        with files.open_regular(path) as opened:
            for line in opened:
                if length := len(line.strip()):
                    count, total, longest = count + 1, total + length, max(longest, length)
        return _Bytes(count, total, longest)
    if path.suffix == ".json" and size <= MAX_JSON:
        try:
            rows = files.parse_json(files.read_text(path, MAX_JSON), path.name)
        except (OSError, UserError):
            return None
        if not isinstance(rows, list):
            return None
        lengths = [len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) for row in rows]
        return _Bytes(len(lengths), sum(lengths), max(lengths, default=0))
    return None
