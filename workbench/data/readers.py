"""Rows of data files, one after the other, each with its place. Nothing here holds a whole file in memory.

A file that is broken in the middle is read on where that is possible: what cannot be read comes as a `Raw` with a
`BadRow`.
"""

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from workbench.data.documents import document_texts
from workbench.data.encodings import as_utf8, check_utf8
from workbench.data.spreadsheet import sheet_rows
from workbench.errors import Told, UserError
from workbench.messages.message import Message
from workbench.storage.files import MAX_NESTING, Unreadable, check_nesting, open_regular

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt", ".xlsx", ".docx")
_CHUNK = 1 << 20
_LONGEST = (
    64 << 20
)  # bytes of a line, characters of a row in a JSON list or a CSV file; what does not end within them is broken
_CELL = 16 << 20  # characters of one cell in a CSV file
_FIELDS = 4096  # of a row
_UNPACKED = 256 << 20  # bytes that any gzip file may unpack to
_RATIO = 200  # times its own size that a larger one may; text comes to about 10
_BATCH = 256  # rows of a Parquet file that are made at a time
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "state.json"}


class BadRow(Told, ValueError):
    """A row that cannot be used, or should be looked at. The message is the reason, `kind` its class (see
    `KINDS_OF_PROBLEMS`)."""

    def __init__(self, kind: str, reason: str, /, **values):
        super().__init__(reason, **values)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as it was found: `data` is a line that is JSON still, a parsed row, or what is wrong. `offset`: byte of a
    line."""

    place: str
    data: bytes | object | BadRow
    offset: int = -1

    def row(self) -> dict:
        """The row. Raises BadRow."""
        value = self.data
        if isinstance(value, BadRow):
            raise value
        if isinstance(value, bytes):
            value = parse_line(value)
        if not isinstance(value, dict):
            raise BadRow("type", "row_not_object", kind=named(value))
        return value


def named(value) -> str:
    """What a JSON value is, in words."""
    names = {
        list: Message("a_list"),
        dict: Message("an_object"),
        str: Message("a_text"),
        int: Message("a_number"),
        float: Message("a_number"),
        bool: Message("true_or_false"),
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def parse_line(line: bytes):
    """A line of JSON. Raises BadRow: not UTF-8, not JSON, or nested too deep."""
    try:
        return _shallow(orjson.loads(line), line)
    except orjson.JSONDecodeError:
        pass  # Python's own parser reads a little more (NaN, lone surrogates) and says better what is wrong
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("utf8", "line_not_utf8_save", byte=error.start + 1) from None
    try:
        return _shallow(json.loads(text), text)
    except json.JSONDecodeError as error:
        raise BadRow("json", "line_not_json", problem=error.msg, column=error.colno) from None
    except RecursionError:
        raise BadRow("json", _DEEP) from None
    except ValueError as error:
        raise BadRow("json", "line_unreadable_json", problem=str(error)[:100]) from None


_DEEP = Message("row_nested_deep", most=MAX_NESTING)


def _shallow(value, text: bytes | str | None = None):
    """`value`. Raises BadRow when it is nested too deep for what comes after."""
    try:
        check_nesting(value, text)
    except Unreadable:
        raise BadRow("json", _DEEP) from None
    return value


def kind_of(path: Path) -> str:
    """The kind of a data file (`.jsonl`, …), also of a gzipped one. Raises UserError."""
    name = path.name.lower().removesuffix(".gz")
    kind = "." + name.rsplit(".", 1)[-1] if "." in name else ""
    if kind not in KINDS:
        raise UserError("kind_unknown", name=path.name)
    return kind


def files_of(path: Path, split: str = "train") -> list[Path]:
    """The data files of a path: itself, or those of a folder and its subfolders, in order of their names.

    Where some files of a folder are named after `split` (as hubs name them: `train.jsonl`,
    `data/train-00000-of-00002.parquet`), only those.

    Raises:
        UserError: nothing to read there.
    """
    if not path.is_dir():
        kind_of(path)
        return [path]
    files = []
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden and file.name not in _NOT_ROWS:
            try:
                kind_of(file)
                files.append(file)
            except UserError:
                continue
    if not files:
        raise UserError("folder_without_data", folder=path)

    def of_split(file: Path) -> bool:
        parts = file.relative_to(path).parts
        return any(re.match(rf"{re.escape(split)}(?![a-zA-Z])", part) for part in parts)

    return [file for file in files if of_split(file)] or files


def read_file(path: Path, offset: int = 0, line: int = 1, encoding: str = "") -> Iterator[Raw]:
    """The rows of one file. A JSONL file can be read from a byte `offset` on, where line `line` begins.

    Raises:
        UserError: the file cannot be opened, or is of an unknown kind.
    """
    kind = kind_of(path)
    readers: dict[str, Callable] = {
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
        ".arrow": _parquet,
        ".feather": _parquet,
        ".txt": _plain,
        ".xlsx": _sheet,
        ".docx": _document,
    }
    reader = readers.get(kind, _lines)
    try:
        with open_regular(path) as plain:
            zipped = path.name.lower().endswith(".gz")
            if zipped and reader in (_parquet, _sheet, _document):
                raise UserError("gzip_of_compressed", name=path.name)
            file: Any = _Unzipped(path, plain) if zipped else plain
            if reader in (_parquet, _sheet, _document):
                yield from reader(path)
                return
            if encoding and encoding != "utf-8":
                file = as_utf8(path, file, encoding)
            elif not encoding and not offset:
                check_utf8(path, file)
            if offset:
                file.seek(offset)
            yield from _lines(path, file, offset, line) if reader is _lines else reader(path, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Raw(path.name, BadRow("json", "gzip_damaged", problem=error))
    except OSError as error:
        raise UserError("file_unreadable", path=path, reason=error.strerror or error) from None


class _Unzipped(gzip.GzipFile):
    """A gzip file that is read as long as it does not grow beyond all measure: a few megabytes can become terabytes."""

    def __init__(self, path: Path, plain: BinaryIO):
        super().__init__(fileobj=plain)
        self._path, self._limit, self._given = path, max(_UNPACKED, _RATIO * os.fstat(plain.fileno()).st_size), 0

    def _count(self, data: bytes) -> bytes:
        self._given += len(data)
        if self._given > self._limit:
            raise UserError("gzip_too_large", name=self._path.name, most=self._limit >> 20, ratio=_RATIO)
        return data

    def read(self, size=-1):
        return self._count(super().read(size if size is not None and size >= 0 else self._limit + 1))

    def read1(self, size=-1):
        return self._count(super().read1(size))

    def readline(self, size=-1):
        return self._count(super().readline(size))

    def seek(self, offset, whence=io.SEEK_SET):
        self._given = min(self._given, offset) if whence == io.SEEK_SET else self._given
        return super().seek(offset, whence)


def pieces(file: BinaryIO) -> Iterator[tuple[bytes | None, int]]:
    """`(line, its bytes)` of a file; None in place of a line of more than `_LONGEST` bytes, which is passed over."""
    while line := file.readline(_LONGEST + 1):
        size = len(line)
        if size <= _LONGEST:
            yield line, size
            continue
        while not line.endswith(b"\n") and (line := file.readline(_CHUNK)):
            size += len(line)
        yield None, size


def _lines(path: Path, file: BinaryIO, offset: int = 0, number: int = 1) -> Iterator[Raw]:
    """One object a line."""
    at = offset or file.tell()
    if not offset and kind_of(path) in (".jsonl", ".ndjson"):
        start = file.read(_CHUNK)
        file.seek(at)
        if start.lstrip()[:1] == b"[" and not _is_list_of_values(start):  # a list in a file of this name
            yield from _json(path, file)
            return
    for line, size in pieces(file):
        if line is None:
            yield Raw(
                f"{path.name}:{number}",
                BadRow("json", "line_too_large", size=size >> 20, most=_LONGEST >> 20),
                at,
            )
        elif stripped := line.strip():
            yield Raw(f"{path.name}:{number}", stripped, at)
        at += size
        number += 1


def _is_list_of_values(start: bytes) -> bool:
    """Whether the first line is a list of its own, and more lines follow: then each line is a (wrong) row."""
    first, _, rest = start.lstrip().partition(b"\n")
    try:
        value = orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)) or bool(
        rest.strip()
    )


class _Text:
    """Text of a file as it is needed; what lies before `at` may be forgotten. Bytes that are not UTF-8 come as lone
    surrogates."""

    def __init__(self, file: BinaryIO):
        self.reader = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        self.buffer, self.at, self.ended = "", 0, False
        self._line, self._counted = 1, 0

    def more(self) -> None:
        """Read on: at least as much again as there is."""
        _ = self.line
        self.buffer = self.buffer[self.at :]
        self.at = self._counted = 0
        fresh = self.reader.read(max(_CHUNK, len(self.buffer)))
        self.ended = not fresh
        self.buffer += fresh

    def skip(self, pattern: re.Pattern) -> str:
        """Move over what matches, and return it."""
        passed = ""
        while True:
            match = pattern.match(self.buffer, self.at)
            assert match, "the patterns match an empty text"
            end = match.end()
            passed += self.buffer[self.at : end]
            self.at = end
            if end < len(self.buffer) or self.ended:
                return passed
            self.more()

    @property
    def line(self) -> int:
        """Number of the line on which `at` lies."""
        self._line += self.buffer.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    @property
    def over(self) -> bool:
        return self.at >= len(self.buffer)


_BLANK, _BETWEEN = re.compile(r"\s*"), re.compile(r"[\s,]*")


def _json(path: Path, file: BinaryIO) -> Iterator[Raw]:
    """A list of objects, or objects one after the other."""
    start = file.tell()
    text = _Text(file)
    text.skip(_BLANK)
    first = text.buffer[text.at : text.at + 1]
    if first == "{":  # JSON Lines in a .json file is common
        try:
            json.loads(text.buffer[text.at :].split("\n", 1)[0])
        except (ValueError, RecursionError):
            pass
        else:
            text.reader.detach()
            file.seek(start)
            yield from _lines(path, file)
            return
    if first in ("[", "{"):
        yield from _stream(path, text, in_list=first == "[")
    elif first:
        reason = Message("not_list_of_rows")
        yield Raw(f"{path.name}:{text.line}", BadRow("json", reason))
    text.reader.detach()


def _stream(path: Path, text: _Text, *, in_list: bool) -> Iterator[Raw]:
    """Value after value. After a broken one it goes on where the next row begins, if rows begin on lines of their
    own."""
    number, next_row = 0, None
    if in_list:
        text.at += 1
    while True:
        passed = text.skip(_BETWEEN)
        if text.over:
            if in_list:
                reason = Message("list_without_end")
                yield Raw(f"{path.name}:{text.line}", BadRow("json", reason))
            return
        if in_list and text.buffer[text.at] == "]":
            return
        if next_row is None:
            next_row = re.compile(r"\n" + re.escape(passed.rpartition("\n")[2]) + r"\{")
        number += 1
        place = f"{path.name}:{text.line}" + (f" (row {number})" if in_list else "")
        value, end = _value(text)
        if end is None:
            where = text.line + text.buffer.count("\n", text.at, value.pos)
            reason = Message("json_in_file", problem=value.msg, line=where)
            while (match := next_row.search(text.buffer, text.at + 1)) is None and not text.ended:
                if len(text.buffer) > _LONGEST:
                    break
                text.more()
            if match is None:
                yield Raw(place, BadRow("json", "rest_unreadable", problem=reason))
                return
            yield Raw(place, BadRow("json", reason))
            end = match.start()
        else:
            try:
                yield Raw(place, _shallow(value))
            except BadRow as bad:
                yield Raw(place, bad)
        text.at = end


def _value(text: _Text):
    """`(value, where it ends)` of the next JSON value, or `(error, None)`."""
    while True:
        try:
            return json.JSONDecoder().raw_decode(text.buffer, text.at)
        except json.JSONDecodeError as error:
            # it may only be cut off by the end of what has been read
            unfinished = error.pos > len(text.buffer) - 100 or error.msg.startswith("Unterminated")
            if not unfinished or text.ended or len(text.buffer) - text.at > _LONGEST:
                return error, None
        except (RecursionError, ValueError) as error:
            return json.JSONDecodeError(str(error)[:100], "", text.at), None
        text.more()


def _csv(path: Path, file: BinaryIO) -> Iterator[Raw]:
    """One row a record, the names of the fields in the first. Cells are text, whatever they hold."""
    csv.field_size_limit(_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    start = text.readline(_LONGEST)
    if not start:
        return
    text.seek(0)
    if text.read(1) != "\ufeff":
        text.seek(0)
    separator = max(",\t;", key=start.count)
    reader, names, line = csv.reader(_text_lines(path, text), delimiter=separator, strict=True), None, 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                reason = Message("quote_open")
            else:
                reason = Message("not_csv", problem=error)
            yield Raw(f"{path.name}:{line}", BadRow("json", reason))
            line = reader.line_num + 1
            continue
        if cells is None:
            break
        place, line = f"{path.name}:{line}", reader.line_num + 1
        if names is None:
            names = _names(place, cells)
        elif any(cells):
            yield _record(place, names, cells)
    text.detach()


def _names(place: str, cells: list[str]) -> list[str]:
    """The names of a table's fields. Raises UserError: too many, or one twice."""
    names = list(cells)
    while names and not names[-1].strip():  # columns that a spreadsheet leaves behind
        names.pop()
    if len(names) > _FIELDS:
        raise UserError("too_many_names", place=place, count=len(names), most=_FIELDS)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError("name_twice", place=place, name=min(twice)[:100])
    return names


def _record(place: str, names: list[str], cells: list[str]) -> Raw:
    """A row of a table."""
    if len(cells) < len(names) or any(cells[len(names) :]):
        reason = Message("cells_count", cells=len(cells), names=len(names))
        return Raw(place, BadRow("json", reason))
    return Raw(place, dict(zip(names, cells, strict=False)))


def _sheet(path: Path) -> Iterator[Raw]:
    """The first sheet of an Excel workbook; cells are text, as those of a CSV file."""
    names = None
    for number, cells in sheet_rows(path):
        place = f"{path.name}:{number}"
        if names is None:
            names = _names(place, cells)
        elif any(cells):
            cells = cells + [""] * (len(names) - len(cells))  # the last ones of a row may be missing
            yield _record(place, names, cells)


def _document(path: Path) -> Iterator[Raw]:
    """A text a paragraph of a Word document, or row of its tables."""
    for number, text in enumerate(document_texts(path), 1):
        yield Raw(f"{path.name}:{number}", {"text": text})


def _text_lines(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    """Lines of a CSV file. Raises UserError for one that does not end."""
    while line := text.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise UserError("line_too_long", name=path.name, most=_LONGEST >> 20)
        yield line


def _plain(path: Path, file: BinaryIO) -> Iterator[Raw]:
    """A text a line, as `datasets` reads .txt files."""
    for raw in _lines(path, file):
        if isinstance(raw.data, bytes):
            try:
                yield Raw(raw.place, {"text": raw.data.decode("utf-8").removeprefix("\ufeff")})
            except UnicodeDecodeError as error:
                yield Raw(raw.place, BadRow("utf8", "line_not_utf8", byte=error.start + 1))
        else:
            yield raw


def arrow_row(row):
    """A row of an Arrow table without the keys that Arrow filled with null within its values, as other rows have them;
    the columns themselves stay."""
    return {name: _without_nulls(value) for name, value in row.items()} if isinstance(row, dict) else row


def _without_nulls(value):
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _parquet(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    number = 0
    try:
        if path.suffix.lower() in (".arrow", ".feather"):
            source = _arrow(path)
            schema, batches = (
                source.schema,
                (part.slice(at, _BATCH) for part in source for at in range(0, part.num_rows, _BATCH)),
            )
        else:
            source = pyarrow.parquet.ParquetFile(
                path, thrift_string_size_limit=_LONGEST, thrift_container_size_limit=1_000_000
            )
            schema, batches = source.schema_arrow, source.iter_batches(batch_size=_BATCH)
        if len(schema) > _FIELDS:
            raise UserError("too_many_columns", name=path.name, count=len(schema), most=_FIELDS)
        for batch in batches:
            for row in batch.to_pylist() if batch.nbytes <= _LONGEST else _one_by_one(batch):
                number += 1
                yield Raw(f"{path.name}:{number}", arrow_row(row))
    except (pyarrow.ArrowException, OSError, RecursionError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        if isinstance(error, MemoryError):  # pyarrow's is both
            raise MemoryError from None
        yield Raw(f"{path.name}:{number + 1}", BadRow("json", "file_damaged", problem=str(error)[:200]))


def _arrow(path: Path):
    """Batches of an Arrow file: the stream that `datasets` writes, or the file format (Feather)."""
    import pyarrow
    import pyarrow.ipc

    mapped = pyarrow.memory_map(str(path))
    if mapped.read(6) != b"ARROW1":
        mapped.seek(0)
        return pyarrow.ipc.open_stream(mapped)
    reader = pyarrow.ipc.open_file(mapped)
    return _Batches(reader)


class _Batches:
    """The batches of an Arrow file one after the other, with its schema."""

    def __init__(self, reader):
        self.reader, self.schema = reader, reader.schema

    def __iter__(self):
        return (self.reader.get_batch(number) for number in range(self.reader.num_record_batches))


def _one_by_one(batch) -> Iterator[dict | BadRow]:
    """Rows of a batch that is large, each made when it is asked for; one that is too large itself comes as BadRow."""
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        size = row.get_total_buffer_size() if batch.num_rows == 1 else row.nbytes
        if size > _LONGEST:
            yield BadRow("json", "row_too_large", size=size >> 20, most=_LONGEST >> 20)
        else:
            yield row.to_pylist()[0]
