"""`state.json`: what a process (a trainer or an engine) says of itself, and how others read it.

The owner writes, everybody else reads. The file is replaced atomically. A pid in it counts only together with the
process's start time, because pids are reused.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import psutil

from workbench.config import write_atomically

ACTIVE = ("queued", "starting", "running", "stopping")
FINAL = ("stopped", "finished", "failed", "lost")


@dataclass
class ProcessState:
    """What `state.json` holds. Times are seconds since the epoch; `progress` goes from 0 to 1 within `phase`."""

    state: str = "queued"
    reason: str = ""
    phase: str = ""
    progress: float = 0.0
    step: int = 0
    total_steps: int = 0
    pid: int | None = None
    pid_started: float | None = None
    host: str = field(default_factory=socket.gethostname)
    device: str = ""
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    heartbeat: float | None = None
    exit_code: int | None = None
    port: int | None = None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


_TYPES = {
    f.name: {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "int | None": (int, type(None)),
        "float | None": (int, float, type(None)),
    }[f.type.__name__ if isinstance(f.type, type) else str(f.type)]
    for f in fields(ProcessState)
}


def _fits(values: dict) -> bool:
    """Whether stored values have the types that readers rely on, and a pid that can be one."""
    return all(isinstance(v, _TYPES[k]) for k, v in values.items()) and (values.get("pid") or 1) > 0


@dataclass(frozen=True)
class StateDirectory:
    """A directory with a `state.json` and a `running_log.txt`."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def log(self) -> Path:
        return self.path / "running_log.txt"

    def stored_state(self) -> ProcessState:
        """`state.json` as it stands. A missing or corrupt file reads as `lost`, never as an exception."""
        try:
            stored = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
            known = {k: v for k, v in stored.items() if k in _TYPES}
            if known.get("state", "queued") not in (*ACTIVE, *FINAL) or not _fits(known):
                raise ValueError
            return ProcessState(**known)
        except (OSError, ValueError, AttributeError, TypeError):
            return ProcessState(state="lost", reason="state.json is missing or unreadable.")

    def state(self) -> ProcessState:
        """The run's true state: an active one whose process is gone reads as `lost`."""
        state = self.stored_state()
        if state.active and state.pid and not process_alive(state.pid, state.pid_started):
            state = self.stored_state()  # it may have ended between the two looks
            if state.active:
                state.state = "lost"
                state.reason = "The process ended without saying why (machine restart, or killed)."
        return state

    def begin(self) -> None:
        """Write the first state, `queued`."""
        write_atomically(self.path / "state.json", json.dumps(asdict(ProcessState()), indent=1))

    def update(self, **changes) -> ProcessState:
        """Change `state.json`. Only the process that owns the directory calls this."""
        state = self.stored_state()
        for name, value in changes.items():
            setattr(state, name, value)
        write_atomically(self.path / "state.json", json.dumps(asdict(state), indent=1))
        return state


def process_alive(pid: int, started: float | None) -> bool:
    """Whether the process `pid` that started at `started` still runs (not merely some process with that pid)."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(process.create_time() - started) < 1.0
    except psutil.Error:
        return False


def own_process() -> dict:
    """`pid` and `pid_started` of the calling process, for `StateDirectory.update`."""
    return {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}
