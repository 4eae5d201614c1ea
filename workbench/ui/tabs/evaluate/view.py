"""What the Evaluate tab and the comparison of runs show of predictions and evaluations, as HTML: no gradio here."""

import itertools
from collections.abc import Mapping
from html import escape

from workbench.evaluation import harness
from workbench.evaluation.results import ASKED, TOTAL_NAMES, TOTALS, Asked, Pair, Prediction, listed
from workbench.evaluation.scores import EXACT
from workbench.runs.run import run_named
from workbench.storage.files import file_token
from workbench.storage.workspace import Workspace
from workbench.ui.catalogue import say
from workbench.ui.notes import middle

MOST = 100  # lines of a table
PAGE = 50  # rows that are compared at once
_CELL = 2000  # characters of a text that are shown
_PROMPT_END = 600  # of a prompt: the last question stands at its end


def who_of(key: str, asked: Asked) -> str:
    """Who answered, and the run that this was a part of where the name does not say so."""
    run_id = key.split("/")[1] if key.startswith("runs/") else ""
    return asked.name if not run_id or run_id in asked.name else f"{asked.name} ({run_id})"


def label_of(key: str, prediction: Prediction) -> str:
    """Who answered what, in a list."""
    asked = prediction.asked()
    return f"{who_of(key, asked)} · {asked.dataset}" if asked else key


def choices(workspace: Workspace) -> list[tuple[str, str]]:
    """`(label, key)` of all predictions, the newest runs first."""
    return [(label_of(key, prediction), key) for key, prediction in list(listed(workspace).items())[:500]]


def totals_html(predictions: Mapping[str, Prediction], lang: str) -> str:
    """The totals of predictions, a line each, by their keys; empty where there are none."""
    lines = []
    for key, prediction in itertools.islice(predictions.items(), MOST):
        asked, totals = prediction.asked(), prediction.totals()
        if asked is None:
            continue
        cells = "".join(f"<td>{_number(totals.get(name))}</td>" for name in TOTAL_NAMES)
        if not totals:
            count = say("evaluate_unfinished", lang, count=f"{sum(1 for _ in prediction.rows()):,}")
            cells = f"<td colspan='{len(TOTAL_NAMES)}'>{escape(count)}</td>"
        who, on = middle(who_of(key, asked), 60), middle(asked.dataset, 34)
        lines.append(f"<tr><td>{who}</td><td>{on}</td>{cells}</tr>")
    if not lines:
        return ""
    names = [say("evaluate_who", lang), say("evaluate_on", lang), *(say(f"total_{name}", lang) for name in TOTAL_NAMES)]
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    return f"<div class='wb-wide'><table class='wb-table wb-totals'><tr>{head}</tr>{''.join(lines)}</table></div>"


def evaluations_html(found: list[harness.Evaluation], lang: str) -> str:
    """Results of tasks: a line for each task with its settings and metric, a column for each model."""
    if not found:
        return ""
    found = found[-MOST:]
    who = list(dict.fromkeys(one.adapter or one.model for one in found))
    lines: dict[tuple, dict[str, str]] = {}
    for one in found:
        for name, value in one.metrics.items():
            if (plain := name.replace("_stderr", "", 1)) in one.metrics and plain != name:
                continue  # stands beside its metric
            key = one.task, one.num_fewshot, one.limit, one.way, one.chat_template, one.version, name
            error = one.metrics.get(_error_name(name))
            shown = _number(value, 4) + ("" if error is None else f" ± {_number(error, 4)}")
            lines.setdefault(key, {})[one.adapter or one.model] = shown
    names = [say("evaluate_task_column", lang), "", *who]
    head = "".join(f"<th scope='col'>{middle(name, 34)}</th>" for name in names)
    body = ""
    for (task, shots, limit, way, template, version, name), values in lines.items():
        settings = [f"{shots or 0}-shot", way, *(["chat template"] if template and way != "chat" else [])]
        settings += [f"limit {limit}"] if limit else []
        settings += [f"version {version}"] if version else []
        cells = "".join(f"<td>{escape(values.get(one, chr(8211)))}</td>" for one in who)
        sub = f"<div class='wb-sub'>{escape(', '.join(settings))}</div>"
        body += f"<tr><td>{middle(task, 40)}{sub}</td><td>{escape(name)}</td>{cells}</tr>"
    return f"<div class='wb-wide'><table class='wb-table wb-tasks'><tr>{head}</tr>{body}</table></div>"


def of_runs_html(workspace: Workspace, ids: list[str], lang: str) -> str:
    """Predictions and evaluations of some runs, for their comparison."""
    known = listed(workspace)
    wanted = {f"runs/{id_}" for id_ in ids}
    own = {key: p for key, p in known.items() if "/".join(key.split("/")[:2]) in wanted}
    runs = [run for id_ in ids if (run := run_named(workspace, id_))]
    found = [one for run in runs for one in harness.of_run(run.path)]
    return totals_html(own, lang) + evaluations_html(found, lang)


def _error_name(metric: str) -> str:
    """How the harness names the standard error of a metric, with its filter or without."""
    name, comma, filter_ = metric.partition(",")
    return f"{name}_stderr{comma}{filter_}"


def evaluations(workspace: Workspace) -> list[harness.Evaluation]:
    """All results of tasks, the oldest first."""
    files = [*workspace.runs.glob(f"*/{harness.FILE}"), *(workspace.root / "predictions").glob(f"*/{harness.FILE}")]
    return sorted((one for file in files for one in harness.read(file)), key=lambda one: one.time)


def token(workspace: Workspace) -> tuple:
    """Something that changes when there are other results."""
    known = listed(workspace)
    files = [prediction.path / name for prediction in known.values() for name in (ASKED, TOTALS)]
    more = [*workspace.runs.glob(f"*/{harness.FILE}"), *(workspace.root / "predictions").glob(f"*/{harness.FILE}")]
    return tuple(known), file_token(*files, *more)


def pairs_html(pairs: list[Pair], names: tuple[str, str], lang: str, page: int = 1) -> str:
    """Rows side by side, `PAGE` of them."""
    if not pairs:
        return f"<div class='wb-sub'>{escape(say('evaluate_no_hit', lang))}</div>"
    start = (max(1, page) - 1) * PAGE
    part = pairs[start : start + PAGE]
    heads = [say("evaluate_row", lang), say("evaluate_question", lang), say("evaluate_label", lang), *names]
    heads.append(say("evaluate_change", lang))
    head = "".join(f"<th scope='col'>{middle(name, 40)}</th>" for name in heads)
    body = "".join(_pair_html(pair) for pair in part)
    shown = say(
        "evaluate_shown", lang, shown=f"{start + 1:,}–{start + len(part):,}" if part else "0", count=f"{len(pairs):,}"
    )
    return (
        f"<div class='wb-sub'>{escape(shown)}</div><div class='wb-wide'>"
        f"<table class='wb-table wb-pairs'><tr>{head}</tr>{body}</table></div>"
    )


def _pair_html(pair: Pair) -> str:
    gain = pair.gain
    change, kind = "", ""
    if gain is not None:
        change, kind = f"{gain:+.1f}" if gain else "=", "ok" if gain > 0 else "bad" if gain < 0 else ""
    prompt = str(pair.second.get("prompt") or pair.first.get("prompt") or "")
    cells = f"<td>{pair.row}</td><td>{_text(prompt[-_PROMPT_END:])}</td><td>{_text(pair.second.get('label'))}</td>"
    cells += "".join(f"<td>{_answer_html(row)}</td>" for row in (pair.first, pair.second))
    return f"<tr data-row='{pair.row}'>{cells}<td class='wb-verdict {kind}'><b>{escape(change)}</b></td></tr>"


def _answer_html(row: dict) -> str:
    if problem := row.get("problem"):
        return f"<span class='wb-sub'>{_text(problem)}</span>"
    scores = ""
    if isinstance(row.get("rouge-l"), int | float):
        exact = "✓ " if row.get(EXACT) else ""
        scores = f"<div class='wb-sub'>{exact}ROUGE-L {row['rouge-l']:.1f}</div>"
    return f"{_text(row.get('predict'))}{scores}"


def _text(value) -> str:
    text = str(value or "")
    return escape(text if len(text) <= _CELL else text[:_CELL] + "…")


def _number(value, digits: int = 2) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
