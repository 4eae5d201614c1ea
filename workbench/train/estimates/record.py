"""What was expected of a run, and what it came to: `estimate.json` in its folder, and an entry of the history.

The supervisor writes both. An estimate is no part of a run: whatever goes wrong with it, the run goes on.
"""

import json
from statistics import fmean

import orjson

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.models.cost.device import device_for
from workbench.runs.metrics import MOST_DEVICES, logged
from workbench.runs.run import Run
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.workspace import Workspace
from workbench.train.estimates import history
from workbench.train.estimates.outlook import Outlook, outlook, processes_on, way_of

FILE = "estimate.json"
_GIB = 1 << 30
_COMPILED = b"layers will be compiled"  # what the log says of a run with compiled layers
_LOG_BYTES = 1 << 20


def begin(run: Run, config: RunConfig, workspace: Workspace, devices: str) -> None:
    """Write what is expected of a run on these devices; nothing of one whose parts ZeRO spreads over them, which would
    make later estimates wrong."""
    if config.deepspeed:
        return
    try:
        result = outlook(config, workspace, device_for(devices), with_changes=False)
        if result.estimate is not None:
            _write(run, _told(result))
    except (UserError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        _say(run, error)


def end(run: Run, config: RunConfig, workspace: Workspace, devices: str) -> None:
    """Add what was measured, and keep it for later estimates.

    These are corrected by how far the formulas were off, not by what was not known before: rows are counted by now, and
    the log tells whether layers were compiled.
    """
    try:
        known, rows = read(run), _rows(run)
        peak = max(map(fullest, rows), default=0.0)
        if not known or not peak:
            return
        on = "on" if _COMPILED in _log(run) else "off"
        device = device_for(devices)
        again = outlook(config.model_copy(update={"torch_compile": on}), workspace, device, with_changes=False)
        if again.estimate is None:
            return
        processes = processes_on(config, device) if device.gpu else 1
        rates = sorted(row["throughput"] / processes for row in rows if row.get("throughput"))
        watts = [row["power"] for row in rows if row.get("power")]
        expected = again.estimate.allocated / _GIB
        one = history.Measured(
            run.id,
            again.model,
            device.name,
            config.quantization_bit or 0,
            round(expected, 3),
            round(peak, 3),
            way_of(again.estimate, device),
            rates[len(rates) // 2] if rates else 0.0,
            round(fmean(watts), 1) if watts else 0.0,
        )
        _write(run, known | {"measured": one.measured, "known_rows": one.estimate})
        history.add(workspace, one)
    except (UserError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        _say(run, error)


def read(run: Run) -> dict:
    """What is kept with a run: `estimate` (GiB of tensors on a GPU, of the process on the host, corrected), `total`
    (GiB in all), `parts` (bytes), `tokens`, `device`, and when it has ended `measured` (GiB) and `known_rows`: the
    estimate made again with the rows counted. Empty where there is nothing, or it cannot be read."""
    try:
        values = files.read_object(run.path / FILE, files.MAX_YAML)
    except (OSError, UserError):
        return {}
    numbers = [values.get(name) for name in ("estimate", "total")] + [values.get("measured", 0)]
    fine = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e9 for n in numbers)
    return values if fine else {}


def _told(result: Outlook) -> dict:
    assert result.estimate is not None
    return {
        "model": result.model,
        "device": result.device.name,
        "estimate": round(result.estimate.allocated * result.factor / _GIB, 3),
        "total": round(result.total / _GIB, 3),
        "factor": round(result.factor, 4),
        "parts": result.estimate.parts,
        "tokens": result.estimate.facts.get("tokens", 0),
        "seconds": round(result.duration.seconds) if result.duration else 0,
    }


def _write(run: Run, values: dict) -> None:
    write_atomically(run.path / FILE, json.dumps(values, indent=1))


def fullest(row: dict) -> float:
    """GiB of the fullest device, which estimates are of: a line's `peak_memory` is the sum of all where one process has
    a model that is split over them."""
    return max((row.get(f"peak_memory_{number}") or 0.0 for number in range(MOST_DEVICES)), default=0.0) or (
        row.get("peak_memory") or 0.0
    )


def _rows(run: Run) -> list[dict]:
    """The lines of a run's log of figures."""
    found = []
    with open(run.metrics, "rb") as lines:
        for line in lines:
            try:
                found.append(logged(line))
            except (orjson.JSONDecodeError, TypeError):
                continue
    return found


def _log(run: Run) -> bytes:
    with open(run.log, "rb") as log:
        return log.read(_LOG_BYTES)


def _say(run: Run, error: Exception) -> None:
    print(f"No estimate of run {run.id}: {' '.join(str(error).split())[:200]}", flush=True)
