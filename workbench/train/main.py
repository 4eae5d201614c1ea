"""The process that trains: `python -m workbench.train.main RUN_DIRECTORY`, started by `supervise`.

Reads top to bottom: data, model, adapter, trainer, train, save. It talks only through files in the run directory.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from workbench import loading_libraries
from workbench.errors import NothingLeft, UserError
from workbench.messages.message import Message
from workbench.runs.heartbeat import Heartbeat
from workbench.runs.run import FollowedRun, Run, is_whole, step_of
from workbench.runs.state import own_process
from workbench.storage.files import write_atomically
from workbench.storage.workspace import Workspace
from workbench.train import launch


class Stopped(BaseException):
    """SIGTERM arrived before training began. No library's `except Exception` may take it for an error of its own."""


class Stop:
    """What SIGTERM means: before training, end at once; while training, save a checkpoint and end."""

    def __init__(self, run: Run):
        self.requested = False
        self.training = False
        self._run, self._supervisor, self._pid = run, os.getppid(), os.getpid()
        self._asks = 0
        signal.signal(signal.SIGTERM, self._ask)

    @property
    def supervised(self) -> bool:
        """Whether the supervisor that started this process is there to go on after it."""
        return os.getppid() == self._supervisor

    def _ask(self, signum, frame):
        if os.getpid() != self._pid:  # a forked worker, which has inherited this handler
            os._exit(128 + signum)
        self.requested = True
        if self._run.writes:
            (self._run.path / ".answered").touch()
        if not self.supervised:
            self._take_over()
        if not self.training:
            raise Stopped

    def _take_over(self) -> None:
        """The supervisor is gone and with it the reader of our output: write the log and own the state ourselves."""
        with open(self._run.log, "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        self._run.update(**own_process())
        if self._run.writes:
            Heartbeat(self._run.path, stop=self._asked_elsewhere)

    def _asked_elsewhere(self) -> None:
        """Stop was asked for on another host: this process saves already; asked again, it ends at once."""
        self._asks += 1
        if self._asks > 1:
            self._run.update(state="stopped", reason=Message("killed_by_stop"), ended=time.time())
            os._exit(1)


def main(arguments: list[str]) -> int:
    rank = launch.rank()  # only the first process writes the run's files
    run, workspace = (FollowedRun if rank else Run)(Path(arguments[0])), Workspace(arguments[2])
    die_with_parent()
    stop = Stop(run)

    def fail(reason: Message) -> None:
        run.update(state="failed", reason=reason)
        if rank:
            launch.write_failure(run, rank, reason)

    try:
        train(run, workspace, stop, fail)
    except Stopped:
        run.update(state="stopped", reason=Message("stopped_before"))
    except NothingLeft:
        message = Message("nothing_left")
        print(message, flush=True)
        run.update(state="finished", reason=message)
    except UserError as error:
        print(f"Error: {error}", flush=True)
        fail(error.message)
        return 2
    except Exception as error:
        if stop.requested and not stop.training:  # what stopping broke off, as a library sees it
            run.update(state="stopped", reason=Message("stopped_before"))
            return 0
        traceback.print_exc()
        fail(diagnosis(error, run.path))
        return 1
    return 0


def diagnosis(error: Exception, folder: Path) -> Message:
    """One sentence for the user: what went wrong and what to change. `folder` is where the run writes."""
    import torch

    text = " ".join(str(error).split())
    full = any(sign in text for sign in ("No space left", "Disk quota exceeded", "os error 28"))
    if full or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _is_full(folder, text):
        return Message("disk_full_checkpoint")
    if isinstance(error, torch.OutOfMemoryError):
        wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        return Message("gpu_memory_at_once", wanted=wanted[1]) if wanted else Message("gpu_memory")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in text:
        return Message("out_of_memory")
    if isinstance(error, FileNotFoundError) and error.filename:
        return Message("file_gone", file=error.filename)
    first = (str(error).strip().splitlines() or [""])[0]
    return Message("unexpected_in_run_log", kind=type(error).__name__, problem=first[:300])


def _is_full(folder: Path, text: str) -> bool:
    """Whether writing failed for want of space: torch and safetensors do not always say so."""
    return ("unexpected pos" in text or "write" in text.lower()) and shutil.disk_usage(folder).free < 1 << 20


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the supervisor dies, so that no trainer is left alone."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        # a stopped process whose supervisor dies is sent SIGHUP by the kernel, too: it should save, not end at once
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # who started it may be gone already; in a container the supervisor may be process 1, which adopts orphans
        if os.getppid() != int(os.environ.get("WORKBENCH_SUPERVISOR", 0 if parent == 1 else parent)):
            sys.exit(1)


def train(run: Run, workspace: Workspace, stop: Stop, fail: Callable[[Message], None]) -> None:
    """Do the run. `fail` writes down why it cannot go on, for an end without an exception.

    Raises:
        UserError: for what the user can change.
    """
    from workbench.config.run_config import load_run_config
    from workbench.train.fast.compiler_cache import use_compiler_cache
    from workbench.train.metrics_log import log, progress_writer

    config = load_run_config(run.path / "run.yaml")
    progress = progress_writer(run)
    progress(Message("starting"), 0.0)
    use_compiler_cache(workspace)

    with loading_libraries():
        import datasets
        import torch
        import transformers

        from workbench.data.prompts import load_prompts
        from workbench.data.training_set import encoder_of, load_data
        from workbench.models.load import compute_dtype, load_model, load_tokenizer
        from workbench.models.new_tokens import ready_for_tokens
        from workbench.models.reward import reward_model
        from workbench.models.tuning import ADAPTERS, tuned
        from workbench.train import ranks
        from workbench.train.answer_scores import answer_scores
        from workbench.train.placement import placed
        from workbench.train.references import References
        from workbench.train.trainer import build_trainer

    # deprecations inside transformers and TRL say nothing to a user, and bars are reported through `progress`
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    ranks.join(fail)
    transformers.set_seed(config.seed)
    dtype = compute_dtype(config.fp16, config.bf16 or config.pure_bf16)
    if config.max_gpu_memory and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, config.max_gpu_memory / total))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    on = f"{ranks.count()} × {device}" if ranks.count() > 1 else device
    run.update(device=on, warning="")  # those of an earlier start are no longer true
    log(f"Run {run.id} on {on}, computing in {str(dtype).removeprefix('torch.')}.")
    if (config.fp16 or config.bf16) and device == "CPU":
        log("Half precision was asked for; on the CPU the run computes in float32.")

    config = placed(config, workspace, log)
    if "shared" in ranks.gathered(config.weights_on):  # what fits a larger card than another has
        config = config.model_copy(update={"weights_on": "shared"})
    with ranks.first_before_others():  # which may make the demo model: transformers writes a model's files on rank 0
        tokenizer = load_tokenizer(config, workspace, progress)
    with ranks.first_before_others():
        if config.stage == "grpo":
            train_rows, eval_rows = load_prompts(config, workspace, encoder_of(config, tokenizer), progress, log)
        else:
            train_rows, eval_rows = load_data(
                config, workspace, tokenizer, progress, log=log, folder=run.path if run.writes else None
            )
    if run.writes and config.stage != "grpo":
        data = json.loads((run.path / "data.json").read_text(encoding="utf-8"))
        run.update(skipped_rows=sum(summary["broken"] for summary in data.values()))

    if config.deepspeed:
        from workbench.train import zero

        zero.begin(config, dtype)
    references = References(config, workspace, dtype, progress, log) if config.has_reference else None
    if references and config.needs_reference and references.other:
        with ranks.first_before_others():
            train_rows, eval_rows = references.from_other(train_rows, eval_rows)
    scores = answer_scores(config, workspace, dtype, progress, log)
    model = load_model(config, workspace, dtype=dtype, split=config.device_map == "auto", progress=progress, log=log)
    config = ready_for_tokens(model, tokenizer, config, log)
    if config.stage == "rm":
        model = reward_model(model, config.seed)
    model = tuned(model, config, workspace, run.path, log)

    checkpoint = _checkpoint(run, config)
    config = _of_same_batch(config, checkpoint, ranks.count())
    if run.writes:
        rewind(run, checkpoint)
    run.update(resume="")
    push = None
    if config.push_to_hub and run.writes:
        from workbench.train.push import Push

        push = Push(run, config)
    trainer = build_trainer(run, config, model, tokenizer, train_rows, eval_rows, dtype, stop, references, scores)
    if push is not None:
        trainer.add_callback(push)
    if checkpoint and config.use_badam:
        log("BAdam's state is not part of a checkpoint: it begins anew with its first block.")
    stop.training = True
    if stop.requested:
        raise Stopped
    progress("", 0.0)
    run.update(state="running")
    result = trainer.train(resume_from_checkpoint=checkpoint)

    progress(Message("saving"), 0.0)
    trainer.save_model(str(run.path))  # every process takes part; the first writes
    ranks.leave()
    if not run.writes:
        return
    tokenizer.save_pretrained(str(run.path))
    trainer.save_state()
    if push is not None:
        progress(Message("uploading"), 0.0)
        push.finish()
    metrics = result.metrics | {
        "total_tokens": trainer.state.num_input_tokens_seen or getattr(trainer, "_total_train_tokens", 0)
    }
    evaluated = [row for row in trainer.state.log_history if "eval_loss" in row]
    if evaluated:
        metrics["eval_loss"] = evaluated[-1]["eval_loss"]
    (run.path / "all_results.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    if config.plot_loss:
        from workbench.train.metrics_log import plot_loss

        plot_loss(run)
    last = trainer.state.global_step
    if config.load_best_model_at_end and (best := trainer.state.best_model_checkpoint):
        log(f"The best evaluation loss, {trainer.state.best_metric:.4f}, is that of {Path(best).name}: it was taken.")
    if stop.requested and last < trainer.state.max_steps:
        log(f"Stopped at step {last}; checkpoint-{last} is saved.")
        run.update(state="stopped", step=last, reason=Message("stopped_at", step=last), heartbeat=time.time())
    else:
        what = "adapter" if config.finetuning_type in ADAPTERS else "model"
        log(f"Finished after {last} steps. The {what} is in {run.path}.")
        # the supervisor starts the predictions, on the same devices
        goes_on = config.do_predict and stop.supervised and not stop.requested
        run.update(state="running" if goes_on else "finished", step=last, reason="", heartbeat=time.time())


def _checkpoint(run: Run, config) -> str | None:
    """The checkpoint to resume from: as configured, or the run's own last one when it was started again."""
    wanted = (config.resume_from_checkpoint or "").strip()
    own = run.checkpoints()
    chosen = run.path / (run.stored_state().resume or "-")
    if chosen in own:
        return str(chosen)
    if wanted.lower() in ("", "false"):
        return str(own[-1]) if own else None
    if wanted.lower() == "true":
        if not own:
            raise UserError("no_checkpoint_to_resume")
        return str(own[-1])
    if not is_whole(Path(wanted)):
        raise UserError("checkpoint_broken", path=wanted)
    stage = Run(Path(wanted).parent).config_values().get("stage", "sft")
    if stage != config.stage:
        raise UserError("checkpoint_of_stage", path=wanted, stage=stage, now=config.stage)
    return wanted


def _of_same_batch(config, checkpoint: str | None, processes: int):
    """The config with as many rows in a step as the checkpoint was made with, by other processes perhaps.

    Raises:
        UserError: so many processes cannot make such steps.
    """
    if checkpoint is None:
        return config
    # transformers' own record of how many there were
    before = len(list(Path(checkpoint).glob("rng_state_*.pth"))) or 1
    each, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if before == processes:
        return config
    if config.deepspeed:  # each process has a part of the optimizer's states
        raise UserError("zero_processes", before=before, now=processes)
    rows = before * each * steps
    if rows % (processes * each):
        raise UserError("batch_not_kept", rows=rows, before=before, now=processes, each=each)
    steps = rows // (processes * each)
    print(
        f"The checkpoint was made by {before} processes and goes on with {processes}:"
        f" gradient_accumulation_steps {steps} keeps {rows} rows in a step.",
        flush=True,
    )
    return config.model_copy(update={"gradient_accumulation_steps": steps})


def rewind(run: Run, checkpoint: str | None) -> None:
    """Take the run's files back to a checkpoint: no steps after it in the log, no later checkpoints beside the new
    ones.

    What is taken away goes into `superseded/`, and unfinished saves are deleted.
    """
    step = step_of(Path(checkpoint)) if checkpoint and Path(checkpoint).parent == run.path else 0
    shutil.rmtree(run.path / ".saving", ignore_errors=True)
    aside = run.path / "superseded" / time.strftime("%Y%m%d-%H%M%S")
    for later in run.path.glob("checkpoint-*"):
        if later.name.split("-")[-1].isdigit() and step_of(later) > step:
            aside.mkdir(parents=True, exist_ok=True)
            os.replace(later, aside / later.name)
    for file in (run.metrics, run.path / "samples.jsonl"):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            continue
        kept = [line for line in lines if (row := _row(line)) is not None and row.get("current_steps", 0) <= step]
        if len(kept) < len([line for line in lines if line]):
            aside.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, aside / file.name)
            write_atomically(file, "".join(f"{line}\n" for line in kept))


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) and isinstance(row.get("current_steps", 0), int) else None
    except (ValueError, RecursionError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
