"""Where predictions lie, and how they are read and compared. No torch here.

A prediction is a folder: `generated_predictions.jsonl` (one object a row, LLaMA-Factory's `prompt, predict, label`, and
ours beside them), `predict_results.json` (the totals) and `predict.json` (what was asked, by which an unfinished one is
known again). Of a run with `do_predict` that is the run's own folder; of others `runs/<id>/predictions/<dataset>`, and
of a base model `workspace/predictions/<model>/<dataset>`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from workbench.errors import UserError
from workbench.evaluation.scores import EXACT, SCORES
from workbench.runs.run import Run, list_runs, run_named
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.workspace import Workspace, slug

ROWS, TOTALS, ASKED = "generated_predictions.jsonl", "predict_results.json", "predict.json"
LOCK = ".predict.lock"
OWN = (ROWS, TOTALS, ASKED, LOCK)
FOLDER = "predictions"
MAX_COMPARED = 64 << 20  # bytes of answers that are looked at side by side
MAX_LINE = 32 << 20
ORDERS = ("by_row", "by_better", "by_worse", "by_difference")
SHOWN = ("all", "differ", "better", "worse", "wrong")
_SAME = 1e-6
_LARGEST = 2**53


@dataclass
class Asked:
    """What is predicted. `model` as a user wrote it, `adapter` a run, its checkpoint or a folder. `loading`: options of
    the model that are not the default. `content` tells datasets and adapter apart from what they were or will be."""

    model: str
    adapter: str = ""
    dataset: str = ""
    dataset_dir: str = "data"
    max_samples: int | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42
    loading: dict = field(default_factory=dict)
    content: list = field(default_factory=list)

    @property
    def name(self) -> str:
        """Who answers, in lists: the adapter, else the model."""
        return self.adapter or Path(self.model).name


def run_of(workspace: Workspace, name: str) -> tuple[Run | None, str]:
    """`(run, its checkpoint or nothing)` that an id, `id/checkpoint-N` or the path of one means; None for no run."""
    path = Path(name)
    inside = path.relative_to(workspace.runs) if path.is_absolute() and path.is_relative_to(workspace.runs) else path
    run_id, _, checkpoint = inside.as_posix().partition("/")
    return run_named(workspace, run_id), checkpoint


def place(workspace: Workspace, asked: Asked) -> Path:
    """The folder for what is predicted."""
    dataset = slug(asked.dataset)
    run, checkpoint = run_of(workspace, asked.adapter or asked.model)
    if run is not None:
        return run.path / FOLDER / f"{dataset}{'-' + slug(checkpoint) if checkpoint else ''}"
    name = slug(Path(asked.model).name) + (f"-{slug(Path(asked.adapter).name)}" if asked.adapter else "")
    return workspace.root / FOLDER / name / dataset


@dataclass(frozen=True)
class Prediction:
    """A folder with predictions. Nothing that is read here raises: what is broken is left out."""

    path: Path

    def asked(self) -> Asked | None:
        """What was asked; None where the file is missing or broken."""
        try:
            return _asked_check.validate_python(files.read_object(self.path / ASKED, files.MAX_YAML))
        except (OSError, ValueError, UserError):  # ValueError: pydantic's, of another shape
            return None

    def totals(self) -> dict:
        """The totals; empty until all rows are answered."""
        try:
            return {k: v for k, v in files.read_object(self.path / TOTALS, files.MAX_YAML).items() if _is_number(v)}
        except (OSError, UserError):
            return {}

    def rows(self, most: float = float("inf")) -> Iterator[dict]:
        """The rows that are whole, as they were written; of a file of more than `most` bytes only the first."""
        try:
            with open(self.path / ROWS, "rb") as file:
                read = 0
                while line := file.readline(MAX_LINE):
                    read += len(line)
                    if read > most:
                        return
                    if line.endswith(b"\n") and (row := _row(line)) is not None:
                        yield row
        except OSError:
            return

    def write_asked(self, asked: Asked) -> None:
        write_atomically(self.path / ASKED, json.dumps(asdict(asked), ensure_ascii=False, indent=1))

    @property
    def done(self) -> bool:
        """Whether all rows are answered."""
        return (self.path / TOTALS).is_file()


def _row(line: bytes) -> dict | None:
    try:
        row = files.parse_json(line)
    except UserError:
        return None
    if not isinstance(row, dict) or type(row.get("row")) is not int:
        return None
    texts = all(isinstance(row.get(key, ""), str) for key in ("prompt", "predict", "label", "problem"))
    numbers = all(_is_number(value) for value in row.values() if isinstance(value, int | float))
    return row if texts and numbers else None


def _is_number(value) -> bool:
    """Whether a value can be computed with and shown."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


_asked_check = TypeAdapter(Asked)


def listed(workspace: Workspace) -> dict[str, Prediction]:
    """All predictions, the newest first, by their path within the workspace: of runs, then of base models."""
    found: list[tuple[str, Path]] = []
    for run in list_runs(workspace):
        folders = [run.path, *sorted((run.path / FOLDER).glob("*"))]
        found += [(f"runs/{run.id}/{p.relative_to(run.path)}".removesuffix("/."), p) for p in folders]
    found += [(str(p.relative_to(workspace.root)), p) for p in sorted((workspace.root / FOLDER).glob("*/*"))]
    return {key: Prediction(path) for key, path in found if (path / ASKED).is_file()}


def of_run(workspace: Workspace, run_id: str) -> list[Prediction]:
    """The predictions of one run."""
    start = f"runs/{run_id}"
    return [p for key, p in listed(workspace).items() if key == start or key.startswith(start + "/")]


@dataclass(frozen=True)
class Pair:
    """One row that two predictions have: their rows, and by how much the second is better (negative: worse)."""

    row: int
    first: dict
    second: dict

    @property
    def gain(self) -> float | None:
        """In exact match first, then in ROUGE-L; None where there are no scores."""
        exact, rouge = ((self.second.get(name), self.first.get(name)) for name in (EXACT, "rouge-l"))
        if not all(isinstance(value, int | float) for value in (*exact, *rouge)):
            return None
        return (exact[0] - exact[1]) or (rouge[0] - rouge[1])

    @property
    def differs(self) -> bool:
        return (self.first.get("predict"), self.first.get("problem")) != (
            self.second.get("predict"),
            self.second.get("problem"),
        )


def compared(first: Prediction, second: Prediction, shown: str = "all", order: str = "by_row") -> list[Pair]:
    """The rows that both have, those that are to be shown, in some order.

    Raises:
        UserError: they are of different datasets: no row has the same prompt's label in both.
    """
    known = {row["row"]: row for row in first.rows(MAX_COMPARED)}  # a page does this for each of its users
    pairs = [Pair(row["row"], known[row["row"]], row) for row in second.rows(MAX_COMPARED) if row["row"] in known]
    same = [pair for pair in pairs if pair.first.get("label") == pair.second.get("label")]
    if pairs and len(same) < len(pairs):
        raise UserError("compare_other_rows")
    keep = {
        "all": lambda p: True,
        "differ": lambda p: p.differs,
        "better": lambda p: (p.gain or 0) > _SAME,
        "worse": lambda p: (p.gain or 0) < -_SAME,
        "wrong": lambda p: p.second.get(EXACT) == 0,
    }[shown]
    keys = {
        "by_row": lambda p: p.row,
        "by_better": lambda p: -(p.gain or 0),
        "by_worse": lambda p: p.gain or 0,
        "by_difference": lambda p: -abs(p.gain or 0),
    }
    return sorted(filter(keep, sorted(pairs, key=keys["by_row"])), key=keys[order])


def changes(pairs: list[Pair]) -> dict[str, int]:
    """How many rows are better, worse, the same, and answered in the same words."""
    gains = [pair.gain for pair in pairs if pair.gain is not None]
    return {
        "better": sum(gain > _SAME for gain in gains),
        "worse": sum(gain < -_SAME for gain in gains),
        "same": sum(abs(gain) <= _SAME for gain in gains),
        "words": sum(not pair.differs for pair in pairs),
    }


TOTAL_NAMES = (
    *(f"predict_{name}" for name in (EXACT, *SCORES)),
    "predict_mean_tokens",
    "predict_mean_logprob",
    "predict_samples",
    "predict_refused",
)
