"""The processes of a run that train together: one for each of its devices, started, watched and ended as one.

They find each other by the variables that `torchrun` and `accelerate launch` set, and train through accelerate. Those
two would stand between the supervisor and the trainers: Stop kills after 30 seconds there, an exit code is that of the
launcher, and whoever kills the launcher leaves its children behind.
"""

import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message, restored, stored
from workbench.runs import job
from workbench.runs.run import Run
from workbench.storage import files
from workbench.storage.files import write_atomically

FAILED_SECONDS = 5.0  # that the others have, to say the same, when one has failed
DONE_SECONDS = 60.0  # that the others have when the first is done


def rank() -> int:
    """The number of this process among those that train together, from 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes train together, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_here() -> int:
    """How many of them run on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def process_count(config: RunConfig, devices: str) -> int:
    """How many processes train on these devices of one host: one on each, unless the model is split over them.

    Args:
        devices: those that the run was given, such as `0,1`; on the CPU the config says how many (`cpu,cpu`).
    """
    if config.device_map == "auto":
        return 1
    return max(1, len(split_names(config.devices if devices == "cpu" else devices)))


def environments(
    count: int, *, first: int = 0, size: int = 0, address: str = "127.0.0.1", port: int = 0
) -> list[dict[str, str]]:
    """Variables for each of the `count` processes of this host, as `torchrun` sets them; none for a single one.

    Args:
        first: the rank of the first process of this host.
        size: processes on all hosts; `count` if 0.
        address, port: where the process of rank 0 listens; a free port of this host if 0.
    """
    size = size or count
    if size == 1:
        return [{}]
    port = port or job.free_port()
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))}
    return [
        {
            "RANK": str(first + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        | threads
        for local in range(count)
    ]


class Processes:
    """Processes that train as one, in the order of their ranks on this host, all in the group of the first."""

    def __init__(self):
        self.all: list[subprocess.Popen] = []
        self._ends: queue.SimpleQueue = queue.SimpleQueue()
        self._ended: dict[int, int] = {}

    @property
    def first(self) -> subprocess.Popen:
        return self.all[0]

    @property
    def running(self) -> bool:
        return any(process.poll() is None for process in self.all)

    def start(self, command: Callable[[dict[str, str], int], subprocess.Popen], variables: list[dict[str, str]]):
        """Start one with each of `variables`; `command` takes them and the process group to join (0: a new one)."""
        for own in variables:
            try:
                process = command(own, self.first.pid if self.all else 0)
            except (PermissionError, ProcessLookupError):
                if self.all and self.first.poll() is not None:  # its group is gone; its end says why
                    return
                raise
            self.add(process)

    def add(self, process) -> None:
        """Watch one more: a process, or what stands for those of another host."""
        self.all.append(process)
        threading.Thread(target=self._tell_end, args=(len(self.all) - 1, process), daemon=True).start()

    def _tell_end(self, number: int, process: subprocess.Popen) -> None:
        self._ends.put((number, process.wait()))

    def terminate(self) -> None:
        """Send SIGTERM to those that are running."""
        for process in self.all:
            if process.poll() is None:
                process.terminate()

    def kill(self) -> None:
        """End all at once, with everything that they have started."""
        if self.all:
            job.kill(self.first)
            for process in self.all:  # before it has joined the group
                if process.poll() is None:
                    process.kill()

    def wait(self) -> tuple[int, int]:
        """`(number, exit code)` of the one that decided the end: the first that failed, else the first of all. When
        one has failed the others get a few seconds, since they would wait for it forever; none is left then. How those
        end that are killed here decides nothing."""
        decided: tuple[int, int] | None = None
        deadline: float | None = None
        killed = False
        while len(self._ended) < len(self.all):
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                number, code = self._ends.get(timeout=left)
            except queue.Empty:
                self.kill()
                deadline, killed = None, True
                continue
            self._ended[number] = code
            if killed:
                continue
            if code and (decided is None or decided[1] == 0):
                decided, deadline = (number, code), time.monotonic() + FAILED_SECONDS
            elif number == 0 and decided is None:
                decided, deadline = (0, code), time.monotonic() + DONE_SECONDS
        return decided or (0, self._ended[0])


def failure_file(run: Run, rank: int) -> Path:
    """Where a process other than the first says why it failed."""
    return run.path / f".failed-{rank}.json"


def write_failure(run: Run, rank: int, reason: Message) -> None:
    """Keep why the process of this rank failed: it writes no other file of the run."""
    write_atomically(failure_file(run, rank), json.dumps({"text": str(reason), "message": stored(reason)}))


def read_failure(run: Run, rank: int) -> Message | str:
    """What `write_failure` has kept; empty if nothing was."""
    try:
        kept = files.read_object(failure_file(run, rank), files.MAX_YAML)
        return restored(kept.get("message"), str(kept.get("text", "")))
    except (OSError, UserError):
        return ""


def forget_failures(run: Run) -> None:
    """Before a start: remove what an earlier one has left."""
    for file in run.path.glob(".failed-*.json"):
        file.unlink(missing_ok=True)
