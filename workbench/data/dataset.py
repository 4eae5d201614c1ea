"""The rows of a dataset, wherever it lies: files, folders, hubs. And its layout, told from its first rows."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from workbench.data.formats import Example, detect, to_example
from workbench.data.hub_datasets import dataset_rows
from workbench.data.readers import BadRow, Raw, arrow_row, files_of, read_file
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError

_LOOK = 50  # rows from which a layout is told
_MOST_NAMED = 50  # columns that are not used


def raw_rows(info: DatasetInfo) -> Iterator[Raw]:
    """Every row of a dataset as it was found.

    Raises:
        UserError: it cannot be read at all, or has no rows.
    """
    info.check()
    if info.path is None:
        rows = dataset_rows(info)
        rows_found: Iterator[Raw] = (
            Raw(f"{info.hub or info.ms_hub}:{number}", arrow_row(row)) for number, row in enumerate(rows, 1)
        )
    else:
        rows_found = itertools.chain.from_iterable(file_rows(info, file) for file in data_files(info))
    first: Raw | None = next(rows_found, None)
    if first is None:
        raise UserError("dataset_no_rows", name=info.path.name if info.path else info.name)
    return itertools.chain([first], rows_found)


def data_files(info: DatasetInfo) -> list[Path]:
    """The files of a dataset. Raises UserError: there is none, or one lies where this dataset's may not."""
    files = files_of(info.file, info.split)
    for file in files if info.within else ():
        target = file.resolve()
        if not any(target.is_relative_to(root) for root in info.within):
            raise UserError("dataset_link", name=info.name, file=file.name)
    return files


def file_rows(info: DatasetInfo, file: Path, offset: int = 0, line: int = 1) -> Iterator[Raw]:
    """Rows of one file of a dataset, as `read_file` gives them; of a folder's subfolders with their path, as names may
    come twice there."""
    rows = read_file(file, offset, line, info.encoding)
    inside = "" if file == info.path else file.relative_to(info.file).parent.as_posix()
    if inside in ("", "."):
        return rows
    return (replace(raw, place=f"{inside}/{raw.place}") for raw in rows)


def with_layout(info: DatasetInfo) -> DatasetInfo:
    """`info` with the layout of its rows.

    Raises:
        UserError: it cannot be read, or its layout is not known.
    """
    for raw in itertools.islice(raw_rows(info), _LOOK):
        try:
            return detect(raw.row(), info)
        except BadRow:
            continue
    return detect({}, info)


def unused_columns(info: DatasetInfo) -> list[str]:
    """Columns of a dataset's first rows that its layout does not use, in their order. Raises UserError."""
    info = with_layout(info)
    unused: dict[str, None] = {}
    used = {name for name in info.columns.values() if name}
    if info.ranking and info.formatting == "prompt_completion":
        used.add("messages")  # repeats the chosen answer
    for raw in itertools.islice(raw_rows(info), _LOOK):
        try:
            unused |= {str(name): None for name, value in raw.row().items() if value is not None and name not in used}
        except BadRow:
            continue
    return list(unused)[:_MOST_NAMED]


def examples(info: DatasetInfo) -> Iterator[tuple[str, Example]]:
    """`(place, example)` of every row.

    Raises:
        UserError: it cannot be read, or a row is broken (its place and the reason).
    """
    info = with_layout(info)
    for raw in raw_rows(info):
        try:
            yield raw.place, to_example(raw.row(), info)
        except BadRow as bad:
            raise UserError("at_place", place=raw.place, problem=bad.message) from None
