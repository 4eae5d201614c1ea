"""The files of a run's folder: what each is for, and who writes it. Delete, overwrite and docs/architecture.md go by
this table."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFile:
    """Files of a run.

    Attributes:
        patterns: of their names in the folder.
        writer: whose they are: the page (or the command line), the supervisor, the trainer, the predictor, or a library inside it.
        about: what they hold, for the docs.
    """

    patterns: tuple[str, ...]
    writer: str
    about: str


RUN_FILES = (
    RunFile(("run.yaml",), "page", "the options as launched; `python -m workbench train runs/<id>` resumes the run"),
    RunFile(("slurm.sbatch", "slurm-*.log"), "page, Slurm", "of a run that was given to Slurm: its batch file, and what the job printed beside the run's own log"),
    RunFile(("run-until-*.yaml",), "page", "the options before a resume that changed them"),
    RunFile(
        ("state.json",), "supervisor, trainer",
        "replaced atomically: state (`queued`, `starting`, `running`, `stopping`, `stopped`, `finished`, `failed`, `lost`), pid and process start time, host, device, "
        "phase and progress, step, heartbeat, exit code, one-sentence reason, the codes of what is told (`messages`), devices, place in the queue, checkpoint to resume from, working folder, warning, who started it",
    ),
    RunFile(("running_log.txt",), "supervisor", "everything that the trainer prints, timestamps first"),
    RunFile(
        ("trainer_log.jsonl",), "trainer",
        "one object per logging step, LLaMA-Factory's names: `current_steps, total_steps, loss, eval_loss, lr, grad_norm, aux_loss, epoch, percentage, elapsed_time, "
        "remaining_time, throughput, total_tokens`, `vram_allocated, vram_reserved`, and `elapsed_seconds`, `peak_memory` and `peak_reserved` (GiB), `gpu_utilization` (%), `power` (W); where a run has several devices, also of each (`peak_memory_1`)",
    ),
    RunFile(("estimate.json",), "supervisor", "the memory that was expected of the run, part by part, and when it has ended the measured peak"),
    RunFile(("data.json",), "trainer", "what each dataset came to: rows, tokens, broken, shortened and unused rows"),
    RunFile(("checkpoint-*",), "trainer", "the Trainer's checkpoints, each with `files.json`: all its files and their sizes. It gets its name when all are on the disk"),
    RunFile(("pissa_init.safetensors",), "trainer", "with `pissa_init`: the factors that were taken out of the weights; a run that goes on takes the same"),
    RunFile(("samples.jsonl",), "trainer", "answers to `sample_prompts`: `current_steps, prompt, answer`"),
    RunFile(("meta.json",), "page", "what people say of the run: `title`, `note`, `tags`, `group`, `parent` (the run it was cloned from), `sweep` (the options that its sweep varies)"),
    RunFile(("probes",), "page", "reports of probe sets, one for each set and checkpoint"),
    RunFile(("generated_predictions.jsonl",), "predictor", "answers to `eval_dataset` (`do_predict`), a row each: LLaMA-Factory's `prompt, predict, label`, and `row, place, finish, tokens, logprob`, its scores, or the `problem` for which it was not asked"),
    RunFile(("predict_results.json", "predict.json", ".predict.lock"), "predictor", "the totals; what was asked, by which an unfinished prediction goes on; held while somebody writes"),
    RunFile(("predictions",), "page", "answers to other datasets, a folder each with the same files"),
    RunFile(("evaluations.json",), "page", "results of tasks of lm-evaluation-harness: task, metrics, limit, versions"),
    RunFile(("superseded",), "trainer", "lines of the log and checkpoints that a resume from an earlier checkpoint took back"),
    RunFile(
        (
            ".lock", ".saving", ".reserve", ".stopping", ".answered", ".heartbeat", ".stop-request", ".failed-*.json",
            ".*.tmp",
        ), "supervisor, trainer",
        "the run's lock; a checkpoint being written; room for the last word on a full disk; Stop was asked for, and heard; the supervisor's sign of life for other hosts, and their wish to stop; why a process other than the first failed; a file before it has its name",
    ),
    RunFile(
        ("adapter_model*.safetensors*", "adapter_config.json", "model*.safetensors*", "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
         "chat_template.jinja", "added_tokens.json", "vocab.json", "merges.txt", "README.md"),
        "library", "PEFT's and transformers' own layout: the adapter (or, with `finetuning_type` full or freeze, the model), tokenizer and template; loads without the workbench",
    ),
    RunFile(
        ("training_loss.png", "all_results.json", "trainer_state.json", "training_args.bin", "runs"), "trainer, library",
        "as users of the Trainer and LLaMA-Factory expect; `runs/` is TensorBoard's",
    ),
)  # fmt: skip


def is_run_file(name: str) -> bool:
    """Whether a file or folder of this name in a run's folder belongs to the run."""
    return any(Path(name).match(pattern) for file in RUN_FILES for pattern in file.patterns)


def remove_run_files(folder: Path) -> None:
    """Take a run's files out of a folder, whatever else is in it, and the folder if nothing is left."""
    for path in list(folder.iterdir()):
        if not is_run_file(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def run_files_table() -> str:
    """The table of docs/architecture.md."""
    lines = ["| file | written by | content |", "| --- | --- | --- |"]
    for file in RUN_FILES:
        names = ", ".join(f"`{pattern}`" for pattern in file.patterns)
        lines.append(f"| {names} | {file.writer} | {file.about} |")
    return "\n".join(lines) + "\n"
