"""Runs as jobs of Slurm: the batch file, its submission, and what Slurm says of it.

The job is the run's process: its batch file ends in `python -m workbench train RUN`. Until that has begun the run is
`queued` with the number of the job in `slurm`, and no queue of ours takes it. A job that Slurm starts anew (`--requeue`
after a preemption) goes on from the last checkpoint. Before the time limit Slurm sends SIGTERM: a checkpoint is saved.

Everything that is put into the batch file is quoted for the shell or held to a pattern: a line of it is never made
from what a person wrote for something else.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import Run, list_states
from workbench.runs.state import ProcessState
from workbench.storage.files import write_atomically
from workbench.storage.locks import is_held
from workbench.storage.workspace import CODE, Workspace
from workbench.train.devices import check_devices, slots, wanted_slots

FILE, LOG = "slurm.sbatch", "slurm-%j.log"
SUBMITTING = "-"  # instead of a job's number, until Slurm has given one
SAVE_SECONDS = 120  # before the time limit, in which a checkpoint is saved
_LOOK_SECONDS = 30.0  # between two looks at Slurm by one process
_PATIENCE = 30.0  # seconds for an answer of Slurm
_VALUES = {  # of #SBATCH lines
    "partition": r"[\w.,+-]+",
    "account": r"[\w.@+-]+",
    "time": r"[\d:-]+|unlimited|infinite",
}
# options of sbatch that a page's user may give: they choose among what the cluster has, and name no file, program or
# environment
CHOOSING = (
    "begin", "clusters", "comment", "constraint", "core-spec", "deadline", "dependency", "exclude", "exclusive", "gres",
    "hint", "licenses", "mem", "mem-per-cpu", "mem-per-gpu", "nice", "no-requeue", "nodelist", "prefer", "qos",
    "requeue", "reservation", "switches", "threads-per-core", "tmp",
)  # fmt: skip
_CHOICE = re.compile(r"--([a-z-]+)(?:=[\w.,:@+/&|()\[\]*-]{1,200})?")
MOST = 1024  # nodes, GPUs and cores that a page's user may ask for
_looked: dict[Path, float] = {}


@dataclass(frozen=True)
class Wishes:
    """What a job asks Slurm for; empty and 0: whatever the cluster gives. `gpus` are those of one node.

    Attributes:
        sbatch: further options of sbatch, such as `--constraint=a100`, one each.
        setup: lines of shell before the training, such as `module load cuda`.
    """

    partition: str = ""
    account: str = ""
    time: str = ""
    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    sbatch: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise UserError for what cannot stand in a batch file."""
        for name, pattern in _VALUES.items():
            value = getattr(self, name)
            if value and not re.fullmatch(pattern, value):
                raise UserError("slurm_value", name=name, value=value[:80])
        for name, lines in (("sbatch", self.sbatch), ("setup", self.setup)):
            for line in lines:
                if not _is_line(line) or (name == "sbatch" and not line.startswith("-")):
                    raise UserError("slurm_value", name=name, value=line[:80])

    def confine(self) -> None:
        """Raise UserError for what only who owns the machine may ask for: shell, and options of sbatch that are not in
        `CHOOSING`."""
        if self.setup:
            raise UserError("slurm_value", name="setup", value=self.setup[0][:80])
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 0)):
            if not least <= getattr(self, name) <= MOST:
                raise UserError("slurm_value", name=name, value=str(getattr(self, name))[:80])
        for line in self.sbatch:
            match = _CHOICE.fullmatch(line.strip())
            if not match or match[1] not in CHOOSING:
                raise UserError("slurm_option", option=line.strip()[:80], known=CHOOSING)


def _is_line(text: str) -> bool:
    return bool(text.strip()) and text.isprintable()


def _directive(option: str, value) -> str:
    return f"#SBATCH --{option}={value}"


def batch_file(run: Run, workspace: Workspace, wishes: Wishes) -> str:
    """The text of a run's batch file.

    Raises:
        UserError: a wish, or a path, that cannot stand in one.
    """
    wishes.check()
    folder, here = run.path.absolute(), os.getcwd()
    for path in (str(folder), str(workspace.root), here, sys.executable):
        if not _is_line(path):
            raise UserError("slurm_value", name="path", value=path[:80])
    # sbatch reads quotes and backslashes as a shell does; a per cent sign begins a pattern of its own
    log = str(folder / LOG.replace("%j", "\0")).replace("%", "%%").replace("\0", "%j")
    quoted = '"' + log.replace("\\", "\\\\").replace('"', '\\"') + '"'
    lines = [
        "#!/bin/bash",
        _directive("job-name", re.sub(r"[^A-Za-z0-9.-]+", "-", run.id)[:60] or "run"),
        _directive("output", quoted),
        "#SBATCH --open-mode=append",
        _directive("nodes", wishes.nodes),
        "#SBATCH --ntasks-per-node=1",
        _directive("signal", f"B:TERM@{SAVE_SECONDS}"),
    ]
    given = {"partition": wishes.partition, "account": wishes.account, "time": wishes.time}
    given |= {"gres": f"gpu:{wishes.gpus}" if wishes.gpus else "", "cpus-per-task": wishes.cpus or ""}
    lines += [_directive(option, value) for option, value in given.items() if value]
    lines += [f"#SBATCH {line.strip()}" for line in wishes.sbatch]
    lines += [
        "",
        f"cd -- {shlex.quote(here)}",
        f"export PYTHONPATH={shlex.quote(str(CODE))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]
    lines += list(wishes.setup)
    command = [sys.executable, "-m", "workbench", "--lang", "en", "train", str(folder)]
    command += ["--workspace", str(workspace.root), "--quiet"]
    nodes = ' --through srun --nodes "$(scontrol show hostnames | paste -sd,)"' if wishes.nodes > 1 else ""
    lines.append(f"exec {shlex.join(command)}{nodes}")
    return "\n".join(lines) + "\n"


def check_slurm() -> None:
    """Raise UserError where this machine cannot submit jobs."""
    if not shutil.which("sbatch"):
        raise UserError("slurm_missing")


def submit(run: Run, workspace: Workspace, wishes: Wishes) -> str:
    """Write the batch file into a run's folder and submit it; returns the job's number.

    The run has been made, or made ready to go on, with `host=""` and `slurm=SUBMITTING`.

    Raises:
        UserError: Slurm does not take it. The run is `failed` then, and says why.
    """
    try:
        write_atomically(run.path / FILE, batch_file(run, workspace, wishes))
        said = _ask("sbatch", "--parsable", str(run.path.absolute() / FILE))
        job = said.strip().splitlines()[-1].split(";")[0] if said.strip() else ""
        if not job.isdigit():
            raise UserError("slurm_refused", program="sbatch", reason=Message("slurm_unclear", text=said[:200]))
    except UserError as error:
        run.update(state="failed", reason=error.message, ended=time.time(), slurm="")
        raise
    if run.stored_state().slurm == SUBMITTING:  # a quick job may be further
        run.update(slurm=job, reason=Message("slurm_waits", job=job))
    return job


def cancel(job: str) -> None:
    """Take a job out of Slurm. Raises UserError: Slurm does not."""
    _ask("scancel", job)


def is_own_job(job: str) -> bool:
    """Whether this process is in the job of that number."""
    own = os.environ.get("SLURM_JOB_ID", "")
    return bool(own) and job in (own, SUBMITTING)


@contextlib.contextmanager
def failure_told(run: Run) -> Iterator[None]:
    """Around what a job does before it trains, or a process that was given a run which is in nobody's queue: nobody
    sees what it prints, so an error becomes the run's end."""
    state = run.stored_state()
    given = state.state == "queued" and not state.host and not state.slurm
    try:
        yield
    except UserError as error:
        if given or is_own_job(run.stored_state().slurm):
            run.update(state="failed", reason=error.message, ended=time.time())
        raise


def take_over(run: Run) -> None:
    """In the job of a run, before it trains: what this job's processes on an earlier node have left is past. Waits for
    the file server to let go of the lock of a node that is gone."""
    deadline = time.monotonic() + _PATIENCE * 4
    while is_held(run.path / ".lock") and time.monotonic() < deadline:
        time.sleep(1)
    job = os.environ["SLURM_JOB_ID"]  # `submit` may not have written it yet
    run.update(state="queued", slurm=job, pid=None, pid_started=None, boot="", trainer_pid=None, trainer_started=None)


def take_back(run: Run, state: ProcessState) -> None:
    """A run that was given to Slurm once is started by hand. Raises UserError while it waits there."""
    if state.active:
        raise UserError("slurm_waiting", id=run.id, job=state.slurm)
    run.update(slurm="")


def given_devices(run: Run, config: RunConfig) -> str:
    """In the job of a run, its devices: all that Slurm gave, or those of them that the config names; else nothing.

    Raises:
        UserError: it names one that is not there.
    """
    if not is_own_job(run.stored_state().slurm):
        return ""
    check_devices(config)
    available = slots()
    wanted, _ = wanted_slots(config.model_dump(), available)
    return ",".join(available if config.devices == "auto" else wanted)


def look(workspace: Workspace) -> list[Run]:
    """End the runs whose job is gone, and return them. Slurm is asked at most every half minute, and only for jobs of
    this user: it may keep those of others to itself."""
    now = time.monotonic()
    runs = [item.run for item in list_states(workspace) if _of_slurm(item.state) and _is_mine(item.run)]
    if not runs or now - _looked.get(workspace.root, -_LOOK_SECONDS) < _LOOK_SECONDS:
        return []
    _looked[workspace.root] = now
    try:
        there = {line.strip() for line in _ask("squeue", "--noheader", "--me", "--format=%A").splitlines()}
    except UserError:
        return []  # Slurm does not answer: that says nothing of the jobs
    ended = []
    for run in runs:
        state = run.state()
        if _of_slurm(state) and state.slurm not in there:  # looked at again: it may have ended well meanwhile
            run.update(state="failed", reason=_end(state.slurm), ended=time.time())
            ended.append(run)
    return ended


def _is_mine(run: Run) -> bool:
    try:
        return (run.path / FILE).stat().st_uid == os.getuid()
    except OSError:
        return False


def _of_slurm(state: ProcessState) -> bool:
    """Whether a run waits in Slurm, or its process there is gone without a word."""
    waits = state.state == "queued" and not state.pid
    return state.slurm.isdigit() and (waits or (state.state == "lost" and state.ended is None))


def _end(job: str) -> Message:
    """Why a job is no more, from Slurm's accounting where there is one."""
    try:
        said = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State,ExitCode", "--jobs", job)
        word, _, code = said.strip().splitlines()[0].partition("|")
    except (UserError, IndexError):
        return Message("slurm_gone", job=job)
    if not re.fullmatch(r"[\w ]{1,60}", word):
        return Message("slurm_gone", job=job)
    return Message("slurm_ended", job=job, state=word.split()[0], code=code[:20])


def _ask(program: str, *arguments: str) -> str:
    """What a program of Slurm prints. Raises UserError: it is not there, does not answer, or refuses."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_PATIENCE, errors="replace"
        )
    except FileNotFoundError:
        raise UserError("slurm_missing") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = Message("slurm_silent", seconds=_PATIENCE) if isinstance(error, subprocess.TimeoutExpired) else error
        raise UserError("slurm_refused", program=program, reason=reason) from None
    if done.returncode:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or [str(done.returncode)])[-1]
        raise UserError("slurm_refused", program=program, reason=last.strip()[:300])
    return done.stdout
