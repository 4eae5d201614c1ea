"""Where the rows of a dataset begin, so that a page can jump into a large one."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from workbench.data.dataset import data_files, file_rows
from workbench.data.hub_datasets import dataset_rows
from workbench.data.readers import Raw, kind_of, pieces, read_file
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.storage.files import open_regular

_EVERY = 500  # rows between two marks


class _File:
    """One file: every 500th row's line and byte, as far as somebody has looked. Only JSONL can be entered in the
    middle."""

    def __init__(self, path: Path, info: DatasetInfo):
        self.path, self.info = path, info
        self.total: int | None = None
        self.jumps = (
            kind_of(path) in (".jsonl", ".ndjson") and not path.name.lower().endswith(".gz") and not info.encoding
        )
        self._marks = [(0, 1, 0)]  # (row, line, byte offset)
        self.version = _version(path)

    def rows(self, start: int) -> Iterator[Raw]:
        """Rows from number `start` on, which begins at 0."""
        if not self.jumps:
            return itertools.islice(file_rows(self.info, self.path), start, None)
        self._extend(start)
        row, line, offset = next(mark for mark in reversed(self._marks) if mark[0] <= start)
        return itertools.islice(file_rows(self.info, self.path, offset, line), start - row, None)

    def count(self) -> int:
        """Number of rows; the file is read for it once."""
        if self.total is None:
            if self.jumps:
                self._extend(None)
                assert self.total is not None  # the end was reached
            elif kind_of(self.path) == ".parquet":
                import pyarrow.parquet

                try:
                    self.total = pyarrow.parquet.read_metadata(self.path).num_rows
                except (pyarrow.ArrowException, OSError):
                    self.total = sum(1 for _ in read_file(self.path, encoding=self.info.encoding))
            else:
                self.total = sum(1 for _ in read_file(self.path, encoding=self.info.encoding))
        return self.total

    def _extend(self, wanted: int | None) -> None:
        """Look on until the mark before row `wanted` is known, or to the end."""
        row, line, offset = self._marks[-1]
        if self.total is not None or (wanted is not None and wanted < row + _EVERY):
            return
        try:
            with open_regular(self.path) as file:
                file.seek(offset)
                for text, size in pieces(file):
                    if text is None or text.strip():
                        if row % _EVERY == 0 and row > self._marks[-1][0]:
                            self._marks.append((row, line, offset))
                            if wanted is not None and row > wanted:
                                return
                        row += 1
                    offset += size
                    line += 1
        except OSError as error:
            raise UserError("file_unreadable", path=self.path, reason=error.strerror or error) from None
        self.total = row


def _version(path: Path) -> tuple:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError("file_unreadable", path=path, reason=error.strerror or error) from None
    return stat.st_mtime_ns, stat.st_size


class Places:
    """The rows of a dataset by number (from 0 on). Keep it to jump fast; `fresh` says whether the files are still the
    same."""

    def __init__(self, info: DatasetInfo):
        """Raises UserError: the dataset cannot be read."""
        self.info = info.check()
        self._hub = None if info.path else dataset_rows(info)
        self._files = [_File(path, info) for path in data_files(info)] if info.path else []

    def fresh(self) -> bool:
        try:
            return all(file.version == _version(file.path) for file in self._files)
        except UserError:
            return False

    def page(self, start: int, count: int) -> list[tuple[int, Raw]]:
        """Up to `count` rows from number `start` on, with their numbers."""
        if self._hub is not None:
            name = self.info.hub or self.info.ms_hub
            numbers = range(start, min(start + count, len(self._hub)))
            return [(number, Raw(f"{name}:{number + 1}", self._hub[number])) for number in numbers]
        rows, at, before = [], start, 0
        if count <= 0:
            return []
        for index, file in enumerate(self._files):
            # a file is counted only to be passed over
            if index < len(self._files) - 1 and at > before and at >= before + file.count():
                before += file.count()
                continue
            for raw in file.rows(at - before):
                rows.append((at, raw))
                at += 1
                if len(rows) == count:
                    return rows
            before = at
        return rows

    @property
    def quick(self) -> bool:
        """Whether rows can be counted without parsing them: about a second a gigabyte."""
        return all(file.jumps or kind_of(file.path) == ".parquet" for file in self._files)

    def count(self) -> int:
        """Number of rows, broken ones too."""
        return len(self._hub) if self._hub is not None else sum(file.count() for file in self._files)
