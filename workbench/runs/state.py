"""`state.json`: what a process (a trainer or an engine) says of itself, and how others read it.

The owner writes, everybody else reads. The file is replaced atomically; a small reserve on the disk makes sure that it
can be even when the disk is full. A pid in it counts only together with the process's start, because pids are reused;
the start is counted from the machine's boot, because clocks are set.
"""

import errno
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import psutil

from workbench.messages.message import Message, restored, stored
from workbench.runs import heartbeat, hosts
from workbench.storage import files
from workbench.storage.files import write_atomically

ACTIVE = ("queued", "starting", "running", "stopping")
FINAL = ("stopped", "finished", "failed", "lost")
_WORDS = {
    "queued": "state_queued",
    "starting": "state_starting",
    "running": "state_running",
    "stopping": "state_stopping",
    "stopped": "state_stopped",
    "finished": "state_finished",
    "failed": "state_failed",
    "lost": "state_lost",
}
# fields that hold messages: the file has their English text, and beside it the codes
_TOLD = ("reason", "phase", "warning")
_RESERVE = 64 << 10  # bytes
_MAX_STATE = 1 << 20  # bytes of state.json
_LARGEST = 2**53


@dataclass
class ProcessState:
    """What `state.json` holds. Times are seconds since the epoch; `progress` goes from 0 to 1 within `phase`.

    `pid_started` and `boot` say which process is meant (see `own_process`). `devices` are the slots that the run takes,
    `cwd` the folder that its relative paths start from, `position` its place in the queue (the lowest first), `resume`
    the checkpoint to go on from. `trainer_pid` is the process that trains, under the one that `pid` names.
    `skipped_rows`: broken rows of the data that the user chose to skip. `started_by`: the user of the page who started
    the run; empty where nobody logs in, and for the command line. `host`: where the run is, or waits.
    `slurm`: the number of its job in Slurm.
    """

    state: str = "queued"
    reason: str = ""
    phase: str = ""
    progress: float = 0.0
    step: int = 0
    total_steps: int = 0
    pid: int | None = None
    pid_started: float | None = None
    boot: str = ""
    host: str = field(default_factory=hosts.name)
    device: str = ""
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    heartbeat: float | None = None
    exit_code: int | None = None
    port: int | None = None
    devices: str = ""
    position: float = 0.0
    resume: str = ""
    trainer_pid: int | None = None
    trainer_started: float | None = None
    warning: str = ""
    cwd: str = ""
    skipped_rows: int = 0
    started_by: str = ""
    slurm: str = ""
    nodes: str = ""  # the hosts that it is trained over, as `train --nodes` takes them

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def messages(self) -> dict:
        """What is told here, by field, as `stored`: its codes and values."""
        return {name: stored(text) for name in _TOLD if isinstance(text := getattr(self, name), Message)}


def state_word(state: str) -> Message:
    """A state in words."""
    return Message(_WORDS[state])


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
    """Whether stored values have the types that readers rely on, finite numbers, and pids that can be ones."""
    for key, value in values.items():
        if not isinstance(value, _TYPES[key]) or (isinstance(value, int | float) and not -_LARGEST < value < _LARGEST):
            return False
    return all(0 < (values.get(key) or 1) < 2**31 for key in ("pid", "trainer_pid"))


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
            stored = files.read_object(self.path / "state.json", _MAX_STATE)
            values = {k: v for k, v in stored.items() if k in _TYPES}
            if values.get("state", "queued") not in (*ACTIVE, *FINAL) or not _fits(values):
                raise ValueError
            kept = stored.get("messages")
            if isinstance(kept, dict):
                values |= {name: restored(kept.get(name), values.get(name, "")) for name in _TOLD}
            return ProcessState(**values)
        except FileNotFoundError:
            return ProcessState(state="lost", reason=Message("state_missing"), created=0.0)
        except files.Unreadable as error:
            return ProcessState(
                state="lost", reason=Message("file_of_run", name="state.json", reason=error.reason), created=0.0
            )
        except (OSError, ValueError, TypeError):
            return ProcessState(state="lost", reason=Message("state_values"), created=0.0)

    def state(self) -> ProcessState:
        """The run's true state: an active one whose process is gone reads as `lost`. One of another host goes by its
        heartbeat: without it there is first a warning."""
        state = self.stored_state()
        if not (state.active and state.pid):
            return state
        if hosts.is_here(state.boot):
            if not process_alive(state.pid, state.pid_started, state.boot):
                state = self.stored_state()  # it may have ended between the two looks
                if state.active:
                    state.state, state.reason = "lost", Message("process_gone")
            return state
        silent = heartbeat.silence(self.path)
        if silent < heartbeat.QUIET:
            return state
        state = self.stored_state()
        if state.active and not hosts.is_here(state.boot):
            if state.host == hosts.name():  # this host has been started anew
                state.state, state.reason = "lost", Message("process_gone")
            elif silent >= heartbeat.LOST:
                state.state = "lost"
                state.reason = Message("host_lost", host=state.host, seconds=heartbeat.LOST)
            else:
                state.warning = Message("host_quiet", host=state.host, seconds=10 * int(silent / 10))
        return state

    def begin(self) -> None:
        """Write the first state, `queued`."""
        self.make_reserve()
        self._write(ProcessState(cwd=os.getcwd()))

    def make_reserve(self) -> None:
        """Put aside what the last word needs on a full disk."""
        try:
            (self.path / ".reserve").write_bytes(bytes(_RESERVE))
        except OSError:
            (self.path / ".reserve").unlink(missing_ok=True)

    def _write(self, state: ProcessState) -> None:
        text = json.dumps(asdict(state) | {"messages": state.messages()}, indent=1)
        try:
            write_atomically(self.path / "state.json", text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if state.state not in FINAL:
                return  # a heartbeat may be missed; the reserve is for the last word
            (self.path / ".reserve").unlink(missing_ok=True)
            write_atomically(self.path / "state.json", text)

    def update(self, **changes) -> ProcessState:
        """Change `state.json`. Only the process that owns the directory calls this."""
        state = self.stored_state()
        for name, value in changes.items():
            setattr(state, name, value)
        self._write(state)
        return state

    def warn(self, message: Message) -> ProcessState:
        """Add a warning to those that this process has given; the same one, or one with other values, only once."""
        earlier = self.stored_state().warning
        known = earlier.values["problems"] if isinstance(earlier, Message) and earlier.code == "lines" else [earlier]
        code = getattr(message, "code", "")
        others = [one for one in known if one and (not code or getattr(one, "code", None) != code)]
        return self.update(warning=Message("lines", problems=[*others, message]) if others else message)


def process_alive(pid: int, started: float | None, boot: str = "") -> bool:
    """Whether the process `pid` that started at `started` still runs (not merely some process with that pid)."""
    if not hosts.is_here(boot):
        return False
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(_started(pid) - started) < 0.05
    except (psutil.Error, OSError):
        return False


def own_process() -> dict:
    """`pid`, `pid_started`, `boot` and `host` of the calling process, for `StateDirectory.update`."""
    return {"pid": os.getpid(), "pid_started": _started(os.getpid()), "boot": hosts.boot(), "host": hosts.name()}


def process_of(pid: int) -> float | None:
    """The start of a living process, as `process_alive` wants it; None if there is none."""
    try:
        return _started(pid)
    except (psutil.Error, OSError):
        return None


def _started(pid: int) -> float:
    """Seconds from boot to the start of a process; where the system does not tell, since the epoch."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    stat = Path(f"/proc/{pid}/stat").read_bytes()  # proc(5): the name in parentheses may hold anything
    return int(stat[stat.rindex(b")") + 2 :].split()[19]) / os.sysconf("SC_CLK_TCK")
