"""What users corrected: rows to train on, preference pairs, votes. Lives in `workspace/corrections/`.

`corrections` is a dataset like any other (messages in OpenAI's form); `corrections_preference` holds the same
corrections and the votes as pairs (`chosen`, `rejected`) in LLaMA-Factory's sharegpt shape for preference training.
Users who log in have their own: `corrections-ann`, `corrections_preference-ann`.
"""

import json
import time
from pathlib import Path

from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.locks import locked
from workbench.storage.workspace import Workspace

DATASET, PAIRS, VOTES = "corrections", "corrections_preference", "votes"
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_LAYOUTS = {
    DATASET: {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _TAGS},
    PAIRS: {
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
        "tags": _TAGS,
    },
}


def own(workspace: Workspace, name: str) -> str:
    """A dataset, or the votes, by the name that it has for the workspace's user."""
    return f"{name}-{workspace.user}" if workspace.user else name


def _entries(folder: Path) -> dict[str, dict]:
    """dataset_info.json: everybody's corrections and pairs."""
    entries = {}
    for name, layout in _LAYOUTS.items():
        for file in sorted([*folder.glob(f"{name}.jsonl"), *folder.glob(f"{name}-*.jsonl")]):
            entries[file.stem] = {"file_name": file.name} | layout
    return entries


def _append(workspace: Workspace, name: str, row: dict) -> None:
    workspace.check_writable()
    folder = workspace.corrections
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        file = folder / f"{own(workspace, name)}.jsonl"
        # what cannot be read is not overwritten
        old = files.read_text(file) if file.exists() else ""
        if old and not old.endswith("\n"):
            old += "\n"
        # the whole file anew, so that a full disk or a crash leaves the old one
        write_atomically(file, old + json.dumps(row, ensure_ascii=False) + "\n")
        write_atomically(folder / "dataset_info.json", json.dumps(_entries(folder), ensure_ascii=False, indent=2))


def correct(workspace: Workspace, history: list[dict], wrong: str, right: str, model: str = "") -> int:
    """Keep that `wrong`, the model's answer to `history`, should have been `right`; returns how many corrections there
    are.

    Args:
        history: the conversation up to and with the question, as messages.

    Raises:
        UserError: no right answer, or the same as the wrong one.
    """
    right = right.strip()
    if not right:
        raise UserError("correction_empty")
    if right == wrong.strip():
        raise UserError("correction_same")
    messages = [{"role": m["role"], "content": m["content"]} for m in history]
    if not messages or messages[-1]["role"] != "user":
        raise UserError("correction_no_question")
    about = {"model": model, "time": int(time.time())}
    chosen, rejected = ({"role": "assistant", "content": text} for text in (right, wrong.strip()))
    _append(workspace, DATASET, {"messages": [*messages, chosen], **about})
    if wrong.strip():
        _append(workspace, PAIRS, {"messages": messages, "chosen": chosen, "rejected": rejected, **about})
    return len(rows(workspace))


def vote(workspace: Workspace, history: list[dict], answers: dict[str, str], best: str) -> int:
    """Keep which model's answer was best, and a pair of it with each of the others; returns the number of votes.

    Args:
        answers: model name -> its answer.
    """
    messages = [{"role": m["role"], "content": m["content"]} for m in history]
    about = {"time": int(time.time())}
    _append(workspace, VOTES, {"messages": messages, "answers": answers, "best": best, **about})
    for name, answer in answers.items():
        if name != best and answer.strip() != answers[best].strip():
            pair = {
                "chosen": {"role": "assistant", "content": answers[best]},
                "rejected": {"role": "assistant", "content": answer},
            }
            _append(workspace, PAIRS, {"messages": messages, **pair, "model": best, "against": name, **about})
    return len(votes(workspace))


STEPS = 40  # of a run on few corrections


# how corrections are learned: the right answers; right above wrong; both in one run
WAYS = ("sft", "dpo", "both")
# of runs on pairs: the highest learning rate, and optimizer steps. More makes a small model say the corrected words to
# other questions, too
_PAIR_RATES = {"dpo": 3e-4, "both": 5e-4}
_PAIR_STEPS = 20


def run_values(start: dict, adapter: str, count: int, dataset: str = DATASET, way: str = "sft") -> dict:
    """Options of a run on the corrections, which are in `dataset`: those of `start` (a preset, or the run whose adapter
    goes on), made for few rows. `way`: one of `WAYS`; all but the first want the dataset of pairs."""
    per_step = int(start.get("per_device_train_batch_size") or 1) * int(start.get("gradient_accumulation_steps") or 1)
    steps = STEPS if way == "sft" else _PAIR_STEPS
    epochs = max(3, min(steps, round(steps * per_step / max(count, 1))))
    return start | {
        "dataset": dataset,
        "eval_dataset": None,
        "val_size": 0,
        "eval_strategy": "no",
        "early_stopping_steps": None,
        "packing": False,
        "neat_packing": False,
        "num_train_epochs": epochs,
        "max_steps": -1,
        "logging_steps": 1,
        "warmup_steps": 2,
        "warmup_ratio": 0,
        "run_name": dataset,
        "output_dir": None,
        "resume_from_checkpoint": None,
        "adapter_name_or_path": adapter or None,
        **_stage(start, adapter, way),
    }


def _stage(start: dict, adapter: str, way: str) -> dict:
    """The options that make a run learn in one of `WAYS`."""
    if way == "sft":
        return {"stage": "sft", "ref_model": None, "ref_model_adapters": None}
    return {
        "stage": "dpo",
        "pref_loss": "sigmoid",
        "pref_ftx": 1.0 if way == "both" else 0.0,
        "dpo_label_smoothing": 0.0,
        "learning_rate": min(float(start.get("learning_rate") or 1.0), _PAIR_RATES[way]),
        "ref_model": None,
        "ref_model_adapters": adapter or None,  # what goes on is held to what it was
        "train_on_prompt": False,
    }


def rows(workspace: Workspace) -> list[dict]:
    """The corrections, oldest first; a line that is not whole is left out."""
    return _read(workspace, DATASET)


def pairs(workspace: Workspace) -> list[dict]:
    """The pairs that corrections and votes have made, oldest first."""
    return _read(workspace, PAIRS)


def votes(workspace: Workspace) -> list[dict]:
    return _read(workspace, VOTES)


def _read(workspace: Workspace, name: str) -> list[dict]:
    rows = []
    try:
        lines = files.read_bytes(workspace.corrections / f"{own(workspace, name)}.jsonl").splitlines()
    except (OSError, UserError):
        return []
    for line in lines:
        try:
            row = files.parse_json(line)
        except UserError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
