"""What the monitor shows of one run, as text: no gradio here, so it is tested without a page.

One reader per run serves every tab and every user; a look that finds nothing new costs a few file stats.
"""

import threading
from html import escape

from workbench.messages.message import told
from workbench.runs import hosts
from workbench.runs.metrics import REWARDS, MetricsReader, tail
from workbench.runs.run import Run
from workbench.runs.state import ProcessState
from workbench.storage.files import file_token
from workbench.storage.workspace import Workspace
from workbench.train import queue
from workbench.train.estimates import record
from workbench.ui.catalogue import say
from workbench.ui.charts import loss_chart
from workbench.ui.notes import middle

_readers: dict[str, MetricsReader] = {}
_lock = threading.Lock()
_MAX_READERS = 32


def reader_of(run: Run) -> MetricsReader:
    """The shared reader of a run's metrics, up to date."""
    key = str(run.path)
    with _lock:
        if key not in _readers and len(_readers) >= _MAX_READERS:
            _readers.pop(next(iter(_readers)))
        reader = _readers.setdefault(key, MetricsReader(run.metrics))
        reader.update()
        return reader


def change_token(run: Run, lang: str, log_scale: bool) -> tuple:
    """Something that changes when the run's view does."""
    state = run.state()
    files = run.path / "state.json", run.metrics, run.log, run.path / record.FILE
    return (run.id, lang, log_scale, state.state, state.warning, *file_token(*files))


def waiting(run: Run, token: tuple, workspace: Workspace) -> tuple[int, list[str]]:
    """What a queued run waits for (see `queue.waits_for`), asked only where its `change_token` says that it is one."""
    return queue.waits_for(run, workspace) if token[3] == "queued" else (0, [])


def status_html(run: Run, lang: str, waiting: tuple[int, list[str]] = (0, [])) -> str:
    """Badge, progress bar with the time left, tiles; of a queued run its place and the runs that it waits for."""
    state, (place, holders) = run.state(), waiting
    last = reader_of(run).last
    share, lines_text = _progress(state, last, lang)
    values = run.config_values()
    model = middle(str(values.get("model_name_or_path", "")).split("/")[-1], 34)
    dataset = middle(str(values.get("dataset", "")), 34)
    by = " · " + say("started_by", lang, name=state.started_by) if state.started_by else ""
    by += " · " + say("on_host", lang, name=state.host) if state.host else ""
    parts = [
        "<div class='wb-card'><div class='wb-head'>",
        f"<span class='wb-badge {escape(state.state)}'>{escape(say('state_' + state.state, lang))}</span>",
        (
            f"<b>{middle(run.id, 44)}</b><span class='wb-sub'>{model} · {dataset} ·"
            f" {escape(state.device)}{escape(by)}</span></div>"
        ),
        (
            f"<div class='wb-bar'><div style='width:{100 * share:.1f}%'></div></div><div class='wb-sub'"
            f" style='margin-top:6px'>{escape(lines_text)}</div>"
        ),
    ]
    notes = []
    if state.state == "stopping":
        notes.append(say("stopping_note", lang))
    if place:
        notes.append(say("queued_note", lang, place=place))
        notes[-1] += " " + say("queued_waits", lang, runs=", ".join(holders)) if holders else ""
    elif state.state == "queued" and not state.pid and state.host not in ("", hosts.name()):
        notes.append(say("queued_on", lang, name=state.host))
    for text in notes:
        parts.append(f"<div class='wb-note warn' style='margin-top:8px'>{escape(text)}</div>")
    if state.reason:
        kind = "bad" if state.state in ("failed", "lost") else "warn"
        parts.append(f"<div class='wb-note {kind}' style='margin-top:8px'>{escape(told(state.reason, lang))}</div>")
    for line in told(state.warning, lang).splitlines():
        parts.append(f"<div class='wb-note warn' style='margin-top:8px'>{escape(line)}</div>")
    for problem in run.problems():
        parts.append(f"<div class='wb-note bad' style='margin-top:8px'>{escape(told(problem, lang))}</div>")
    if state.skipped_rows:
        lines_text = say("rows_skipped", lang, count=f"{state.skipped_rows:,}")
        parts.append(f"<div class='wb-note warn' style='margin-top:8px'>{escape(lines_text)}</div>")
    if expected := estimate_line(run, lang):
        parts.append(f"<div class='wb-sub wb-estimate' style='margin-top:8px'>{escape(expected)}</div>")
    tiles = [
        ("loss", _number(last.get("loss"), "{:.4f}")),
        ("learning_rate", _number(last.get("lr"), "{:.2e}")),
        ("throughput", _number(last.get("throughput"), "{:,.0f}")),
        ("memory", _number(last.get("peak_memory"), "{:.1f} GiB")),
    ]
    if "reward" in last:
        tiles.insert(1, ("legend_reward", _number(last["reward"], "{:.3f}")))
    if "rewards/accuracies" in last:
        tiles.insert(1, ("accuracy", _number(last["rewards/accuracies"], "{:.0%}")))
    parts += ["<div class='wb-tiles'>"]
    parts += [
        f"<div class='wb-tile'><b>{escape(value)}</b><span>{escape(say(key, lang))}</span></div>"
        for key, value in tiles
    ]
    return "".join(parts) + "</div></div>"


def estimate_line(run: Run, lang: str) -> str:
    """What was expected of a run's memory, and what it came to."""
    kept = record.read(run)
    if not kept:
        return ""
    estimate = f"{kept['estimate']:.2f}"
    measured = kept.get("measured")
    if not measured or not kept["estimate"]:
        return say("cost_of_run_before", lang, estimate=estimate)
    ratio = say("cost_ratio", lang, ratio=f"{measured / kept['estimate']:.0%}")
    return say("cost_of_run", lang, estimate=estimate, measured=f"{measured:.2f}", ratio=ratio)


def _number(value, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "–"


def _progress(state: ProcessState, last: dict, lang: str) -> tuple[float, str]:
    if state.phase:
        phase = told(state.phase, lang)
        return state.progress, f"{phase} … {state.progress:.0%}" if state.progress else f"{phase} …"
    total = state.total_steps or last.get("total_steps") or 0
    step = max(state.step, last.get("current_steps", 0)) if state.active else state.step or last.get("current_steps", 0)
    if not total:
        return 0.0, ""
    progress_text = f"{say('step', lang)} {step:,} / {total:,}"
    if state.state == "running" and last.get("remaining_time"):
        progress_text += f" · {last['remaining_time']} {say('left', lang)}"
    if last.get("elapsed_time"):
        progress_text += f" · {last['elapsed_time']} {say('elapsed', lang)}"
    return min(1.0, step / total), progress_text


def chart_json(run: Run, lang: str, log_scale: bool) -> str:
    """The loss chart of a run."""
    names = (say("legend_loss", lang), say("legend_smooth", lang), say("legend_eval", lang))
    return loss_chart(
        reader_of(run).series,
        names,
        step=say("step", lang),
        empty=say("no_points", lang),
        log_scale=log_scale,
        run_id=run.id,
        rewards={metric: say(f"legend_{metric.rpartition('/')[2]}", lang) for metric in (*REWARDS, "reward")},
    )


def log_html(run: Run) -> str:
    """The last lines of the log, escaped, scrolled to the end (the box lays out upwards)."""
    return f"<div class='wb-log' id='run-log' tabindex='0' role='log'><div>{escape(tail(run.log))}</div></div>"
