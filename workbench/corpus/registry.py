"""`dataset_info.json` as LLaMA-Factory writes it: names of datasets, their files, columns and role names."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from workbench.config import nearest, split_names
from workbench.errors import UserError
from workbench.workspace import Workspace

ALPACA = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
}
SHAREGPT = {"messages": "conversations", "system": "system", "tools": "tools"}
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


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset: `path` of its file, or `hub` (a Hugging Face id); how its rows are laid out."""

    name: str
    path: Path | None
    hub: str | None = None
    formatting: str = "alpaca"
    columns: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    subset: str | None = None
    split: str = "train"
    num_samples: int | None = None
    problem: str = ""

    def check(self) -> "DatasetInfo":
        """Itself. Raises UserError when it cannot be read."""
        if self.problem:
            raise UserError(f"Dataset {self.name}: {self.problem}")
        return self


def read_registry(folder: Path) -> dict[str, DatasetInfo]:
    """All datasets of a folder; those that cannot be read carry the reason in `problem`.

    Raises:
        UserError: dataset_info.json is missing or broken.
    """
    file = Path(folder) / "dataset_info.json"
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no dataset_info.json. Write one as docs/datasets.md describes, or set dataset_dir."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON, line {error.lineno}: {error.msg}.") from None
    if not isinstance(entries, dict):
        raise UserError(f"{file} should hold an object with one entry per dataset.")
    return {name: _entry(name, entry, Path(folder)) for name, entry in entries.items()}


def _entry(name: str, entry, folder: Path) -> DatasetInfo:
    if not isinstance(entry, dict):
        return DatasetInfo(name, None, problem="its entry in dataset_info.json should be an object.")
    if entry.get("ranking"):
        return DatasetInfo(name, None, problem="it holds preference pairs, which this version cannot train on.")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        return DatasetInfo(
            name, None, problem=f"formatting '{formatting}' is unknown. It can be alpaca, sharegpt or openai."
        )
    # unnamed columns keep their defaults, so that naming one does not lose the others
    columns, tags = (ALPACA, {}) if formatting == "alpaca" else (SHAREGPT, SHAREGPT_TAGS)
    if formatting == "openai":
        columns, tags = SHAREGPT | {"messages": "messages"}, OPENAI_TAGS
    path, hub, problem = None, None, ""
    if entry.get("file_name"):
        path = (folder / str(entry["file_name"])).resolve()
        if not path.is_file():
            problem = f"the file {path} does not exist. Put it there, or correct file_name in dataset_info.json."
    elif entry.get("hf_hub_url"):
        hub = str(entry["hf_hub_url"])
    else:
        problem = "its entry names no file_name and no hf_hub_url."
    return DatasetInfo(
        name=name, path=path, hub=hub, formatting=formatting, columns=columns | (entry.get("columns") or {}),
        tags=tags | (entry.get("tags") or {}), subset=entry.get("subset"), split=entry.get("split", "train"),
        num_samples=entry.get("num_samples"), problem=problem,
    )  # fmt: skip


def registries(folder: Path, workspace: Workspace | None) -> dict[str, DatasetInfo]:
    """The datasets of a folder, and behind them those of the workspace (corrections, uploads) whose names are not taken.

    Raises:
        UserError: the folder's dataset_info.json is missing or broken. One of the workspace's that is broken is left out.
    """
    found = read_registry(folder)
    for other in workspace.dataset_folders if workspace else ():
        if (other / "dataset_info.json").is_file():
            try:
                found = read_registry(other) | found
            except UserError as error:
                found.setdefault(other.name, DatasetInfo(other.name, None, problem=str(error)))
    return found


def select(names: str, folder: Path, workspace: Workspace | None = None) -> list[DatasetInfo]:
    """The named datasets (comma-separated), each known and readable. Raises UserError."""
    registry = registries(folder, workspace)
    chosen = []
    for name in split_names(names):
        if name not in registry:
            raise UserError(
                f"There is no dataset '{name}' in {folder / 'dataset_info.json'}.{nearest(name, registry)} "
                f"It has: {', '.join(registry) or 'none'}."
            )
        chosen.append(registry[name].check())
    return chosen
