"""lm-evaluation-harness on an engine of ours: the engine is started, asked over OpenAI's protocol, and ended.

The harness is no requirement: whoever wants it installs it (`pip install "lm_eval[api]"`).
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from workbench.config.options import EngineConfig
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.evaluation.results import Asked, place, run_of
from workbench.evaluation.tasks import Task, problem_of
from workbench.messages.message import Message
from workbench.models.locate import locate_model
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.workspace import Workspace

FILE = "evaluations.json"
KEPT = 200  # of a run
PACKAGE = 'pip install "lm_eval[api]"'
AT_ONCE = 8  # requests
LOAD_LOOK = 0.2  # seconds between two looks at an engine that loads
Progress = Callable[[str, float], None]


@dataclass
class Evaluation:
    """What came of one task. `metrics`: as the harness names them, without its filter `none`. `way`: `completions` or
    `chat`."""

    task: str
    model: str
    adapter: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    limit: int | None = None
    num_fewshot: int | None = None
    way: str = ""
    chat_template: bool = False
    version: str = ""
    lm_eval: str = ""
    file: str = ""
    seconds: float = 0.0
    time: float = 0.0


def check_installed() -> None:
    """Raise UserError where the harness, or what it needs for an API, is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "aiohttp", "tenacity")):
        raise UserError("harness_missing", command=PACKAGE)


def set_environment(workspace: Workspace) -> None:
    """What the harness and its libraries read when they are imported: their copies of data lie in the workspace."""
    cache = str(workspace.cache / "tasks")
    os.environ.update(HF_DATASETS_CACHE=cache, TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")


def evaluate(
    tasks: list[Task],
    model: str,
    adapter: str,
    config: EngineConfig,
    workspace: Workspace,
    progress: Progress,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat_template: bool = False,
) -> list[Evaluation]:
    """Run tasks on a model, or with an adapter on top; each result is kept as soon as it is there. Call
    `check_installed` and `set_environment` first, before the tasks are read.

    Raises:
        UserError: the model does not load, or a task cannot be run.
    """
    engine = Engine(workspace)
    done = []
    try:
        engine.load(config, adapter)
        if not any(task.trusted for task in tasks):  # here, behind the engine, which may have to fetch its model
            os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        _wait(engine, progress)
        for task in tasks:
            found = _run(task, engine, model, adapter, workspace, progress, limit, num_fewshot, chat_template)
            keep(found, workspace)
            done.append(found)
    finally:
        engine.unload()
    return done


def _wait(engine: Engine, progress: Progress) -> None:
    """Until the engine answers. Raises UserError: it has failed."""
    while True:
        state = engine.state()
        if state is None or not state.active:
            raise UserError("harness_engine", reason=(state and state.reason) or "–")
        if state.state == "running":
            return
        progress(state.phase or Message("predict_loading"), state.progress)
        time.sleep(LOAD_LOOK)


def _run(
    task: Task,
    engine: Engine,
    model: str,
    adapter: str,
    workspace: Workspace,
    progress: Progress,
    limit: int | None,
    num_fewshot: int | None,
    chat_template: bool,
) -> Evaluation:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import lm_eval
    from lm_eval.tasks import TaskManager

    sandbox()
    way = "completions" if task.asks_chances else "chat"
    started = time.monotonic()
    source = locate_model(model, workspace)
    arguments: dict[str, Any] = {
        "model": adapter or engine.model,
        "base_url": f"{engine.url}/v1/{'completions' if way == 'completions' else 'chat/completions'}",
        "header": {"Authorization": f"Bearer {engine.key}"},
        "num_concurrent": AT_ONCE,
        "max_retries": 1,
        "timeout": 3600,
        "tokenizer": source,
        "tokenizer_backend": "huggingface" if way == "completions" else None,
        "max_length": _context(source),
    }
    try:
        lm = _told(f"local-{'completions' if way == 'completions' else 'chat-completions'}", arguments, task, progress)
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=[task.values],
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=1000,
            log_samples=False,
            apply_chat_template=way == "chat" or chat_template,
            confirm_run_unsafe_code=task.trusted,
        )
    except Exception as error:  # the harness raises many kinds, its data and templates more
        if not engine.ready:
            state = engine.state()
            raise UserError("harness_engine", reason=(state and state.reason) or problem_of(error)) from error
        raise UserError("task_unusable", file=task.file.name, problem=problem_of(error)) from error
    results, counts = found["results"][task.name], found.get("n-samples", {}).get(task.name, {})
    return Evaluation(
        task.name,
        model,
        adapter,
        metrics(results),
        int(counts.get("effective", 0)),
        limit,
        found.get("n-shot", {}).get(task.name),
        way,
        way == "chat" or chat_template,
        _version(found.get("versions", {}).get(task.name)),
        str(getattr(lm_eval, "__version__", "")),
        task.file.name,
        round(time.monotonic() - started, 1),
        time.time(),
    )


def _version(given) -> str:
    """A task's version; of one that has none the harness says where it was read from."""
    return "" if given in (None, "Yaml") else str(given)


def metrics(results: dict) -> dict[str, float]:
    """The numbers among a task's results: `acc,none` is `acc`, another filter stays in the name."""
    found = {}
    for key, value in results.items():
        name, _, filter_ = str(key).partition(",")
        if isinstance(value, int | float) and not isinstance(value, bool) and filter_ and math.isfinite(value):
            found[name if filter_ == "none" else f"{name},{filter_}"] = round(float(value), 6)
    return found


def sandbox() -> None:
    """Let the harness render the templates of tasks, which are data, without access to Python's own objects."""
    import lm_eval.utils
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    own = lm_eval.utils.env
    if not isinstance(own, ImmutableSandboxedEnvironment):
        safe = ImmutableSandboxedEnvironment(
            loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline
        )
        safe.filters.update(own.filters)
        lm_eval.utils.env = safe


def _context(source: str) -> int:
    """Tokens that a prompt and its answer may have together."""
    try:
        known = files.read_object(Path(source) / "config.json")
    except (OSError, UserError):
        return 2048
    length = known.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else 2048


def _told(name: str, arguments: dict, task: Task, progress: Progress):
    """A model of the harness that says how many of its requests are answered."""
    from lm_eval.api.registry import get_model

    lm = get_model(name)(**arguments)
    count = {"done": 0, "total": 0}
    started = time.monotonic()

    class Hook(type(lm.cache_hook)):  # type: ignore[misc]
        def add_partial(self, *args, **kwargs) -> None:
            super().add_partial(*args, **kwargs)
            count["done"] += 1
            rate = count["done"] / max(time.monotonic() - started, 1e-6)
            left = str(timedelta(seconds=round(max(0, count["total"] - count["done"]) / rate)))
            told = Message("harness_going", task=task.name, rate=60 * rate, left=left, **count)
            progress(told, min(1.0, count["done"] / max(1, count["total"])))

    lm.set_cache_hook(Hook(None))

    def counting(asked: Callable) -> Callable:
        def counted(requests, *args, **kwargs):
            count["total"] += len(requests)
            return asked(requests, *args, **kwargs)

        return counted

    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(lm, method, counting(getattr(lm, method)))
    return lm


def file_of(model: str, adapter: str, workspace: Workspace) -> Path:
    """Where the results of a model are kept: with the run, or with the predictions of a base model."""
    run, _ = run_of(workspace, adapter or model)
    return (run.path if run else place(workspace, Asked(model, adapter, "x")).parent) / FILE


def keep(found: Evaluation, workspace: Workspace) -> Path:
    """Add a result to those of its run or model; of the same task, limit and number of shots the last one stays."""
    file = file_of(found.model, found.adapter, workspace)
    file.parent.mkdir(parents=True, exist_ok=True)

    def same(other: Evaluation) -> bool:
        return all(
            getattr(other, key) == getattr(found, key)
            for key in ("task", "adapter", "limit", "num_fewshot", "chat_template")
        )

    others = [other for other in read(file) if not same(other)]
    kept = [asdict(one) for one in [*others, found][-KEPT:]]
    write_atomically(file, json.dumps({"evaluations": kept}, ensure_ascii=False, indent=1))
    return file


def read(file: Path) -> list[Evaluation]:
    """The results of a file, oldest first; what is not one is left out."""
    try:
        entries = files.read_object(file, files.MAX_YAML).get("evaluations")
    except (OSError, UserError):
        return []
    known = []
    for entry in entries if isinstance(entries, list) else ():
        with contextlib.suppress(ValueError):  # pydantic's, of another shape
            known.append(_check.validate_python(entry))
    return known


_check = TypeAdapter(Evaluation)


def of_run(path: Path) -> list[Evaluation]:
    """The results that are kept with a run."""
    return read(path / FILE)
