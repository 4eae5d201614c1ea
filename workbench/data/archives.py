"""Office files are zip archives: what one holds is looked at before anything is unpacked."""

import zipfile
from pathlib import Path

from workbench.errors import UserError


def archive_parts(path: Path, not_one: str) -> list[zipfile.ZipInfo]:
    """The parts of an archive. Raises UserError with the code `not_one` for a file that is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(not_one, name=path.name, problem=str(error)[:100]) from None
