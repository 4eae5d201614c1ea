"""Child processes: the one way in which a run, an engine, the data worker, an export or a conversion is started.

A child runs a module of the workbench with this Python, finds the package wherever the parent was started, and has a
process group of its own, so that it can be ended with everything it has started. A child with a state directory
(`start`) writes its log there and says in `state.json` how far it is and what became of it; it outlives its parent
unless it is told not to.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import hosts
from workbench.runs.heartbeat import Heartbeat, ask_stop
from workbench.runs.state import StateDirectory, own_process
from workbench.storage.locks import locked
from workbench.storage.workspace import CODE, Workspace, slug

END_SECONDS = 3.0  # that a child may take to end when it is asked to
_KEPT = 20  # folders of jobs that have ended


def command(module: str, *arguments) -> list[str]:
    """The command line of a child that runs `module`, such as `workbench` or `workbench.train.main`."""
    english = ("--lang", "en") if module == "workbench" else ()  # what children print goes into logs
    return [sys.executable, "-m", module, *english, *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """A child's environment: the parent's, with the package on the path, without reports of use (TRL's trainers would
    send one to the hub), and `changes`."""
    path = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH", "")]))
    return {"HF_HUB_DISABLE_TELEMETRY": "1"} | os.environ | {"PYTHONPATH": path} | changes


def popen(module: str, *arguments, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """A child in a session of its own. `options` are those of `subprocess.Popen`."""
    own_group: dict[str, Any] = {} if "process_group" in options else {"start_new_session": True}
    return subprocess.Popen(command(module, *arguments), env=env or environment(), **own_group, **options)


def popen_program(line: list[str], env: dict[str, str], **options) -> subprocess.Popen:
    """A program that is not ours, such as another engine. It stays in the caller's process group, so that whoever ends
    the caller with its group ends it, too; when the caller dies alone, Linux sends it SIGTERM. Call it on a thread that
    lives as long as the process.

    Raises:
        OSError: it cannot be started.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    return subprocess.Popen(line, env=env, preexec_fn=die_with_parent, **options)


def end_tree(process: subprocess.Popen, seconds: float) -> None:
    """Ask a program to end; after `seconds` kill it and what it has started. Returns when it is gone."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with contextlib.suppress(psutil.NoSuchProcess):
        started += psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.kill()
    _, left = psutil.wait_procs(started, timeout=0.2)
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def end_group() -> None:
    """Kill what else is in this process's group: what a program that has ended left behind. Only in a session of its
    own, as `start` gives it: the group of a terminal's job is not this process's alone."""
    if os.getsid(0) != os.getpid():
        return
    for other in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if other != os.getpid() and os.getpgid(other) == os.getpid():
                os.kill(other, signal.SIGKILL)


def start(
    directory: StateDirectory, module: str, *arguments, changes: dict[str, str] | None = None, **options
) -> subprocess.Popen:
    """A child whose output goes to the log of `directory`, and which is waited for, so that it leaves no zombie.

    Args:
        changes: of its environment.
        options: of `subprocess.Popen`; by default standard input is empty, standard output and errors go to the log.
    """
    with open(directory.log, "ab") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        env = environment(**{"PYTHONUNBUFFERED": "1"} | (changes or {}))
        process = popen(module, *arguments, env=env, **streams | options)
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def new_directory(folder: Path, name: str) -> StateDirectory:
    """A fresh state directory in `folder`, named by the time and `name`; `queued`."""
    path = folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{slug(name)}"
    path.mkdir(parents=True)
    directory = StateDirectory(path)
    directory.begin()
    return directory


def free_port() -> int:
    """A port of this host on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def kill(process) -> None:
    """End a child at once, with everything it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen, seconds: float = END_SECONDS) -> None:
    """Ask a child to end, kill it when it does not within `seconds`, and return when it is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            kill(process)
    process.wait()


def jobs(workspace: Workspace, kind: str) -> list[StateDirectory]:
    """The jobs of a kind (`export`), newest first."""
    stamp = "????????-??????-??????"  # as `new_directory` writes it
    paths = sorted((p for p in workspace.jobs.glob(f"{stamp}-{kind}-*") if p.is_dir()), reverse=True)
    return [StateDirectory(path) for path in paths]


def start_job(workspace: Workspace, kind: str, name: str, module: str, *arguments) -> StateDirectory:
    """Start a long piece of work that goes on without the page: `module` with `arguments` and `--state-dir`.

    Raises:
        UserError: one of its kind is going.
    """
    workspace.check_writable()
    with locked(workspace.create().jobs / ".lock"):  # two clicks start one
        earlier = jobs(workspace, kind)
        for other in earlier:
            if other.state().active:
                raise UserError("job_going", id=other.id)
        for old in earlier[_KEPT:]:
            shutil.rmtree(old.path, ignore_errors=True)
        directory = new_directory(workspace.jobs, f"{kind}-{name}")
        process = start(directory, module, *arguments, "--state-dir", directory.path)
        directory.update(
            pid=process.pid, boot=hosts.boot()
        )  # one that dies before its first word would look as if it were still starting
    return directory


def stop_job(directory: StateDirectory) -> None:
    """End a job with everything it has started; its state says so. One of another host is asked to end."""
    state = directory.state()
    if state.active and state.pid and not hosts.is_here(state.boot):
        ask_stop(directory.path)
        return
    if state.active and state.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(state.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline and directory.state().active:
            time.sleep(0.02)
        if directory.state().active:  # only then is the process certainly the job's own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(state.pid, signal.SIGKILL)
        if directory.stored_state().active:
            directory.update(state="stopped", reason=Message("stopped"), ended=time.time())


@contextlib.contextmanager
def failures_told(directory: StateDirectory | None):
    """Around the work of a child: an error becomes its state and the reason, and goes on."""
    try:
        yield
    except UserError as error:
        if directory:
            directory.update(state="failed", reason=error.message, ended=time.time())
        raise
    except Exception as error:
        if directory:
            first = (str(error).splitlines() or [""])[0][:300]
            reason = Message("unexpected_in_log", kind=type(error).__name__, problem=first, log=directory.log)
            directory.update(state="failed", reason=reason, ended=time.time())
        raise


@contextlib.contextmanager
def told(directory: StateDirectory | None, result: Callable[[], str] = lambda: ""):
    """Around the work of a child: its end, good or bad, in its state. `result` gives the sentence of a good one."""
    if directory is None:
        yield
        return

    def stopped(signum, frame):
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stopped)
    directory.update(state="running", started=time.time(), **own_process())
    heartbeat = Heartbeat(directory.path, stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with failures_told(directory):
            yield
    except SystemExit:
        directory.update(state="stopped", reason=Message("stopped"), ended=time.time())
        raise
    finally:
        heartbeat.end()
    directory.update(state="finished", reason=result(), progress=1.0, phase="", ended=time.time())
