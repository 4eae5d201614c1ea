"""Rows of an Excel workbook (`.xlsx`): those of its first sheet, the names of the fields in the first row."""

import datetime
from collections.abc import Iterator
from pathlib import Path

from workbench.data.archives import archive_parts
from workbench.errors import UserError

_UNPACKED = 256 << 20  # bytes that the parts of a workbook may unpack to, all together
_PARTS = 10_000
_ROWS = 1 << 20  # that Excel itself can hold


def sheet_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """`(number of the row, its cells as text)` of the first sheet, without empty rows. Formulas come as their last
    result.

    Raises:
        UserError: it is no such workbook, or too large.
    """
    import openpyxl

    _check_size(path)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            if not book.worksheets:
                raise UserError("sheet_empty", name=path.name)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # what the file says of its size may be wrong, and rows would be filled up to it
            for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
                if number > _ROWS:
                    raise UserError("sheet_too_long", name=path.name, most=_ROWS)
                if any(cell is not None for cell in cells):
                    yield number, [_text(cell) for cell in cells]
        finally:
            book.close()
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError("file_unreadable", path=path.name, reason=error.strerror or error) from None
    except Exception as error:  # a workbook can be broken in many ways
        reason = " ".join(str(error).replace(str(path), path.name).split())[:200].rstrip(". ")
        raise UserError("sheet_broken", name=path.name, reason=reason or type(error).__name__) from None


def _check_size(path: Path) -> None:
    """Raise UserError for what is no archive, or would unpack to too much."""
    parts = archive_parts(path, "sheet_not_xlsx")
    unpacked = sum(part.file_size for part in parts)
    if unpacked > _UNPACKED or len(parts) > _PARTS:
        raise UserError("sheet_too_large", name=path.name, size=unpacked >> 20, parts=len(parts), most=_UNPACKED >> 20)


def _text(cell: object) -> str:
    """A cell as CSV would hold it."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat(*([" "] if isinstance(cell, datetime.datetime) else []))
    return str(cell)
