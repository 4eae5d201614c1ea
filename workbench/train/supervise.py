"""The outer process of a run: starts the trainer, writes its log, and says in the end what became of it.

It stays small (no torch), so that it outlives what kills the trainer: an out-of-memory kill or a crash in native code
still ends with a true state and a reason. It is what `python -m workbench train` is, in the foreground or detached.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from workbench.errors import UserError
from workbench.options import RunConfig
from workbench.runs import Run
from workbench.state import FINAL, own_process
from workbench.workspace import PROJECT, Workspace

# without it, fragments make a 16B model of 10.8 GiB run out of a 12 GiB card
ALLOCATOR = dict.fromkeys(("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"), "expandable_segments:True")
_MAX_LINE = 100_000  # bytes of one printed line that are kept in the log


def visible_devices(devices: str, split: bool) -> dict[str, str]:
    """Environment that shows the trainer its GPUs: one, unless several are named or the model is split."""
    if devices == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if devices != "auto":
        return {"CUDA_VISIBLE_DEVICES": devices}
    if split or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    return {"CUDA_VISIBLE_DEVICES": "0"}


def supervise(run: Run, config: RunConfig, workspace: Workspace, *, echo: bool) -> int:
    """Train `run` in a child process and return its exit code: 0 done or stopped, 2 bad input, 1 failure.

    SIGTERM and SIGINT are passed on once as SIGTERM: the trainer saves a checkpoint and ends as `stopped`.
    """
    run.update(state="starting", started=time.time(), ended=None, exit_code=None, reason="", **own_process())
    environment = ALLOCATOR | os.environ | visible_devices(config.devices, config.device_map == "auto")
    environment |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": _python_path()}
    command = [
        sys.executable,
        "-m",
        "workbench.train.main",
        str(run.path),
        "--workspace",
        str(workspace.root),
    ]
    # its own process group: a Ctrl-C in the terminal reaches only this process, which asks the trainer to stop
    trainer = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, process_group=0
    )

    def pass_on(signum, frame):
        if trainer.poll() is None:
            trainer.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    _copy_output(trainer.stdout, run.log, echo)
    code = trainer.wait()
    return _close(run, code)


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))


def _copy_output(stream, log: Path, echo: bool) -> None:
    """Every line that the trainer prints, timestamp first, into the log and, with `echo`, onto the terminal."""
    with open(log, "ab", buffering=0) as file:
        for raw in stream:
            line = raw.rstrip(b"\r\n").rpartition(b"\r")[2][:_MAX_LINE]  # of a progress bar only its last state
            if not line.strip():
                continue
            try:
                file.write(time.strftime("%Y-%m-%d %H:%M:%S ").encode() + line + b"\n")
            except OSError:  # a full disk must not stop the training that a checkpoint may still save
                pass
            if echo:
                sys.stdout.buffer.write(line + b"\n")
                sys.stdout.flush()


def _close(run: Run, code: int) -> int:
    """Write the end of the run into its state and return this process's exit code."""
    state = run.stored_state()
    exit_code = code if code >= 0 else 1
    changes = {"ended": time.time(), "exit_code": code, "phase": ""}
    if state.state not in FINAL:
        changes["state"] = "failed"
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            changes["reason"] = f"The trainer was killed ({name})." + (
                " If nobody did that, the machine ran out of memory: lower cutoff_len or the batch size."
                if code == -signal.SIGKILL
                else ""
            )
        else:
            changes["reason"] = f"The trainer ended early (exit code {code}); the log says more."
    run.update(**changes)
    return exit_code


def preflight(config: RunConfig, workspace: Workspace) -> None:
    """Everything about a run that can be found wrong without loading a model.

    Raises:
        UserError: a missing model, adapter or dataset, a missing package, an unreadable first row.
    """
    import importlib.util

    from workbench.config import split_names
    from workbench.corpus import templates
    from workbench.corpus.formats import conversations
    from workbench.corpus.registry import select
    from workbench.models.locate import locate_adapter, locate_model
    from workbench.workspace import dataset_folder

    locate_model(config.model_name_or_path, workspace)
    if config.adapter_name_or_path:
        locate_adapter(config.adapter_name_or_path, workspace)
    templates.read(config.template)
    folder = dataset_folder(config.dataset_dir, workspace)
    for names in (config.dataset, config.eval_dataset):
        for info in select(names or "", folder):
            if info.path:
                next(iter(conversations(info, 1)), None)
    for name in split_names(config.report_to):
        if name not in ("none", "all") and importlib.util.find_spec(name) is None:
            raise UserError(f"report_to: {name} is not installed. Run: pip install {name}, or set report_to: none.")
