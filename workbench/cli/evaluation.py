"""Answers to a dataset with their scores, and how two of them differ."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, JsonOption, LoadingOption, WorkspaceOption, tell, told_here
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.workspace import Workspace, slug

TargetArgument = Annotated[str, typer.Argument(help="A run, its checkpoint (ID/checkpoint-100), or a model.")]
AdapterOption = Annotated[str, typer.Option("--adapter", help="A run id or a folder, on top of a model.")]


def add_commands(app: typer.Typer) -> None:
    """Put this module's commands into the command line."""
    for command in (predict, evaluate, compare):
        app.command()(command)


def predict(
    model: TargetArgument,
    dataset: Annotated[str, typer.Option("--dataset", help="Names or files, comma-separated.")],
    adapter: AdapterOption = "",
    dataset_dir: Annotated[str, typer.Option("--dataset-dir", help="The folder with dataset_info.json.")] = "data",
    max_samples: Annotated[
        int | None, typer.Option("--max-samples", min=1, help="Only the first rows of each dataset.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=32_768)] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="0: the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 42,
    output: Annotated[
        Path | None, typer.Option("--output", help="A folder for the answers (default: with the run or the model).")
    ] = None,
    set_: LoadingOption = None,
    state_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Answer the rows of a dataset, and compare with their last answers: BLEU-4, ROUGE, exact match. Goes on where an
    earlier call of the same was ended."""
    from workbench.engine.main import set_environment
    from workbench.evaluation.predict import predict as answer
    from workbench.evaluation.results import Asked, Prediction, place
    from workbench.evaluation.target import loading, target
    from workbench.models.kernel_cache import use_kernel_cache
    from workbench.runs.job import told
    from workbench.runs.state import StateDirectory
    from workbench.train.metrics_log import progress_writer

    space = Workspace(workspace).create()
    state = StateDirectory(state_dir) if state_dir else None
    result: list[Message] = []
    with _interrupted("predict_interrupted"), told(state, lambda: result[0]), _turn(state, space) as in_turn:
        model, adapter, config = target(model, adapter, set_ or [], space)
        asked = Asked(
            model, adapter, dataset, dataset_dir, max_samples, max_new_tokens, temperature, top_p, seed, loading(config)
        )
        config = in_turn(config)
        set_environment(config)
        use_kernel_cache(space)
        folder = output or place(space, asked)
        log = lambda line: print(told_here(line), file=sys.stderr, flush=True)  # noqa: E731
        progress = progress_writer(state, say=False) if state else (lambda phase, share: None)
        result.append(answer(asked, config, space, folder, progress, log))
        if json_:
            print(json.dumps(Prediction(folder).totals() | {"folder": str(folder)}))
        else:
            tell(result[0])


def evaluate(
    model: TargetArgument,
    task: Annotated[list[str], typer.Option("--task", help="A YAML file of lm-evaluation-harness. Repeatable.")],
    adapter: AdapterOption = "",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows of each task.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before each question (default: the task's).")
    ] = None,
    chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template",
            help="Put the texts whose likelihood is measured into the chat template; answers are always asked as chat.",
        ),
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust-task-code", help="Run Python code that a task brings (!function).")
    ] = False,
    set_: LoadingOption = None,
    state_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Run tasks of lm-evaluation-harness, from files, on a run or a model. The results are kept with it."""
    from workbench.evaluation import harness
    from workbench.evaluation.target import target
    from workbench.evaluation.tasks import read_task
    from workbench.runs.job import told
    from workbench.runs.state import StateDirectory
    from workbench.train.metrics_log import progress_writer

    space = Workspace(workspace).create()
    state = StateDirectory(state_dir) if state_dir else None
    result: list[Message] = []
    end = lambda: Message("lines", problems=result)  # noqa: E731
    with _interrupted("harness_interrupted"), told(state, end), _turn(state, space) as in_turn:
        harness.check_installed()
        harness.set_environment(space)
        model, adapter, config = target(model, adapter, set_ or [], space)
        tasks = [read_task(name, space, trust=trust) for name in task]
        config = in_turn(config)
        progress = progress_writer(state, say=False) if state else _on_terminal
        more = {"limit": limit, "num_fewshot": num_fewshot, "chat_template": chat_template}
        found = harness.evaluate(tasks, model, adapter, config, space, progress, **more)
        for one in found:
            shown = [f"{name} {value:.4f}" for name, value in one.metrics.items()]
            file = harness.file_of(model, adapter, space)
            result.append(Message("harness_done", task=one.task, metrics=shown, samples=one.samples, file=file))
        if json_:
            print(json.dumps([vars(one) for one in found], ensure_ascii=False))
        else:
            for sentence in result:
                tell(sentence)


@contextlib.contextmanager
def _interrupted(code: str):
    """Ctrl-C is a sentence, and the end: Python's own would wait for threads of libraries."""
    try:
        yield
    except KeyboardInterrupt:
        tell(Message(code), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


@contextlib.contextmanager
def _turn(state, space: Workspace):
    """Gives a function that lets a job of the page wait for a device, and returns its config with that device; a
    command of a terminal starts at once. What waits behind the job is started at its end."""
    from workbench.evaluation.target import check_room
    from workbench.train import queue

    def in_turn(config):
        if state is None:
            return config
        given = queue.take_slots(state, config.devices, space)
        check_room(config, space)
        return config if given == "cpu" else config.model_copy(update={"devices": given})

    try:
        yield in_turn
    finally:
        if state is not None:
            state.update(devices="", position=0.0)
            queue.start_queued(space)


def _on_terminal(phase: str, share: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{told_here(phase)} {share:.0%}\x1b[K", end="", file=sys.stderr, flush=True)


def compare(
    first: Annotated[str, typer.Argument(help="A folder with predictions, or a run that has some.")],
    second: Annotated[str, typer.Argument(help="Another of the same dataset.")],
    show: Annotated[
        str, typer.Option("--show", help="all, differ, better, worse, or wrong (in the second).")
    ] = "differ",
    sort: Annotated[
        str, typer.Option("--sort", help="row, better, worse or difference: by exact match, then ROUGE-L.")
    ] = "difference",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows that are printed.")] = 20,
    dataset: Annotated[str, typer.Option("--dataset", help="Of which dataset, where a run has several.")] = "",
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Two predictions of one dataset side by side: which rows became better, which worse."""
    from workbench.evaluation.results import ORDERS, SHOWN, changes, compared

    if show not in SHOWN or f"by_{sort}" not in ORDERS:
        raise UserError("compare_option", shown=list(SHOWN), orders=[order.removeprefix("by_") for order in ORDERS])
    space = Workspace(workspace)
    one, other = (_prediction(name, dataset, space) for name in (first, second))
    every = compared(one, other)
    pairs = compared(one, other, show, f"by_{sort}")[:limit]
    counts = changes(every)
    if json_:
        rows = [{"row": p.row, "gain": p.gain, "first": p.first, "second": p.second} for p in pairs]
        print(json.dumps({"changes": counts, "rows": rows}, ensure_ascii=False))
        return
    for pair in pairs:
        gain = "" if pair.gain is None else f"{pair.gain:+.1f}"
        print(f"{pair.row:6} {gain:>7}  {_short(pair.first.get('label'))}")
        for row in (pair.first, pair.second):
            print(f"{'':16}{_short(row.get('predict') or row.get('problem'))}")
    tell(Message("compare_counts", rows=len(every), **counts))


def _short(text, most: int = 160) -> str:
    line = " ".join(str(text or "").split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _prediction(name: str, dataset: str, workspace: Workspace):
    """The predictions that a user means. Raises UserError."""
    from workbench.evaluation.results import ASKED, Prediction, listed, of_run
    from workbench.runs.run import run_named

    if (Path(name) / ASKED).is_file():
        return Prediction(Path(name))
    known = listed(workspace)
    if name in known:
        return known[name]
    run = run_named(workspace, name)
    found = of_run(workspace, name) if run else [p for k, p in known.items() if k.split("/")[1:2] == [slug(name)]]
    found = [p for p in found if not dataset or getattr(p.asked(), "dataset", "") == dataset]
    if len(found) == 1:
        return found[0]
    raise UserError("compare_several" if found else "compare_none", name=name, known=list(known) or Message("none"))
