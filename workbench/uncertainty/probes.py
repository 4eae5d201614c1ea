"""Probe sets: prompts with what a good answer holds, asked of a base model and of adapters, before and after training.

A set is JSONL: `prompt`, and one of `expect` (a text or several, any of which the answer must mention), `pattern` (a
regular expression) or `judge` (a rule of `uncertainty/rules.py`). Results are kept with the run:
`runs/<id>/probes/<set>.json`; the base model's in `workspace/probes/`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from workbench.config.run_config import nearest
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import run_named
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.workspace import PROJECT, Workspace, slug
from workbench.uncertainty.rules import check_probe, passes

BUNDLED = PROJECT / "data" / "probes"
MAX_TOKENS = 64
MAX_SET = 16 << 20  # bytes of a probe set
TEMPERATURE = 0.7  # of the extra samples
Ask = Callable[[str, list[dict], int, float, int], list[str]]  # model, messages, n, temperature, seed -> answers


@dataclass
class Result:
    """One probe: the greedy answer, more samples, and `pass`, `fail`, or `inconsistent` when they differ."""

    prompt: str
    answer: str
    samples: list[str]
    verdict: str


@dataclass
class Report:
    """One set asked of one model."""

    set: str
    model: str
    results: list[Result] = field(default_factory=list)
    time: float = 0.0

    def count(self, verdict: str) -> int:
        return sum(result.verdict == verdict for result in self.results)


def probe_sets(workspace: Workspace) -> dict[str, Path]:
    """Bundled sets, and those in `workspace/probes/*.jsonl`."""
    sets = {file.stem: file for file in sorted(BUNDLED.glob("*.jsonl"))}
    return sets | {file.stem: file for file in sorted((workspace.root / "probes").glob("*.jsonl"))}


def read_set(name: str, workspace: Workspace) -> list[dict]:
    """The probes of a set, by its name or as a path.

    Raises:
        UserError: no such set, or a broken line (with its number).
    """
    sets = probe_sets(workspace)
    file = sets.get(name)
    if file is None and workspace.confined and ("/" in name or "." in name):  # a file: where a page's user may read
        file = workspace.inside(name, what="probe set")
    file = file or Path(name)
    if not file.is_file() or (workspace.confined and not workspace.may_read(file)):
        raise UserError("probe_set_missing", name=name, guess=nearest(name, sets), known=sets)
    probes = []
    try:
        lines = files.read_text(file, MAX_SET).splitlines()
    except OSError as error:
        raise UserError("file_unreadable", path=file, reason=error.strerror or error) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            probe = files.parse_json(line)
        except files.Unreadable as error:
            reason, place = error.reason, f"{file.name}:{number}"
            if isinstance(reason, Message) and reason.code == "not_json":
                raise UserError("probe_not_json", place=place, **reason.values) from None
            raise UserError("at_place", place=place, problem=reason) from None
        check_probe(probe, f"{file.name}:{number}")
        probes.append(probe)
    if not probes:
        raise UserError("probe_set_empty", name=file.name)
    return probes


def run_probe(ask: Ask, model: str, probe: dict, samples: int = 0, seed: int = 0) -> Result:
    """Ask one probe, greedily and `samples` times more."""
    messages = [{"role": "user", "content": probe["prompt"]}]
    if probe.get("system"):
        messages.insert(0, {"role": "system", "content": probe["system"]})
    (answer,) = ask(model, messages, 1, 0.0, seed)
    more = ask(model, messages, samples, TEMPERATURE, seed) if samples else []
    return Result(probe["prompt"], answer, more, verdict_of({passes(text, probe) for text in (answer, *more)}))


def verdict_of(passed: set[bool]) -> str:
    """`inconsistent` when some answers pass and some do not."""
    return "inconsistent" if len(passed) > 1 else "pass" if passed == {True} else "fail"


def keep(report: Report, workspace: Workspace) -> Path:
    """Write a report with its run, or with the workspace for a base model; the next one of this set replaces it."""
    workspace.check_writable()
    report.time = time.time()
    file = _file(report.set, report.model, workspace)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(asdict(report), ensure_ascii=False, indent=1))
    return file


def kept(set_name: str, model: str, workspace: Workspace) -> Report | None:
    """The last report of this set for this model, or None."""
    try:
        values = files.read_object(_file(set_name, model, workspace))
        return _report_check.validate_python(values)
    except (OSError, ValueError, UserError):  # ValueError: pydantic's, of another shape
        return None


def _file(set_name: str, model: str, workspace: Workspace) -> Path:
    run_id, _, checkpoint = model.partition("/")
    run = run_named(workspace, run_id)
    name = slug(Path(set_name).stem)
    if run is not None:
        return run.path / "probes" / f"{name}{'-' + slug(checkpoint) if checkpoint else ''}.json"
    return workspace.root / "probes" / f"{slug(model)}-{name}.json"


_report_check = TypeAdapter(Report)


def before_after(reports: list[Report]) -> list[dict]:
    """One row per probe: its prompt, the verdict of each model, and `fixed`, `broken` or empty from first to last."""
    rows = []
    for results in zip(*(report.results for report in reports), strict=True):
        first, last = results[0].verdict == "pass", results[-1].verdict == "pass"
        change = "" if len(results) == 1 or first == last else "fixed" if last else "broken"
        rows.append(
            {
                "prompt": results[0].prompt,
                "verdicts": [r.verdict for r in results],
                "answers": [r.answer for r in results],
                "change": change,
            }
        )
    return rows
