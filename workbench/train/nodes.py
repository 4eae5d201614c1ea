"""A training over several hosts that share a workspace, seen from the first of them.

The other hosts are reached by `ssh`, or by `srun` inside a job of Slurm. One connection each is there from the check
before the start to the end: on the other side `train/node.py` starts the processes, and ends them when the connection
does. The processes find each other by the variables that torchrun sets.
"""

import contextlib
import json
import os
import queue
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import job
from workbench.runs.run import Run
from workbench.storage.workspace import CODE, Workspace
from workbench.train.devices import busy_slots, slots
from workbench.train.launch import environments, failure_file
from workbench.train.node import MARK, TRAINER, WORD_SECONDS, interface_to
from workbench.train.versions import versions

CHECK_SECONDS = float(os.environ.get("WORKBENCH_NODE_SECONDS", 40))  # for an answer of a host
_SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")
_SRUN = ("srun", "--nodes=1", "--ntasks=1", "--overlap", "--unbuffered")
THROUGH = ("ssh", "srun")
BROKEN = 255  # ssh's own exit code
# of the first host's environment, what the processes of the others have, too; it goes over the connection, not into a
# command line that others can read
_HANDED_ON = ("HF_", "NCCL_", "GLOO_", "TORCH_", "MODELSCOPE_", "OMP_", "WORKBENCH_ALLOW", "WORKBENCH_JOIN_SECONDS")


@dataclass(frozen=True)
class Place:
    """A host, as it is reached, and how many processes it shall have (0: one on each of its devices)."""

    target: str
    slots: int = 0

    @property
    def address(self) -> str:
        return self.target.rpartition("@")[2]


def parse_nodes(text: str) -> list[Place]:
    """`HOST1,HOST2:4,user@HOST3` as places.

    Raises:
        UserError: it is not of this form, or names a host twice.
    """
    places = []
    for part in text.split(","):
        match = re.fullmatch(r"((?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.-]*)(?::([1-9]\d{0,3}))?", part.strip())
        if not match or match[1] in [place.target for place in places]:
            raise UserError("nodes_form", text=part.strip()[:80])
        places.append(Place(match[1], int(match[2] or 0)))
    return places


def check_nodes(config: RunConfig) -> None:
    """Raise UserError for options that say otherwise which devices a training over several hosts takes."""
    if config.device_map == "auto":
        raise UserError("nodes_split")
    if config.devices not in ("auto", ""):
        raise UserError("nodes_devices", devices=config.devices)


class RemoteProcess:
    """The processes of another host as one, with what `launch.Processes` uses of `subprocess.Popen`: `stop` and `kill`
    are said over the connection."""

    def __init__(self, target: str, through: str):
        self.target, self.ranks = target, range(0)
        script = f"cd -- {shlex.quote(os.getcwd())} && PYTHONPATH={shlex.quote(str(CODE))}${{PYTHONPATH:+:$PYTHONPATH}}"
        script += f" exec {shlex.join([sys.executable, '-u', '-m', 'workbench.train.node'])}"
        line = [*_SRUN, f"--nodelist={target}", "bash", "-c", script] if through == "srun" else [*_SSH, target, script]
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.pid, self.stdout = self._process.pid, self._process.stdout
        threading.Thread(target=self._be_heard, daemon=True).start()

    def _be_heard(self) -> None:
        while self._process.poll() is None:
            time.sleep(WORD_SECONDS)
            self.say("")

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is gone
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the other host answers. Raises UserError: it cannot be reached, or does not answer."""
        self.say(json.dumps(request))
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def read() -> None:
            line = b"-"
            while line and not line.startswith(MARK.encode()):
                line = self.stdout.readline(1 << 20)
                lines.put(line)

        threading.Thread(target=read, daemon=True).start()
        deadline, last = time.monotonic() + CHECK_SECONDS, ""
        while True:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic())).decode(errors="replace")
            except queue.Empty:
                raise UserError("node_silent", host=self.target, seconds=CHECK_SECONDS) from None
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            if not line:  # the end: an empty one would have its line feed
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(5)
                reason = last or Message("exit_code", code=self.poll())
                raise UserError("node_unreached", host=self.target, reason=reason)
            last = line.strip()[:300].rstrip(".") or last

    def poll(self) -> int | None:
        """As of a process here: negative for a signal there; `BROKEN` if the connection ended first."""
        code = self._process.poll()
        if code is None or code == 0:
            return code
        return BROKEN if code < 0 else 128 - code if 128 < code < 193 else code

    def wait(self) -> int:
        self._process.wait()
        code = self.poll()
        return BROKEN if code is None else code

    def terminate(self) -> None:
        self.say("stop")

    def kill(self) -> None:
        """The other side ends its processes at once; the connection is given a moment to carry the word."""
        self.say("kill")
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._process.poll() is None:
            self._process.kill()


class Nodes:
    """The hosts of a training, connected and checked.

    Raises:
        UserError: one cannot be reached, has other versions, does not see the workspace, or has too few devices; the
            command does not run on the first of them.
    """

    def __init__(self, places: Sequence[Place], workspace: Workspace, through: str):
        self.places = list(places)
        if not _is_here(places[0].address):
            raise UserError("node_first", host=places[0].target)
        here = slots()
        self.local = places[0].slots or len(here)
        busy = busy_slots(workspace)
        self.devices = ",".join(sorted(here, key=lambda slot: slot in busy)[: self.local])
        _check_slots(places[0], here)
        self.port = job.free_port()
        self.others: list[RemoteProcess] = []
        try:
            self.others = [RemoteProcess(place.target, through) for place in places[1:]]
            self.counts = [self.local, *self._check(workspace)]
            self.places = [Place(place.target, count) for place, count in zip(places, self.counts, strict=True)]
        except FileNotFoundError:
            raise UserError("node_program", program=through) from None
        except BaseException:
            self.close()
            raise

    def _check(self, workspace: Workspace) -> list[int]:
        """How many processes each of the other hosts is to have."""
        file, content, mine, counts = workspace.jobs / f".seen-{uuid.uuid4().hex}", uuid.uuid4().hex, versions(), []
        file.write_text(content, encoding="utf-8")
        answers: list[dict[str, Any] | UserError] = [{} for _ in self.others]

        def ask(number: int, other: RemoteProcess) -> None:
            try:
                answers[number] = other.ask({"file": str(file), "content": content})
            except UserError as error:
                answers[number] = error

        threads = [threading.Thread(target=ask, args=item, daemon=True) for item in enumerate(self.others)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            file.unlink(missing_ok=True)
        for place, answer in zip(self.places[1:], answers, strict=True):
            if isinstance(answer, UserError):
                raise answer
            for package, version in answer["versions"].items():
                if version != mine.get(package):
                    values = {"package": package, "here": mine.get(package, "-"), "other": version}
                    raise UserError("node_versions", host=place.target, **values)
            if not answer["sees"]:
                raise UserError("node_blind", host=place.target, folder=workspace.root)
            _check_slots(place, answer["slots"])
            counts.append(place.slots or len(answer["slots"]))
        return counts

    @property
    def size(self) -> int:
        return sum(self.counts)

    def environments(self) -> list[dict[str, str]]:
        """Variables of the processes of this host."""
        address = self.places[0].address
        found = environments(self.local, size=self.size, address=address, port=self.port)
        return [variables | interface_to(address) for variables in found] if self.size > 1 else found

    def begin(self, run: Run, workspace: Workspace) -> list[RemoteProcess]:
        """Let the other hosts start their processes."""
        env = {key: value for key, value in os.environ.items() if key.startswith(_HANDED_ON)}
        for number, other in enumerate(self.others, 1):
            first, count = sum(self.counts[:number]), self.counts[number]
            other.ranks = range(first, first + count)
            request = {"run": str(run.path.absolute()), "workspace": str(workspace.root), "env": env}
            request |= {"first": first, "count": count, "size": self.size}
            request |= {"address": self.places[0].address, "port": self.port}
            other.say(json.dumps(request))
        return self.others

    def failed_rank(self, run: Run, number: int) -> int:
        """Which process failed, where the `number`-th of this host's (other hosts count as one each) ended first.
        Another host's end takes longer to be seen here than its failure, which is in the shared folder."""
        told: dict[int, float] = {}
        for other in self.others:
            for rank in other.ranks:
                with contextlib.suppress(OSError):
                    told[rank] = failure_file(run, rank).stat().st_mtime
        if told:
            rank = min(told, key=lambda rank: told[rank])
            if number >= self.local or told[rank] <= (run.path / "state.json").stat().st_mtime:
                return rank
        return number if number < self.local else self.others[number - self.local].ranks.start

    def lost(self, number: int, code: int) -> Message | None:
        """The sentence for a connection that broke."""
        gone = number >= self.local and code == BROKEN
        return Message("node_lost", host=self.others[number - self.local].target) if gone else None

    def close(self) -> None:
        """End what is left on the other hosts."""
        for thread in [threading.Thread(target=other.kill) for other in self.others]:
            thread.start()
            thread.join()


def named_places(places: Sequence[Place]) -> str:
    """Places as `parse_nodes` reads them."""
    return ",".join(f"{place.target}:{place.slots}" if place.slots else place.target for place in places)


def torchrun_lines(places: Sequence[Place], run: Path, workspace: Workspace, port: int = 29500) -> list[str]:
    """For each host, the line that would start its processes by hand."""
    lines = []
    for number, place in enumerate(places):
        where = ["--nnodes", len(places), "--node-rank", number, "--nproc-per-node", place.slots or "gpu"]
        where += ["--master-addr", places[0].address, "--master-port", port]
        trainer = ["-m", TRAINER, run, "--workspace", workspace.root]
        lines.append(f"{place.target}: {shlex.join(['torchrun', *map(str, [*where, *trainer])])}")
    return lines


def _check_slots(place: Place, there: list[str]) -> None:
    """Raise UserError where a host shall have more processes than GPUs; a CPU takes any number."""
    if there != ["cpu"] and place.slots > len(there):
        raise UserError("node_slots", host=place.target, wanted=place.slots, there=len(there))


def _is_here(address: str) -> bool:
    """Whether an address is one of this host's: only then can others find the first process under it."""
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, target in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(target)
            return True
    return False
