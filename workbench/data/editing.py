"""Datasets of the workspace: taken in, copied, split, their rows changed. What lies outside it is never written to.

They live in `uploads/` with a `dataset_info.json` of their own. Files are written beside and moved into place, so that
a crash or a full disk leaves the old ones.
"""

import contextlib
import errno
import itertools
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from workbench.data.dataset import raw_rows, with_layout
from workbench.data.encodings import WrongEncoding
from workbench.data.formats import to_example
from workbench.data.readers import BadRow, Raw, kind_of, named, parse_line, pieces
from workbench.data.registry import (
    COLUMNS,
    OPENAI_TAGS,
    SHAREGPT_TAGS,
    DatasetInfo,
    read_entry,
    read_registry,
    registries,
)
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files
from workbench.storage.files import open_regular, write_atomically
from workbench.storage.locks import locked
from workbench.storage.workspace import PROJECT, Workspace, slug

Progress = Callable[[str, float], None]
_LOOK = 200  # rows by which a file is judged
BUNDLED = PROJECT / "data"
_ORIGINALS = ".originals"


def add_file(
    workspace: Workspace, path: Path, file_name: str = "", name: str = "", *, beside: Path = BUNDLED
) -> tuple[str, str, str]:
    """Move a data file into the workspace; returns its new dataset's name, its layout (empty if that has still to be
    said), and the encoding that it is read as (empty for UTF-8).

    Args:
        file_name: what the file was called where it comes from.
        name: of the dataset; the file's if not given.
        beside: the dataset folder in use, whose names would hide the new one.

    Raises:
        UserError: not a data file, no row in its beginning is an object, or no room.
    """
    workspace.check_writable()
    file_name = Path(file_name or path.name).name
    kind = kind_of(Path(file_name)) + (".gz" if file_name.lower().endswith(".gz") else "")
    stem = file_name[: -len(kind)]
    folder = workspace.uploads
    folder.mkdir(parents=True, exist_ok=True)
    with _room(folder):
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        moved = aside / file_name  # looked at under its own name
        with _room(folder):
            shutil.move(path, moved)
        encoding = ""
        try:
            _refuse_without_rows(DatasetInfo(stem, moved))
        except WrongEncoding as error:  # it is read as what it looks like; its layout says so, and can be changed
            encoding = error.encoding
            _refuse_without_rows(DatasetInfo(stem, moved, encoding=encoding))
        with locked(folder / ".lock"):
            name = new_name(workspace, name or stem, beside=beside)
            target = folder / f"{name}{kind}"
            os.replace(moved, target)
            try:
                _register(folder, name, {"file_name": target.name} | ({"encoding": encoding} if encoding else {}))
            except (UserError, OSError):
                target.unlink(missing_ok=True)
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    try:
        formatting = with_layout(DatasetInfo(name, target, encoding=encoding)).formatting
    except UserError:
        formatting = ""
    return name, formatting, encoding


def new_name(workspace: Workspace, wanted: str, suffix: str = "", *, beside: Path = BUNDLED) -> str:
    """A dataset name like `wanted` (shortened, with `suffix`) that no other dataset has."""
    base, number = (
        slug(re.sub("[.,]", "-", wanted)),
        1,
    )  # no dots: a file belongs to the dataset of its name up to the first
    taken = {file.name.split(".")[0] for file in workspace.uploads.glob("*")}
    for folder in {BUNDLED, beside}:
        with contextlib.suppress(UserError):
            taken |= set(registries(folder, workspace))
    name = base + suffix
    while name in taken:
        number += 1
        name = f"{base}{suffix}-{number}"
    return name


def home_of(name: str, workspace: Workspace, shown: Path | None = None) -> Path:
    """The folder of the workspace whose dataset `name` is.

    Args:
        shown: the file that the user looks at under this name.

    Raises:
        UserError: it is not the workspace's own, or another dataset of this name hides it.
    """
    for folder in workspace.dataset_folders:
        try:
            known = read_registry(folder, workspace).get(name)
        except UserError:
            continue
        if known is not None and shown not in (None, known.path):
            raise UserError("name_hidden", path=shown)
        if known is not None:
            return folder
    raise UserError("not_of_workspace", name=name)


def is_own(name: str, workspace: Workspace, shown: Path | None = None) -> bool:
    """Whether the workspace holds this dataset, so that it can be changed."""
    try:
        home_of(name, workspace, shown)
    except UserError:
        return False
    return True


def copy(info: DatasetInfo, workspace: Workspace, progress: Progress, *, beside: Path = BUNDLED) -> tuple[str, int]:
    """Write a dataset into the workspace as JSONL, so that its rows can be changed; returns its name, and how many rows
    could not be read."""
    workspace.check_writable()
    folder = workspace.uploads
    folder.mkdir(parents=True, exist_ok=True)
    info, lost = with_layout(info), 0
    with _new_file(folder) as (partial, out):
        for count, raw in enumerate(raw_rows(info), 1):
            line = _line(raw)
            lost += line is None
            if line is not None:
                out.write(line + b"\n")
            if count % 5000 == 0:
                progress(Message("copying_rows", name=info.name, rows=count), _share(raw, info))
        out.close()
        with locked(folder / ".lock"):
            name = new_name(workspace, _stem(info), "-copy", beside=beside)
            os.replace(partial, folder / f"{name}.jsonl")
            _register(folder, name, _entry(info, f"{name}.jsonl"))
    return name, lost


def split_off(
    info: DatasetInfo, share: float, workspace: Workspace, progress: Progress, seed: int = 42, *, beside: Path = BUNDLED
) -> dict:
    """Write two new datasets, `NAME-train` and `NAME-eval`; rows with the same content go to the same side.

    Args:
        share: of the rows that evaluate (below 1), or their number.

    Returns:
        `{"train": (name, rows), "eval": (name, rows), "left_out": rows that are broken}`.

    Raises:
        UserError: one side would be empty.
    """
    workspace.check_writable()
    if not share > 0:
        raise UserError("split_share", share=share)
    info = with_layout(info)
    salt, folder = random.Random(seed).getrandbits(64), workspace.uploads
    digests = []
    for raw, digest in _digested(info):
        digests.append((digest ^ salt) * 0x9E3779B97F4A7C15 % 2**64 if digest is not None else 0)
        if len(digests) % 5000 == 0:
            progress(Message("reading_rows", name=info.name, rows=len(digests)), _share(raw, info) / 2)
    order = np.array(digests, dtype=np.uint64)
    usable = order[order > 0]
    count = int(share) if share >= 1 else max(1, round(len(usable) * share))
    if not 0 < count < len(usable):
        raise UserError("split_leaves_nothing", share=share, rows=len(usable))
    limit = np.partition(usable, count - 1)[count - 1]
    held = int((usable <= limit).sum())
    if held == len(usable):
        raise UserError("split_same_rows")
    folder.mkdir(parents=True, exist_ok=True)
    with _new_file(folder) as (train, to_train), _new_file(folder) as (held_out, to_eval):
        for number, (rank, raw) in enumerate(zip(order, raw_rows(info), strict=False)):
            if rank:
                (to_eval if rank <= limit else to_train).write((_line(raw) or b"") + b"\n")
            if number % 5000 == 4999:
                progress(Message("writing_rows", name=info.name, rows=number + 1), 0.5 + _share(raw, info) / 2)
        to_train.close()
        to_eval.close()
        with locked(folder / ".lock"):
            names = {}
            for side, partial in (("train", train), ("eval", held_out)):
                names[side] = new_name(workspace, _stem(info), f"-{side}", beside=beside)
                os.replace(partial, folder / f"{names[side]}.jsonl")
                _register(folder, names[side], _entry(info, f"{names[side]}.jsonl"))
    return {
        "train": (names["train"], len(usable) - held),
        "eval": (names["eval"], held),
        "left_out": len(order) - len(usable),
    }


def change_rows(
    workspace: Workspace, name: str, changes: dict[int, tuple[str, str | None]], shown: Path | None = None
) -> int:
    """Edit or delete rows of a dataset of the workspace; one that is not JSONL becomes a JSONL file first.

    Args:
        changes: row number (from 1 on) -> (the row as it was when it was looked at, the row as it should be or None to
            delete it).
        shown: as for `home_of`.

    Returns:
        the number of rows that are left.

    Raises:
        UserError: a new row is broken, or a row is not any more what it was.
    """
    workspace.check_writable()
    folder = home_of(name, workspace, shown)
    info = with_layout(read_registry(folder, workspace)[name].check())
    if info.file.is_dir() or kind_of(info.file) != ".jsonl" or info.file.name.lower().endswith(".gz") or info.encoding:
        info = _as_lines(folder, info, workspace)
    fresh = {row: None if text is None else _checked(text, info, row) for row, (_, text) in changes.items()}
    number = kept = 0
    with _new_file(folder) as (partial, out), open_regular(info.file) as file:
        version = _version(info.file)
        for line, size in pieces(file):
            number += line is None or bool(line.strip())
            if line is None:
                raise UserError("row_too_large_to_change", row=number, name=name, size=size >> 20)
            row = line.strip()
            if not row:
                continue
            if number in changes:
                if row.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace") != changes[number][0]:
                    raise UserError("row_changed", row=number, name=name)
                changed = fresh[number]
                if changed is None:
                    continue
                row = changed
            kept += 1
            out.write(row + b"\n")
        if missing := [row for row in changes if row > number]:
            raise UserError("row_missing_of", name=name, rows=number, row=missing[0])
        if not kept:
            raise UserError("all_rows", name=name)
        out.close()
        with locked(folder / ".lock"):
            _unchanged(name, info.file, version)
            os.replace(partial, info.file)
    return kept


def set_layout(
    workspace: Workspace,
    name: str,
    formatting: str,
    ranking: bool,
    columns: dict,
    tags: dict,
    shown: Path | None = None,
    encoding: str = "",
) -> str:
    """Say how the rows of a dataset of the workspace are laid out (`formatting` empty: its fields tell); returns the
    layout.

    Raises:
        UserError: an unknown layout, column and role names that are not texts, or none of the first rows can be read
            so.
    """
    workspace.check_writable()
    folder = home_of(name, workspace, shown)
    layout = {"formatting": formatting, "ranking": ranking, "columns": columns, "tags": tags}
    layout["encoding"] = encoding
    entry = {key: value for key, value in (_entries(folder)[name] | layout).items() if value}
    info = with_layout(read_entry(name, entry, folder, workspace).check())
    _refuse_without_rows(info, formatting)
    with locked(folder / ".lock"):
        now = _entries(folder).get(name)
        if now is None or now.get("file_name") != entry.get("file_name"):
            raise UserError("dataset_changed", name=name)
        _register(folder, name, entry)
    return info.formatting


def remove(workspace: Workspace, name: str, shown: Path | None = None) -> None:
    """Delete a dataset of the workspace with its file."""
    workspace.check_writable()
    folder = home_of(name, workspace, shown)
    with locked(folder / ".lock"):
        path = read_registry(folder, workspace)[name].path
        _register(folder, name, None)
        if path and path.parent == folder and path.is_file():
            path.unlink()
        for original in (folder / _ORIGINALS).glob("*"):
            if original.name.split(".")[0] == name:
                original.unlink()


# --- details


def _version(path: Path) -> tuple:
    """Something that changes when a file does."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _unchanged(name: str, path: Path, version: tuple) -> None:
    """Raise UserError if somebody else has changed the file while it was read."""
    try:
        if _version(path) == version:
            return
    except OSError:
        pass
    raise UserError("dataset_changed_meanwhile", name=name)


def _refuse_without_rows(info: DatasetInfo, formatting: str = "") -> None:
    """Raise UserError if none of the first rows is an object, or (with `formatting`) can be read as one of that
    layout."""
    reason = ""
    for raw in itertools.islice(raw_rows(info), _LOOK):
        try:
            row = raw.row()
            if formatting:
                to_example(row, info)
            return
        except BadRow as bad:
            reason = reason or Message("at_place", place=raw.place, problem=bad.message)
    if formatting:
        raise UserError("none_readable_as", formatting=formatting, reason=reason)
    raise UserError("none_usable", reason=reason)


def _entries(folder: Path) -> dict:
    file = folder / "dataset_info.json"
    if not file.is_file():
        return {}
    read_registry(folder)  # says what is wrong with it, if anything is
    return files.read_object(file)


def _register(folder: Path, name: str, entry: dict | None) -> None:
    entries = _entries(folder)
    entries.pop(name, None)
    if entry is not None:
        entries[name] = entry
    write_atomically(folder / "dataset_info.json", json.dumps(entries, ensure_ascii=False, indent=2))


def _entry(info: DatasetInfo, file_name: str) -> dict:
    """The entry of a dataset with the rows of `info` in another file; what is the default is left out."""
    named = "" in info.columns.values()  # then the others have to be named, too: what is not, is none
    columns = {
        key: value
        for key, value in info.columns.items()
        if value and (named or COLUMNS[info.formatting].get(key) != value)
    }
    usual = OPENAI_TAGS if info.formatting == "openai" else SHAREGPT_TAGS
    tags = {key: value for key, value in info.tags.items() if value and usual.get(key) != value}
    entry = {
        "file_name": file_name,
        "formatting": info.formatting,
        "ranking": info.ranking,
        "columns": columns,
        "tags": tags,
    }
    return {key: value for key, value in entry.items() if value}


def _line(raw: Raw) -> bytes | None:
    """A row as a line of JSON, or None if it could not be read. A line is left as it is, even where it is broken."""
    if isinstance(raw.data, bytes):
        return raw.data
    if isinstance(raw.data, BadRow):
        return None
    try:
        return json.dumps(raw.data, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8: what they should be, nobody knows
        return None


def _stem(info: DatasetInfo) -> str:
    return Path(info.name).name.split(".")[0]


def _digested(info: DatasetInfo) -> Iterator[tuple[Raw, int | None]]:
    """`(row, digest of its content)`, None for broken ones."""
    for raw in raw_rows(info):
        try:
            yield raw, to_example(raw.row(), info).digest()
        except BadRow:
            yield raw, None


def _share(raw: Raw, info: DatasetInfo) -> float:
    if raw.offset < 0 or not info.path or not info.file.is_file():
        return 0.0
    return min(1.0, raw.offset / max(1, info.file.stat().st_size))


def _checked(text: str, info: DatasetInfo, row: int) -> bytes:
    """A new row as a line. Raises UserError with what is wrong with it."""
    try:
        parse_line(text.strip().encode("utf-8", "surrogatepass"))
        value = json.loads(text)  # which keeps long numbers as they are
        if not isinstance(value, dict):
            raise BadRow("type", "row_not_object", kind=named(value))
        to_example(value, info)
    except BadRow as bad:
        raise UserError("row_not_saved", row=row, reason=bad.message) from None
    except ValueError as error:
        raise UserError("row_not_saved", row=row, reason=Message("value_not_json", problem=error)) from None
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _as_lines(folder: Path, info: DatasetInfo, workspace: Workspace) -> DatasetInfo:
    """A dataset of the workspace as a JSONL file of its own; the file that it was stays in `.originals`, until the
    dataset is removed."""
    target, old = folder / f"{info.name}.jsonl", info.file
    with _new_file(folder) as (partial, out):
        version = _version(old)
        for raw in raw_rows(info):
            line = _line(raw)
            if line is None:
                why = raw.data.message if isinstance(raw.data, BadRow) else Message("place_not_utf8")
                raise UserError("rows_fixed", place=raw.place, reason=why)
            out.write(line + b"\n")
        out.close()
        with locked(folder / ".lock"):
            _unchanged(info.name, old, version)
            os.replace(partial, target)
            _register(folder, info.name, _entry(info, target.name))
            if old.parent == folder and old.is_file() and old != target:
                (folder / _ORIGINALS).mkdir(exist_ok=True)
                os.replace(old, folder / _ORIGINALS / old.name)
    return replace(info, path=target, encoding="")


@contextlib.contextmanager
def _new_file(folder: Path):
    """`(path, file)` of a file that is gone at the end unless it was moved."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    with _room(folder):
        try:
            with os.fdopen(handle, "wb") as out:
                os.chmod(name, 0o644)
                yield Path(name), out
        finally:
            Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _room(folder: Path):
    """Turn a full disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError("disk_full_data", folder=folder) from None
        raise
