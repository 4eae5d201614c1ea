"""Tasks of lm-evaluation-harness from files: read as data, and looked through before the harness sees them.

A task of the harness may bring Python code: `!function`, a class, a metric from a hub. None of that is run unless the
user trusts the file. Its Jinja templates run in a sandbox in any case (`harness.py`).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files
from workbench.storage.workspace import Workspace, expanded

BUILDERS = ("json", "csv", "parquet", "text", "arrow")  # of `datasets`: they read files and run nothing
# what they take beside the files
_BUILDER_OPTIONS = ("data_files", "field", "delimiter", "sep", "column_names", "names", "encoding", "sample_by")
METRICS = (
    "acc", "acc_norm", "acc_mutual_info", "acc_bytes", "acc_all", "exact_match", "perplexity", "likelihood",
    "word_perplexity", "byte_perplexity", "bits_per_byte", "bypass", "brier_score", "mcc", "f1",
    "bleu", "chrf", "chrf++", "ter",
)  # fmt: skip
# keys that name code
_CODE = ("class", "custom_dataset", "use_prompt", "unsafe_code")
LOGLIKELIHOODS = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")
_MOST_INCLUDED = 20
_REMOTE = re.compile(r"[a-z0-9+]+://|hf:", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """A task that may be run. `values`: for the harness; `trusted`: read with its code."""

    name: str
    file: Path
    values: dict
    trusted: bool = False

    @property
    def asks_chances(self) -> bool:
        """Whether it compares log-likelihoods of texts, which only plain completions give."""
        return str(self.values.get("output_type", "generate_until")) in LOGLIKELIHOODS


def read_task(name: str, workspace: Workspace, *, trust: bool = False) -> Task:
    """The task of a YAML file.

    Args:
        trust: its Python code may run.

    Raises:
        UserError: there is no such file; it is no task; it brings code that is not trusted; its data are on a hub, or
            not there.
    """
    file = expanded(name, "task")
    if workspace.confined:
        file = workspace.inside(file if file.is_absolute() else Path.cwd() / file, what="task")
    if file.suffix == ".py":
        raise UserError("task_python", file=file.name)
    if file.suffix not in (".yaml", ".yml"):
        raise UserError("task_not_yaml", name=name)
    values = _merged(file, workspace, trust, [])
    if isinstance(values.get("task"), list) or "group" in values or "task_list" in values:
        raise UserError("task_group", file=file.name)
    task = values.get("task")
    if not isinstance(task, str) or not task.strip():
        raise UserError("task_no_name", file=file.name)
    if not trust:
        _check_code(values, file)
    values = _with_local_data(values, file, workspace, trust)
    return Task(task.strip(), file.resolve(), values, trust)


def _merged(file: Path, workspace: Workspace, trust: bool, seen: list[Path]) -> dict:
    """A file's values on top of those of the files that it includes. Raises UserError."""
    if workspace.confined:
        file = workspace.inside(file, what="task")
    if file.resolve() in seen or len(seen) >= _MOST_INCLUDED:
        raise UserError("task_includes", file=file.name)
    seen = [*seen, file.resolve()]
    try:
        text = files.read_text(file, files.MAX_YAML)
    except OSError as error:
        raise UserError("file_unreadable_name", file=file, reason=error.strerror or error) from None
    tags = _tags(text)
    if "!function" in tags and not trust:
        raise UserError("task_function", file=file.name)
    if tags - {"!function"}:
        raise UserError("task_tag", file=file.name, tag=sorted(tags - {"!function"})[0][:60])
    if trust and "!function" in tags:
        from lm_eval.tasks._yaml_loader import load_yaml

        try:
            values = load_yaml(file, recursive=False)
        except Exception as error:  # the code that is loaded may do anything
            raise UserError("task_unusable", file=file.name, problem=_first_line(error)) from None
    else:
        values = files.parse_yaml(text, file.name)
    if not isinstance(values, dict):
        raise UserError("yaml_not_pairs", what=file.name, kind=type(values).__name__)
    included = values.pop("include", None) or []
    merged: dict = {}
    for other in included if isinstance(included, list) else [included]:
        if not isinstance(other, str):
            raise UserError("task_includes", file=file.name)
        merged |= _merged(file.parent / other, workspace, trust, seen)
    return merged | {str(key): value for key, value in values.items()}


def _tags(text: str) -> set[str]:
    """The YAML tags that a text gives its values, without YAML's own."""
    try:
        events = list(files.yaml_events(text))
    except files.Unreadable:
        return set()  # the parser says what is wrong
    tags = {str(tag) for event in events if (tag := getattr(event, "tag", None))}
    return {tag for tag in tags if not tag.startswith("tag:yaml.org,2002:") or "python" in tag}


def _check_code(values: dict, file: Path) -> None:
    """Raise UserError for what would run code that the file brings or names."""
    for key in _CODE:
        if values.get(key) not in (None, False):
            raise UserError("task_code", file=file.name, key=key)
    metrics = values.get("metric_list") or []
    for entry in metrics if isinstance(metrics, list) else [metrics]:
        metric = entry.get("metric") if isinstance(entry, dict) else entry
        if metric not in METRICS or (isinstance(entry, dict) and entry.get("hf_evaluate")):
            raise UserError("task_metric", file=file.name, metric=str(metric)[:60], known=METRICS)


def _with_local_data(values: dict, file: Path, workspace: Workspace, trust: bool) -> dict:
    """The values with the paths of their data files made absolute. Raises UserError."""
    source, options = values.get("dataset_path"), values.get("dataset_kwargs") or {}
    if source not in BUILDERS:
        if trust:
            return values
        raise UserError("task_hub", file=file.name, source=str(source)[:100], builders=BUILDERS)
    if not isinstance(options, dict) or not options.get("data_files"):
        raise UserError("task_no_files", file=file.name)
    if strange := [str(key) for key in options if key not in _BUILDER_OPTIONS]:
        raise UserError("task_dataset_option", file=file.name, key=strange[0][:60], known=_BUILDER_OPTIONS)

    def local(path) -> str:
        if not isinstance(path, str) or _REMOTE.match(path):
            raise UserError("task_remote", file=file.name, source=str(path)[:100])
        for folder in (file.resolve().parent, Path.cwd()):
            found = expanded(path, "data_files")
            found = found if found.is_absolute() else folder / found
            if found.is_file():
                return str(workspace.inside(found, what="data_files") if workspace.confined else found.resolve())
        raise UserError("task_file_missing", file=file.name, name=path[:200])

    def each(given):
        if isinstance(given, dict):
            return {str(split): each(paths) for split, paths in given.items()}
        return [local(path) for path in given] if isinstance(given, list) else local(given)

    return values | {"dataset_kwargs": options | {"data_files": each(options["data_files"])}}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300].rstrip('.')}"


def problem_of(error: BaseException) -> str | Message:
    """What an error of the harness or of `datasets` says, in a clause."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if names & {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "MaxRetryError"} or (
        "offline" in text.lower() or "couldn't reach" in text.lower()
    ):
        return Message("task_no_network")
    return _first_line(error)
