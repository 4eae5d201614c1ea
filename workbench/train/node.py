"""The processes of a training on a host other than the first: `python -m workbench.train.node`, started over ssh.

It is told by JSON lines on its standard input what to do: first to say what it is (versions, devices, whether it sees
the workspace), then which processes to start. After that `stop` and `kill` are words that it knows. It ends its
processes when its input ends, or when it hears nothing for a minute: the first host, or the way to it, is gone then.
It starts without torch.
"""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from workbench.runs import hosts, job
from workbench.runs.run import Run
from workbench.train.devices import slots
from workbench.train.launch import Processes, environments, failure_file, write_failure
from workbench.train.supervise import ALLOCATOR, STOP_GRACE, TRAINER, why
from workbench.train.versions import versions

MARK = "workbench-node "  # before what this says; a login shell may print, too
WORD_SECONDS = 10.0  # between two words of the first host
SILENT_SECONDS = 60.0  # after which it counts as gone


def interface_to(address: str) -> dict[str, str]:
    """The variable that lets gloo use the network on which `address` is reached. By itself it takes that of the host's
    own name, which on many hosts leads to themselves only."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # of a datagram: nothing is sent
            own = probe.getsockname()[0]
    except OSError:
        return {}
    names = [name for name, found in psutil.net_if_addrs().items() if own in [a.address for a in found]]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def looks(request: dict[str, Any]) -> dict[str, Any]:
    """What this host is, and whether it sees the file in the workspace that the first host has just written."""
    try:
        sees = Path(request["file"]).read_text(encoding="utf-8") == request["content"]
    except OSError:
        sees = False
    return {"host": hosts.name(), "versions": versions(), "slots": slots(), "sees": sees}


def start(request: dict[str, Any]) -> Processes:
    """Start the processes of this host; what they print goes to standard output."""
    given = slots()[: request["count"]]
    devices = "" if given == ["cpu"] else ",".join(given)
    changes = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "WORKBENCH_SUPERVISOR": str(os.getpid())}
    changes |= {"CUDA_VISIBLE_DEVICES": devices} | interface_to(request["address"]) | request["env"]

    def command(variables: dict[str, str], group: int) -> subprocess.Popen:
        return job.popen(
            TRAINER, request["run"], "--workspace", request["workspace"],
            env=ALLOCATOR | job.environment(**changes | variables),
            stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, process_group=group,
        )  # fmt: skip

    processes = Processes()
    where = {name: request[name] for name in ("first", "size", "address", "port")}
    processes.start(command, environments(request["count"], **where))
    return processes


def main() -> int:
    words: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            words.put(line.strip())
        words.put("gone")

    threading.Thread(target=listen, daemon=True).start()
    processes: Processes | None = None

    def obey() -> None:
        """What is said while the processes run."""
        while True:
            try:
                word = words.get(timeout=SILENT_SECONDS)
            except queue.Empty:
                word = "gone"
            if word == "kill":
                processes.kill()
            elif word in ("stop", "gone"):
                processes.terminate()
                if word == "gone":
                    killer = threading.Timer(STOP_GRACE, processes.kill)
                    killer.daemon = True
                    killer.start()
                    return

    while processes is None:
        try:
            word = words.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            return 1
        if word in ("gone", "stop", "kill"):
            return 0
        if not word:
            continue
        request = json.loads(word)
        if "file" in request:
            print(MARK + json.dumps(looks(request)), flush=True)
        else:
            processes = start(request)
    threading.Thread(target=obey, daemon=True).start()
    number, code = processes.wait()
    rank, run = request["first"] + number, Run(Path(request["run"]))
    if code < 0 and not failure_file(run, rank).exists():  # it had no time to say so
        write_failure(run, rank, why(code, False))
    processes.kill()
    return code if code >= 0 else 128 - code  # as a shell says it


if __name__ == "__main__":
    sys.exit(main())
