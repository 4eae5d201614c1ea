"""Jobs of the page that load a model (predictions, tasks of the harness): they take devices as runs do, in their turn.

A job's process waits by itself: it is small until it loads something. While it waits, its state has a `position` and no
`devices`; what it may take is not told, so that it counts as one for any device.
"""

from workbench.runs import job
from workbench.runs.state import ProcessState, StateDirectory
from workbench.storage.workspace import Workspace

KINDS = ("predict", "evaluate")


def going(workspace: Workspace) -> list[tuple[StateDirectory, ProcessState]]:
    """The jobs that are going or wait, the one that came first before the others."""
    if not workspace.jobs.is_dir():
        return []
    found = [(one, one.state()) for kind in KINDS for one in job.jobs(workspace, kind)]
    return sorted(((one, state) for one, state in found if state.active), key=lambda entry: entry[1].position)


def held(workspace: Workspace) -> dict[str, str]:
    """Slots that jobs have taken -> the job's id."""
    return {slot: one.id for one, state in going(workspace) for slot in state.devices.split(",") if slot}


def waiting(workspace: Workspace) -> list[tuple[float, str]]:
    """`(place in time, id)` of the jobs that wait for a device."""
    return [(state.position, one.id) for one, state in going(workspace) if state.position and not state.devices]
