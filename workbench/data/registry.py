"""`dataset_info.json` as LLaMA-Factory writes it: names of datasets, their files, columns and role names."""

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from workbench.config.option import split_names
from workbench.config.run_config import nearest
from workbench.data.encodings import ENCODINGS
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files
from workbench.storage.workspace import Workspace, expanded

_PAIR = {"chosen": "chosen", "rejected": "rejected", "tools": "tools", "system": "system"}
COLUMNS = {
    "alpaca": _PAIR | {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "sharegpt": _PAIR | {"messages": "conversations"},
    "openai": _PAIR | {"messages": "messages"},
    "prompt_completion": _PAIR | {"prompt": "prompt", "response": "completion"},
    "text": {"text": "text"},
}
FORMATTINGS = tuple(COLUMNS)
SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = SHAREGPT_TAGS | {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
}

MAX_REGISTRY = 8 << 20  # bytes of a dataset_info.json
MAX_DATASETS = 10_000


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset: `path` of its file or folder, or its name on a hub; how its rows are laid out.

    `formatting` is empty where the rows are to tell (see `formats.detect`). `columns` and `tags` hold what is not the
    default. `within`: folders that its files may lie in, whatever links say (empty: anywhere). `ranking`: preference
    pairs. `num_samples`: rows that are drawn from it at random. `folder`: a folder within a hub's dataset.
    `encoding`: of its text, where that is not UTF-8.
    """

    name: str
    path: Path | None
    hub: str | None = None
    ms_hub: str | None = None
    formatting: str = ""
    ranking: bool = False
    columns: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    encoding: str = ""
    num_samples: int | None = None
    problem: str = ""
    within: tuple[Path, ...] = ()

    @property
    def file(self) -> Path:
        """The file or folder of a dataset that is not a hub's."""
        if self.path is None:
            raise UserError("dataset_on_hub", name=self.name)
        return self.path

    def check(self) -> "DatasetInfo":
        """Itself. Raises UserError when it cannot be read."""
        if self.problem:
            raise UserError("dataset_problem", name=self.name, problem=self.problem)
        return self


def read_registry(folder: Path, workspace: Workspace | None = None) -> dict[str, DatasetInfo]:
    """All datasets of a folder; those that cannot be read carry the reason in `problem`.

    With a `workspace`, what may have come through the page is held inside it: its own folders' entries always, all
    entries for a page.

    Raises:
        UserError: dataset_info.json is missing or broken.
    """
    file = Path(folder) / "dataset_info.json"
    try:
        entries = files.read_object(file, MAX_REGISTRY)
    except FileNotFoundError:
        raise UserError("registry_missing", folder=folder) from None
    if len(entries) > MAX_DATASETS:
        raise UserError("registry_too_large", file=file, count=len(entries), most=MAX_DATASETS)
    datasets = {}
    for name, entry in entries.items():
        try:
            datasets[name] = read_entry(name, entry, Path(folder), workspace)
        except UserError as error:
            datasets[name] = DatasetInfo(name, None, problem=error.message)
    return datasets


_TYPES = {
    "file_name": str,
    "hf_hub_url": str,
    "ms_hub_url": str,
    "formatting": str,
    "ranking": bool,
    "subset": str,
    "split": str,
    "folder": str,
    "encoding": str,
    "num_samples": int,
    "columns": dict,
    "tags": dict,
    "script_url": str,
    "cloud_file_name": str,
    "om_hub_url": str,
}


def _within(folder: Path, workspace: Workspace | None) -> tuple[Path, ...]:
    """The folders in which the datasets of a registry in `folder` may lie; empty: anywhere."""
    if workspace is None or not (workspace.confined or folder.resolve().is_relative_to(workspace.root)):
        return ()
    return tuple(workspace.allowed)


def _by_its_name(link: Path, target: Path) -> Path:
    """Where a data file is read: its place without links, unless that has lost the name that tells the kind, as the
    blobs of the hub's cache have."""
    return Path(os.path.abspath(link)) if link.suffix and not target.suffix and target.is_file() else target


def read_entry(name: str, entry, folder: Path, workspace: Workspace | None) -> DatasetInfo:
    """One entry of dataset_info.json. Raises UserError with what is wrong with it."""
    if not isinstance(entry, dict):
        raise UserError("entry_not_object")
    values = {key: value for key, value in entry.items() if value is not None}
    for key, kind in _TYPES.items():
        value = values.get(key)
        if key in values and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            names = {str: "a_text", bool: "true_or_false", int: "a_whole_number", dict: "an_object"}
            raise UserError("entry_type", key=key, kind=Message(names[kind]))
    for key in ("columns", "tags"):
        for inner, value in values.get(key, {}).items():
            if value is not None and not isinstance(value, str):
                raise UserError("entry_inner_text", key=key, inner=inner)
    formatting = values.get("formatting", "")
    if formatting and formatting not in FORMATTINGS:
        raise UserError("entry_formatting", value=formatting, known=FORMATTINGS)
    if (encoding := values.get("encoding", "").lower()) and encoding not in ENCODINGS:
        raise UserError("entry_encoding", value=encoding[:40], known=ENCODINGS)
    if values.get("num_samples", 1) < 1:
        raise UserError("entry_samples")
    path, problem, within = None, "", _within(folder, workspace)
    for key in ("hf_hub_url", "ms_hub_url"):
        if key in values and not (_HUB_ANY.fullmatch(values[key]) and ".." not in values[key]):
            raise UserError("entry_hub_name", key=key, value=values[key][:100])
    if (given := values.get("folder")) and (Path(given).is_absolute() or ".." in Path(given).parts):
        raise UserError("entry_folder", value=given[:100])
    if file_name := values.get("file_name"):
        try:
            path = (folder / file_name).resolve()
            if within and not any(path.is_relative_to(root) for root in within):
                raise UserError("entry_outside", file=file_name[:200], parent=path.parent)
            path = _by_its_name(folder / file_name, path)
            if not path.exists():
                problem = Message("entry_file_missing", path=path)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError("entry_file_name", problem=error) from None
    elif not values.get("hf_hub_url") and not values.get("ms_hub_url"):
        other = next((key for key in ("script_url", "cloud_file_name", "om_hub_url") if key in values), "")
        problem = Message("entry_not_supported", key=other) if other else _names_nothing(values)
    return DatasetInfo(
        name=name,
        path=path,
        hub=values.get("hf_hub_url"),
        ms_hub=values.get("ms_hub_url"),
        formatting=formatting,
        ranking=values.get("ranking", False),
        columns={k: v for k, v in values.get("columns", {}).items() if v},
        tags={k: v for k, v in values.get("tags", {}).items() if v},
        subset=values.get("subset"),
        split=values.get("split", "train"),
        folder=values.get("folder"),
        encoding=values.get("encoding", "").lower(),
        num_samples=values.get("num_samples"),
        problem=problem,
        within=within,
    )


def _names_nothing(values: dict) -> Message:
    """That an entry says nowhere where its rows are, and which of its keys nearly do."""
    guesses = [Message("typing_error", key=key) for key in values if key not in _TYPES and nearest(key, list(_TYPES))]
    return Message("entry_names_guesses", guesses=guesses) if guesses else Message("entry_names_nothing")


def registries(folder: Path, workspace: Workspace | None) -> dict[str, DatasetInfo]:
    """The datasets of a folder, and behind them those of the workspace (corrections, uploads) whose names are not
    taken.

    Raises:
        UserError: the folder's dataset_info.json is missing or broken. One of the workspace's that is broken is left
            out.
    """
    datasets = read_registry(folder, workspace)
    for other in workspace.dataset_folders if workspace else ():
        if (other / "dataset_info.json").is_file():
            try:
                datasets = read_registry(other, workspace) | datasets
            except UserError as error:
                datasets.setdefault(other.name, DatasetInfo(other.name, None, problem=error.message))
    return datasets


_HUB_ANY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def select(names: str, folder: Path, workspace: Workspace | None = None) -> list[DatasetInfo]:
    """The named datasets (comma-separated), each known and readable.

    A name that no dataset_info.json has may be a data file or a folder, or else a dataset's name on a hub (`org/name`).

    Raises:
        UserError: no such dataset, or one that cannot be read.
    """
    registry = registries(folder, workspace)
    return [(registry.get(name) or unlisted(name, folder, registry, workspace)).check() for name in split_names(names)]


def unlisted(name: str, folder: Path, known=(), workspace: Workspace | None = None) -> DatasetInfo:
    """A dataset without an entry: a file, a folder, or a hub's dataset. Raises UserError."""
    path = expanded(name, "dataset")
    if ("/" in name or path.suffix) and path.exists():
        if workspace is None or not workspace.confined:
            return DatasetInfo(name, _by_its_name(path, path.resolve()))
        target = workspace.inside(Path.cwd() / path, what="dataset")
        return DatasetInfo(name, _by_its_name(Path.cwd() / path, target), within=tuple(workspace.allowed))
    if _HUB_NAME.fullmatch(name) and not path.suffix:
        return DatasetInfo(name, None, hub=name, ms_hub=name)
    raise UserError(
        "dataset_missing",
        name=name[:200],
        file=folder / "dataset_info.json",
        guess=nearest(name, list(known)),
        known=list(itertools.islice(known, 50)) or Message("none"),
    )
