"""Tokenized rows kept in a folder (`tokenized_path`), in the form of `datasets`: `train`, and `validation` if there is
one. LLaMA-Factory's are read, too."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.storage.workspace import Workspace, expanded

_COLUMNS = ("input_ids", "labels")


def tokenized_folder(config: RunConfig, workspace: Workspace) -> Path | None:
    """Where `tokenized_path` is; a relative one lies in the workspace."""
    return workspace.root / expanded(config.tokenized_path, "tokenized_path") if config.tokenized_path else None


def is_tokenized(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_tokenized(folder: Path, vocabulary: int, log: Callable[[str], None]):
    """`(training rows, evaluation rows or None)` of a folder.

    Args:
        vocabulary: tokens of the model.

    Raises:
        UserError: the folder holds something else, or tokens that the model does not have.
    """
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # of a file that says what the library does not expect
        raise UserError("tokenized_unreadable", folder=folder, problem=" ".join(str(error).split())[:300]) from None
    parts = found if isinstance(found, DatasetDict) else {"train": found}
    rows, held_out = parts.get("train"), parts.get("validation")
    if not isinstance(rows, Dataset) or not len(rows):
        raise UserError("tokenized_empty", folder=folder)
    read = [_checked(part, folder, vocabulary) for part in (rows, held_out) if part is not None]
    log(f"Tokenized rows are read from {folder}: {len(rows):,} rows. The datasets and their options are not looked at.")
    return read[0], read[1] if len(read) > 1 else None


def _checked(rows, folder: Path, vocabulary: int):
    from pyarrow import compute

    if missing := [name for name in _COLUMNS if name not in rows.column_names]:
        raise UserError("tokenized_columns", folder=folder, missing=missing, columns=rows.column_names)
    if "position_ids" in rows.column_names:
        raise UserError("tokenized_packed", folder=folder)
    for batch in rows.with_format("arrow").iter(10_000):
        lengths = [compute.list_value_length(batch[name]) for name in _COLUMNS]
        ids, labels = (compute.list_flatten(batch[name]) for name in _COLUMNS)
        if lengths[0] != lengths[1]:
            raise UserError("tokenized_lengths", folder=folder)
        for values, least in ((ids, 0), (labels, -100)):
            bounds = compute.min_max(values).as_py() if len(values) else {"min": 0, "max": 0}
            if not least <= bounds["min"] <= bounds["max"] < vocabulary:
                raise UserError("tokenized_vocabulary", folder=folder, count=vocabulary)
        if "attention_mask" in batch.column_names:
            mask = compute.list_flatten(batch["attention_mask"])
            if len(mask) and compute.max(mask).as_py() > 1:
                raise UserError("tokenized_packed", folder=folder)
    return rows.select_columns(list(_COLUMNS))


def write_tokenized(folder: Path, rows, held_out, log: Callable[[str], None]) -> None:
    """Keep rows for later runs; the folder appears whole. Raises UserError: it cannot be written."""
    from datasets import DatasetDict

    parts = DatasetDict({"train": rows} | ({"validation": held_out} if held_out is not None else {}))
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        parts.save_to_disk(str(partial))
        partial.rename(folder)
    except OSError as error:
        raise UserError("tokenized_unwritten", folder=folder, reason=error.strerror or error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log(f"The tokenized rows are kept in {folder}; runs with this tokenized_path start from them.")
