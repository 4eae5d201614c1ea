"""The exports of a workspace, as their marks tell. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from workbench.errors import UserError
from workbench.models.export.card import MARK
from workbench.storage import files
from workbench.storage.workspace import Workspace

MOST = 200  # that are listed


@dataclass
class Exported:
    """An export. `bytes` are those of its files, `created` seconds since the epoch, `hub` where it was uploaded to."""

    path: Path
    format: str
    base: str
    adapters: dict[str, float]
    created: float
    bytes: int
    hub: str = ""


def exported(folder: Path) -> Exported | None:
    """What a folder's mark says; None for a folder that is no export."""
    try:
        mark = files.read_object(folder / MARK)
        adapters = {str(key): float(value) for key, value in dict(mark.get("adapters") or {}).items()}
        size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
        created = float(mark.get("created") or 0)
        return Exported(
            folder, str(mark["format"]), str(mark.get("base")), adapters, created, size, str(mark.get("hub") or "")
        )
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return None


def list_exports(workspace: Workspace) -> list[Exported]:
    """The exports, newest first."""
    found = [exported(path) for path in workspace.models.glob("*") if path.is_dir()]
    return sorted((one for one in found if one), key=lambda one: -one.created)[:MOST]


def find_export(name: str, workspace: Workspace) -> Exported:
    """The export of this name. Raises UserError: there is none."""
    known = {one.path.name: one for one in list_exports(workspace)}
    if name not in known:
        raise UserError("upload_nothing", name=name[:80], known=sorted(known)[:20])
    return known[name]
