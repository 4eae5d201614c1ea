"""The outer process of a run: starts the trainer, writes its log, and says in the end what became of it.

It stays small (no torch), so that it outlives what kills the trainer: an out-of-memory kill or a crash in native code
still ends with a true state and a reason. It is what `python -m workbench train` is, in the foreground or detached.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import job
from workbench.runs.heartbeat import Heartbeat
from workbench.runs.run import Run
from workbench.runs.state import FINAL, own_process, process_of
from workbench.storage.workspace import Workspace
from workbench.train.devices import free_devices
from workbench.train.estimates import record
from workbench.train.launch import Processes, environments, forget_failures, process_count, read_failure

if TYPE_CHECKING:  # it starts what this module defines
    from workbench.train.nodes import Nodes

# without it, fragments make a 16B model of 10.8 GiB run out of a 12 GiB card
ALLOCATOR = dict.fromkeys(("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"), "expandable_segments:True")
TRAINER, PREDICTOR = "workbench.train.main", "workbench.evaluation.of_run"
_MAX_LINE = 100_000  # bytes of one printed line that are kept in the log
STOP_GRACE = float(os.environ.get("WORKBENCH_STOP_GRACE", 30))  # seconds in which a trainer must answer to Stop


class _Trainer:
    """The trainer's processes, and how they are stopped: asked first, killed when asked again or when they do not
    answer."""

    def __init__(self, run: Run):
        self._run = run
        self.processes = Processes()
        self.asked = 0
        self.killed_because = ""
        self.taken = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def started(self, processes: Processes) -> None:
        self.processes = processes
        self._run.update(trainer_pid=processes.first.pid, trainer_started=process_of(processes.first.pid))
        if self.asked:
            processes.terminate()

    def end(self) -> None:
        """Kill what is left of the trainer's process group: workers that outlive it would hold its files and its
        lock."""
        self.processes.kill()

    def beat(self) -> Heartbeat:
        """Tell other hosts that the run goes on, and listen to them. Once this process has counted as lost, another
        host may have taken the run over: then this one ends without a word in its files."""
        mine = own_process()

        def taken() -> bool:
            state = self._run.stored_state()
            return state.state == "queued" or (
                bool(state.pid) and (state.pid, state.boot) != (mine["pid"], mine["boot"])
            )

        def gone() -> None:
            self.taken = True
            self.end()

        return Heartbeat(self._run.path, self.stop, taken, gone)

    def _stop(self, signum, frame):
        self.stop()

    def stop(self) -> None:
        """Stop was asked for, by a signal or from another host."""
        self.asked += 1
        if not self.processes.running:
            return
        if self.asked > 1:
            self._kill(Message("stop_twice"))
            return
        self.processes.terminate()
        timer = threading.Timer(STOP_GRACE, self._unless_answered)
        timer.daemon = True
        timer.start()

    def _unless_answered(self):
        if not (self._run.path / ".answered").exists():
            self._kill(Message("stop_unanswered", seconds=STOP_GRACE))

    def _kill(self, because: Message):
        if self.processes.running:
            self.killed_because = because
            self.end()


def supervise(
    run: Run,
    config: RunConfig,
    workspace: Workspace,
    *,
    echo: bool,
    from_queue: str = "",
    nodes: "Nodes | None" = None,
) -> int:
    """Train `run` in a child process and return its exit code: 0 done or stopped, 2 bad input, 1 failure.

    SIGTERM and SIGINT are passed on as SIGTERM: the trainer saves a checkpoint and ends as `stopped`. The second one
    kills it.

    Args:
        from_queue: the devices that the queue gave; then a run that has left the queue meanwhile is not started.
        nodes: the hosts that train together, this one first.

    Raises:
        UserError: another process is at this run.
    """
    lock = run.lock()
    if lock is None:
        raise UserError("run_going", id=run.id)
    if from_queue and run.stored_state().state != "queued":
        os.close(lock)
        return 0
    trainer = _Trainer(run)  # before others know this process and may signal it
    for name in (".stopping", ".answered"):
        (run.path / name).unlink(missing_ok=True)
    forget_failures(run)
    run.make_reserve()
    devices = nodes.devices if nodes else from_queue or free_devices(config, workspace)
    run.update(
        state="starting", started=time.time(), ended=None, exit_code=None, reason="", devices=devices, **own_process()
    )
    heartbeat = trainer.beat()
    changes = {
        "PYTHONUNBUFFERED": "1",
        "WORKBENCH_SUPERVISOR": str(os.getpid()),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "" if devices == "cpu" else devices,
    }
    kills = _out_of_memory_kills()
    for module in _modules(run, config):
        trains = module == TRAINER

        # their own process group: a Ctrl-C in the terminal reaches only this process, which asks the trainer to stop;
        # they share the lock, so that the run stays locked until all are gone
        def start(variables: dict[str, str], group: int, module: str = module) -> subprocess.Popen:
            return job.popen(
                module,
                run.path,
                "--workspace",
                workspace.root,
                env=ALLOCATOR | job.environment(**changes | variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=group,
                pass_fds=(lock,),
            )

        processes = Processes()
        alone = environments(process_count(config, devices) if trains else 1)
        processes.start(start, nodes.environments() if nodes and trains else alone)
        for other in nodes.begin(run, workspace) if nodes and trains else ():
            processes.add(other)
        speakers = [getattr(process, "target", f"rank {n}" if n else "") for n, process in enumerate(processes.all)]
        trainer.started(processes)
        readers = [
            threading.Thread(target=_copy_output, args=(process.stdout, run.log, echo, speaker), daemon=True)
            for speaker, process in zip(speakers, processes.all, strict=True)
        ]
        for reader in readers:
            reader.start()
        if trains:
            record.begin(run, config, workspace, devices)
        rank, code = processes.wait()
        for reader in readers:
            reader.join(5)
        trainer.end()
        for reader in readers:
            reader.join(5)
        if code or trainer.asked or run.stored_state().state not in ("running", "finished"):
            break
    heartbeat.end()
    if trainer.taken:
        os.close(lock)
        raise UserError("run_taken", id=run.id, host=run.stored_state().host)
    if not code and trainer.asked and run.stored_state().state == "running":  # between training and predictions
        run.update(state="stopped", reason=Message("predict_stopped", done=0))
    if nodes and trains and code:
        if (lost := nodes.lost(rank, code)) and not trainer.asked:
            run.update(state="failed", reason=lost)
            rank, code = 0, 1
        else:
            rank = nodes.failed_rank(run, rank)
    exit_code = _close(run, code, trainer, _out_of_memory_kills() > kills, rank)
    if config.do_train:
        if not trains and run.stored_state().state == "failed":  # what was trained is there
            run.update(state="finished", reason=Message("predict_after_failed", reason=run.stored_state().reason))
        record.end(run, config, workspace, devices)
    os.close(lock)
    _tell(run, config)
    return exit_code


def _modules(run: Run, config: RunConfig) -> list[str]:
    """The children of a run, one after the other: the trainer, and what predicts."""
    if not config.do_predict:
        return [TRAINER]
    return [PREDICTOR] if not config.do_train or _is_trained(run) else [TRAINER, PREDICTOR]


def _is_trained(run: Run) -> bool:
    """Whether a run that goes on has only its predictions left: they had begun, and since then neither its options were
    changed nor another checkpoint was chosen."""
    begun, resume, saved = run.path / "predict.json", run.stored_state().resume, run.checkpoints()
    try:
        begun_last = begun.stat().st_mtime > (run.path / "run.yaml").stat().st_mtime
    except OSError:
        return False
    return (
        begun_last
        and not (run.path / "predict_results.json").exists()
        and resume in ("", *(p.name for p in saved[-1:]))
    )


def _out_of_memory_kills() -> int:
    """How many processes of this control group the kernel has killed because its memory was used up."""
    try:
        lines = Path("/sys/fs/cgroup/memory.events").read_text().splitlines()
        return int(dict(line.split() for line in lines).get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def _tell(run: Run, config: RunConfig) -> None:
    """Post the end of the run to `webhook_url`."""
    if not config.webhook_url:
        return
    import httpx

    state = run.stored_state()
    body = {
        "id": run.id,
        "state": state.state,
        "reason": state.reason,
        "step": state.step,
        "total_steps": state.total_steps,
    }
    try:
        httpx.post(config.webhook_url, json=body, timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        with open(run.log, "a", encoding="utf-8") as log:
            log.write(time.strftime("%Y-%m-%d %H:%M:%S ") + f"The webhook was not reached: {error}\n")


def _copy_output(stream, log: Path, echo: bool, speaker: str = "") -> None:
    """Every line that the trainer prints, timestamp first, into the log and, with `echo`, onto the terminal. A line of
    another process than the first, or of another host, says which."""
    said_by = f"[{speaker}] ".encode() if speaker else b""
    with open(log, "ab", buffering=0) as file:
        for raw in stream:
            line = raw.rstrip(b"\r\n").rpartition(b"\r")[2][:_MAX_LINE]  # of a progress bar only its last state
            if not line.strip():
                continue
            line = said_by + line
            try:
                file.write(time.strftime("%Y-%m-%d %H:%M:%S ").encode() + line + b"\n")
            except OSError:  # a full disk must not stop the training that a checkpoint may still save
                pass
            if echo:
                sys.stdout.buffer.write(line + b"\n")
                sys.stdout.flush()


def _close(run: Run, code: int, trainer: _Trainer, out_of_memory: bool, rank: int) -> int:
    """Write the end of the run into its state and return this process's exit code. `rank` is that of the process which
    ended with `code`."""
    state = run.stored_state()
    exit_code = code if code >= 0 else 1
    changes = {"ended": time.time(), "exit_code": code, "phase": ""}
    if trainer.killed_because and code == -signal.SIGKILL:
        last = run.checkpoints()
        rest = Message("last_checkpoint", name=last[-1].name) if last else Message("no_checkpoint")
        reason = Message("trainer_killed_because", because=trainer.killed_because, rest=rest)
        changes |= {"state": "stopped", "reason": reason}
        exit_code = 0
    elif trainer.asked and code == -signal.SIGTERM:  # it was still starting and had not learned to answer
        changes |= {"state": "stopped", "reason": Message("stopped_before")}
        exit_code = 0
    elif code and rank:  # what the first process says then is what it saw of that
        reason = read_failure(run, rank) or why(code, out_of_memory)
        changes["state"] = "failed"
        changes["reason"] = reason if reason == state.reason else Message("rank_failed", rank=rank, reason=reason)
    elif state.state not in FINAL:
        changes["state"] = "failed"
        changes["reason"] = why(code, out_of_memory)
    run.update(**changes)
    return exit_code


def why(code: int, out_of_memory: bool) -> Message:
    """What an exit code says, in a sentence with what to do."""
    if code >= 0:
        return Message("trainer_ended_early", code=code)
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if code != -signal.SIGKILL:
        return Message("trainer_killed_signal", signal=name)
    if out_of_memory:
        return Message("trainer_killed_memory")
    return Message("trainer_killed")
