"""What the Runs tab shows, as plain values and HTML: no gradio here, so it is tested without a page.

Everything comes from files. What was read of a run is kept until its files change, so that thousands of runs can be
listed again and again.
"""

import zipfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from workbench.errors import UserError
from workbench.runs.metrics import MetricsReader, summary
from workbench.runs.run import Listed, Run, folder_bytes, list_states, step_of
from workbench.runs.state import ProcessState
from workbench.storage import files
from workbench.storage.files import file_token
from workbench.storage.workspace import Workspace
from workbench.ui.catalogue import say
from workbench.ui.notes import middle, told

COLUMNS = (
    "state", "run", "model", "dataset", "steps", "loss", "best_loss", "eval_loss", "time", "throughput", "memory",
)  # fmt: skip
# a click on a row, or Enter on it, tells which run is chosen; the row is marked at once
TABLE_JS = """
const rowOf = (event) => event.target.closest('[data-run]');
const choose = (row) => {
  element.querySelectorAll('[aria-selected=true]').forEach((other) => other.setAttribute('aria-selected', 'false'));
  row.setAttribute('aria-selected', 'true');
  element.dataset.picked = row.dataset.run;
  trigger('click');
};
// A click needs the same element under press and release; the table may be sent anew between them.
let pressed = '';
element.addEventListener('mousedown', (event) => { pressed = event.button === 0 ? rowOf(event)?.dataset.run : ''; });
element.addEventListener('mouseup', (event) => {
  const row = rowOf(event);
  if (row && event.button === 0 && row.dataset.run === pressed) choose(row);
  pressed = '';
});
// a click without a pointer: a screen reader's, a script's
element.addEventListener('click', (event) => { if (event.detail === 0 && rowOf(event)) choose(rowOf(event)); });
element.addEventListener('keydown', (event) => {
  if (!rowOf(event) || (event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  choose(rowOf(event));
});
"""
SORTS = ("by_newest", "by_group", "by_oldest", "by_loss", "by_eval_loss", "by_longest", "by_throughput")
PAGE = 100  # rows that are sent at once


@dataclass(frozen=True)
class Summary:
    """One row of the table."""

    run: Run
    state: ProcessState
    title: str
    tags: str
    group: str
    model: str
    dataset: str
    last: dict
    best_loss: float | None
    best_eval: float | None

    @property
    def seconds(self) -> float:
        return self.last.get("elapsed_seconds") or 0.0

    def cells(self, lang: str) -> list:
        steps = f"{self.state.step}/{self.state.total_steps}" if self.state.total_steps else ""
        return [
            say("state_" + self.state.state, lang),
            self.title,
            self.model,
            self.dataset,
            steps,
            _short(self.last.get("loss")),
            _short(self.best_loss),
            _short(self.best_eval),
            str(self.last.get("elapsed_time") or ""),
            _short(self.last.get("throughput"), "{:,.0f}"),
            _short(self.last.get("peak_memory"), "{:.1f}"),
        ]


_known: dict[str, tuple[tuple, tuple]] = {}


def _read(item: Listed) -> tuple:
    """Title, tags, group, model, dataset, last figures, lowest losses: read again only when the files have changed."""
    run, token = item.run, _token(item)
    cached = _known.get(str(run.path))
    if cached is None or cached[0] != token:
        values, (last, *best) = run.config_values(), summary(run.metrics)
        model = str(values.get("model_name_or_path") or "").rstrip("/").split("/")[-1]
        notes = run.notes()
        named = notes.get("title") or run.id, notes.get("tags", ""), notes.get("group", "")
        cached = token, (*named, model, str(values.get("dataset") or values.get("eval_dataset") or ""), last, *best)
        _known[str(run.path)] = cached
    return cached[1]


def _token(item: Listed) -> tuple:
    """Something that changes when the run does."""
    return (
        item.changed,
        item.state.state,
        *(() if item.settled else file_token(item.run.metrics, item.run.path / "state.json")),
    )


def summaries(
    workspace: Workspace, search: str = "", states: list[str] = (), sort: str = "by_newest", group: str = ""
) -> list[Summary]:
    """The runs whose id, title, tags, group, model, dataset, user or host has all words of `search`, whose state is
    among `states` (none: all), and which are in `group` (none: any or no group)."""
    terms, rows = search.lower().split(), []
    for item in list_states(workspace):
        if states and item.state.state not in states:
            continue
        row = Summary(item.run, item.state, *_read(item))
        of_whom = f"{row.state.started_by} {row.state.host}"
        text = f"{row.run.id} {row.title} {row.tags} {row.group} {row.model} {row.dataset} {of_whom}".lower()
        if all(word in text for word in terms) and group in ("", row.group):
            rows.append(row)
    worst = float("inf")
    keys = {
        "by_group": lambda r: (not r.group, r.group),  # stays newest first within each
        "by_oldest": lambda r: r.run.id,
        "by_loss": lambda r: worst if r.best_loss is None else r.best_loss,
        "by_eval_loss": lambda r: worst if r.best_eval is None else r.best_eval,
        "by_longest": lambda r: -r.seconds,
        "by_throughput": lambda r: -(r.last.get("throughput") or 0),
    }
    return sorted(rows, key=keys[sort]) if sort in keys else rows


def groups(workspace: Workspace) -> list[str]:
    """The groups that there are, by name."""
    return sorted({_read(item)[2] for item in list_states(workspace)} - {""})


def picked_js(elem_id: str) -> str:
    """JavaScript that gives the run of the row that was clicked last in a table with `TABLE_JS`."""
    return f"() => document.querySelector('#{elem_id}[data-picked], #{elem_id} [data-picked]').dataset.picked"


def table_html(rows: list[Summary], chosen: str | None, lang: str, *, grouped: bool = False) -> str:
    """The table of runs; a row is a button. The chosen one is marked. `grouped`: a line before each group."""
    head = "".join(f"<th scope='col'>{escape(say(f'column_{column}', lang))}</th>" for column in COLUMNS)
    lines = []
    for number, row in enumerate(rows):
        if grouped and (number == 0 or rows[number - 1].group != row.group):
            name = row.group or say("no_group", lang)
            lines.append(f"<tr class='wb-group'><th colspan='{len(COLUMNS)}' scope='rowgroup'>{escape(name)}</th></tr>")
        lines.append(_row_html(row, row.run.id == chosen, lang))
    body = "".join(lines)
    return f"<table class='wb-table wb-runs'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row_html(row: Summary, chosen: bool, lang: str) -> str:
    state, _, *cells = row.cells(lang)
    badge = f"<td><span class='wb-badge {escape(row.state.state)}'>{escape(state)}</span></td>"
    id_ = f"<div class='wb-sub'>{middle(row.run.id, 34)}</div>" if row.title != row.run.id else ""
    tags = f"<span class='wb-tag wb-of-group'>{middle(row.group)}</span>" if row.group else ""
    tags += "".join(f"<span class='wb-tag'>{escape(tag)}</span>" for tag in row.tags.split())
    by = row.state.started_by and say("started_by", lang, name=row.state.started_by)
    by = f"<div class='wb-sub'>{middle(by, 34)}</div>" if by else ""
    name = f"<td class='wb-run-name'>{middle(row.title, 34)}{id_}{by}{tags}</td>"
    rest = "".join(f"<td>{middle(cell)}</td>" for cell in cells)
    key = escape(row.run.id, quote=True)
    return f"<tr data-run='{key}' tabindex='0' aria-selected='{str(chosen).lower()}'>{badge}{name}{rest}</tr>"


def runs_token(workspace: Workspace) -> tuple:
    """Something that changes when the table does; a few microseconds for each run."""
    return tuple((item.run.id, *_token(item)) for item in list_states(workspace))


def checkpoints_html(run: Run, lang: str) -> str:
    """The whole checkpoints with their size and evaluation loss, the best one marked."""
    reader = MetricsReader(run.metrics)
    reader.update()
    evaluated = dict(zip(reader.series["eval_loss"].x, reader.series["eval_loss"].y, strict=True))
    checkpoints = run.checkpoints()
    losses = {p: evaluated.get(step_of(p)) for p in checkpoints}
    known = [loss for loss in losses.values() if loss is not None]
    rows = []
    for p in checkpoints:
        best = " ★ " + say("best", lang) if known and losses[p] == min(known) else ""
        size = f"{folder_bytes(p) / 2**20:,.1f} MiB"
        rows.append(f"<tr><td>{escape(p.name)}{escape(best)}</td><td>{_short(losses[p])}</td><td>{size}</td></tr>")
    head = f"<tr><th>{say('checkpoint', lang)}</th><th>{say('legend_eval', lang)}</th><th>{say('size', lang)}</th></tr>"
    whole = say("disk_use", lang, size=f"{folder_bytes(run.path) / 2**20:,.1f} MiB")
    return f"<table class='wb-table'>{head}{''.join(rows)}</table><div class='wb-sub'>{escape(whole)}</div>"


def differences(configs: list[tuple[str, dict]]) -> list[tuple[str, list[str]]]:
    """`(option, its value in each config)` for the options in which configs differ."""
    names = list(dict.fromkeys(name for _, values in configs for name in values))
    rows = [(name, [_value(values.get(name)) for _, values in configs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _value(value) -> str:
    return "–" if value is None else str(value)


def differences_html(configs: list[tuple[str, dict]], lang: str) -> str:
    """`differences` as a table."""
    rows = differences(configs)
    if not rows:
        return f"<div class='wb-sub'>{escape(say('no_differences', lang))}</div>"
    head = "".join(f"<th>{middle(name, 34)}</th>" for name in ("", *(name for name, _ in configs)))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{middle(v, 60)}</td>' for v in values)}</tr>"
        for name, values in rows
    )
    return f"<table class='wb-table'><tr>{head}</tr>{body}</table>"


def samples_html(run: Run, lang: str, last: int = 8) -> str:
    """The answers to the sample prompts side by side: a row for each prompt, a column for each of the last steps."""
    answers: dict[str, dict[int, str]] = {}
    try:
        lines = files.read_bytes(run.path / "samples.jsonl").splitlines()
    except FileNotFoundError:
        lines = []
    except UserError as error:
        return f"<div class='wb-note bad'>{escape(told(error, lang))}</div>"
    for line in lines:
        try:
            row = files.parse_json(line)
            prompt, step, answer = row["prompt"], row["current_steps"], row["answer"]
        except (UserError, KeyError, TypeError):
            continue
        if isinstance(prompt, str) and type(step) is int and isinstance(answer, str):
            answers.setdefault(prompt, {})[step] = answer
    if not answers:
        return f"<div class='wb-sub'>{escape(say('no_samples', lang))}</div>"
    every = sorted({step for of_prompt in answers.values() for step in of_prompt})
    steps = every if len(every) <= last else [every[0], *every[1 - last :]]
    head = "".join(f"<th>{say('step', lang)} {step}</th>" for step in steps)
    rows = "".join(
        f"<tr><td><b>{escape(prompt)}</b></td>"
        f"{''.join(f'<td>{escape(by_step.get(step, chr(8211)))}</td>' for step in steps)}</tr>"
        for prompt, by_step in answers.items()
    )
    return f"<div class='wb-wide'><table class='wb-table'><tr><th></th>{head}</tr>{rows}</table></div>"


def found_in_log(path: Path, query: str, most: int = 400, limit: int = 64 << 20) -> list[str]:
    """The last lines of a log that hold `words`, whatever their case; of a very long log only the end is searched."""
    wanted, lines = query.lower().encode(), []
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - limit))
            lines = [line for line in file if wanted in line.lower()][-most:]
    except OSError:
        return []
    return [line.decode("utf-8", "replace").rstrip("\n") for line in lines]


def log_lines_html(run: Run, query: str, lang: str) -> str:
    """The lines of the log that have the words of `query`; a sentence where there are none."""
    lines = "\n".join(found_in_log(run.log, query))
    if not lines and query:
        return f"<div class='wb-sub' id='full-log'>{escape(say('log_no_hit', lang, words=query))}</div>"
    return f"<div class='wb-log' id='full-log' tabindex='0' role='log'><div>{escape(lines)}</div></div>"


def make_zip(run: Run, target: Path) -> Path:
    """The run's own files, without checkpoints, with its predictions, as `target/<id>.zip`."""
    file = target / f"{run.id}.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [*sorted(run.path.iterdir()), *sorted((run.path / "predictions").rglob("*"))]:
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                archive.write(path, f"{run.id}/{path.relative_to(run.path)}")
    return file


def _short(value, form: str = "{:.4f}") -> str:
    return form.format(value) if isinstance(value, int | float) else ""
