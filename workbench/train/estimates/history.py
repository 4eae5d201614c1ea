"""What earlier runs measured, in a file of the workspace: it corrects later estimates of the same model on the same
device, and tells how fast they will be. It can be read, and forgotten."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.locks import locked
from workbench.storage.workspace import Workspace

FILE = "estimates.json"
MOST = 500  # runs that are kept
LAST = 5  # runs that a correction is made of
_BOUNDS = 0.5, 2.0  # of a correction
_MAX = 1 << 20  # bytes of the file


@dataclass(frozen=True)
class Measured:
    """One run: `estimate` and `measured` in GiB, of tensors on a GPU, of the process on the host. `way`: compiled,
    recorded or plain. `rate`: tokens a second, `watts`: mean; 0 where not told."""

    run: str
    model: str
    device: str
    bits: int
    estimate: float
    measured: float
    way: str = ""
    rate: float = 0.0
    watts: float = 0.0

    @property
    def ratio(self) -> float:
        return self.measured / self.estimate if self.estimate > 0 else 1.0


def path_of(workspace: Workspace) -> Path:
    """The file."""
    return workspace.root / FILE


def read(workspace: Workspace) -> list[Measured]:
    """All that is kept, oldest first; entries that are none are left out."""
    try:
        entries = files.read_object(path_of(workspace), _MAX).get("runs")
    except (OSError, UserError):
        return []
    found = []
    for entry in entries if isinstance(entries, list) else ():
        try:
            one = Measured(**entry)
            numbers = one.estimate, one.measured, one.rate, one.watts
            texts = one.run, one.model, one.device, one.way
            if all(isinstance(text, str) for text in texts) and all(0 <= float(n) < 1e9 for n in numbers):
                found.append(one)
        except (TypeError, ValueError):
            continue
    return found


def add(workspace: Workspace, one: Measured) -> None:
    """Keep a run, in place of what was kept of it before."""
    with locked(workspace.root / f".{FILE}.lock"):
        kept = [other for other in read(workspace) if other.run != one.run][-(MOST - 1) :]
        write_atomically(path_of(workspace), json.dumps({"runs": [asdict(entry) for entry in (*kept, one)]}, indent=1))


def forget(workspace: Workspace) -> int:
    """Drop all of it; the number of runs that it was."""
    workspace.check_writable()
    with locked(workspace.root / f".{FILE}.lock"):
        count = len(read(workspace))
        path_of(workspace).unlink(missing_ok=True)
    return count


def correction(entries: list[Measured], model: str, device: str) -> tuple[float, int]:
    """`(factor, runs that it is made of)` for a model on a device: the median of the last ratios; 1 without any."""
    ratios = [one.ratio for one in entries if (one.model, one.device) == (model, device) and one.estimate > 0][-LAST:]
    if not ratios:
        return 1.0, 0
    return min(_BOUNDS[1], max(_BOUNDS[0], statistics.median(ratios))), len(ratios)


def speed(entries: list[Measured], model: str, device: str, bits: int, way: str) -> tuple[float, float, int]:
    """`(tokens a second, watts, runs)` of earlier runs of the same kind; zeros without any."""
    same = [one for one in entries if (one.model, one.device, one.bits, one.way) == (model, device, bits, way)]
    rates = [one.rate for one in same if one.rate > 0][-LAST:]
    watts = [one.watts for one in same if one.watts > 0][-LAST:]
    return (statistics.median(rates) if rates else 0.0), (statistics.median(watts) if watts else 0.0), len(rates)
