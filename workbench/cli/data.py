"""`python -m workbench data …`: everything the Data tab does."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, JsonOption, WorkspaceOption, language, tell, told_here
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.workspace import Workspace, dataset_folder

data_app = typer.Typer(
    no_args_is_help=True, help="Look at datasets before a run is paid for, and change those of the workspace."
)
NameArgument = Annotated[str, typer.Argument(help="A dataset's name, a data file or folder, or a hub's dataset.")]
OwnArgument = Annotated[str, typer.Argument(help="A dataset of the workspace.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="An option of the run: --set packing=true.")]


@data_app.command("check")
def check(
    name: NameArgument,
    dataset_dir: str = "data",
    model: Annotated[str, typer.Option("--model", help="Also find rows too long for this model's tokens.")] = "",
    template: str = "auto",
    cutoff_len: Annotated[int, typer.Option("--cutoff-len", min=0, help="In tokens; with --model.")] = 2048,
    held_out: Annotated[str, typer.Option("--eval", help="Evaluation datasets that should share no row with it.")] = "",
    set_: SetOption = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Every bad row by file and line with the reason. Exit code 2 if there are broken ones, which would stop a run."""
    from workbench.config.run_config import parse_overrides
    from workbench.data.dataset import unused_columns
    from workbench.data.registry import select
    from workbench.data.validate import Report, problems_of

    space = Workspace(workspace)
    folder = dataset_folder(dataset_dir, space)
    given = {"model_name_or_path": model, "dataset": name, "template": template, "cutoff_len": cutoff_len}
    encoder = _encoder(given | parse_overrides(set_ or []), space) if model else None
    report, problems, unused = Report(), [], []
    for info in select(name, folder, space):
        unused += [column for column in unused_columns(info) if column not in unused]
        for problem in problems_of(info, report, encoder=encoder, held_out=select(held_out, folder, space)):
            if problem is None:
                continue
            if json_:
                problems.append(problem.as_json())
            else:
                print(f"{problem.place}: {problem.kind}: {told_here(problem.reason)}")
    if json_:
        counts = {"rows": report.rows, "broken": report.broken, "counts": report.counts}
        print(json.dumps({**counts, "problems": problems, "unused": unused}, ensure_ascii=False))
    else:
        tell(report.line(name))
        if unused:
            tell(Message("columns_unused", names=unused))
    raise typer.Exit(2 if report.broken else 0)


@data_app.command("preview")
def preview(
    name: NameArgument,
    model: Annotated[str, typer.Option("--model", help="Whose tokens to show.")],
    dataset_dir: str = "data",
    template: str = "auto",
    cutoff_len: Annotated[int, typer.Option("--cutoff-len", min=0)] = 2048,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Begin behind this many rows.")] = 0,
    rows: Annotated[int, typer.Option("--rows", min=1)] = 3,
    set_: SetOption = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """What the model will be trained on: the exact text, and every token with its id; trained ones are marked with
    *."""
    from workbench.config.run_config import parse_overrides
    from workbench.data.dataset import with_layout
    from workbench.data.encode import IGNORE
    from workbench.data.pipeline import look
    from workbench.data.registry import select
    from workbench.data.row_index import Places

    space = Workspace(workspace)
    given = {"model_name_or_path": model, "dataset": name, "template": template, "cutoff_len": cutoff_len}
    encoder = _encoder(given | parse_overrides(set_ or []), space)
    for info in select(name, dataset_folder(dataset_dir, space), space):
        info = with_layout(info)
        for _, raw in Places(info).page(skip, rows):
            _, encoded, problems = look(raw, info, encoder)
            if json_:
                shown = {
                    "place": raw.place,
                    "problems": [p.as_json() for p in problems],
                    "rows": [vars(e) for e in encoded],
                }
                print(json.dumps(shown))
                continue
            print(f"=== {raw.place}")
            for problem in problems:
                print(f"{problem.kind}: {told_here(problem.reason)}")
            for one in encoded:
                cuts = dict(one.cuts)
                tell(Message("tokens_trained", text=one.text, tokens=len(one.input_ids), trained=one.trained))
                for index, (id_, label) in enumerate(zip(one.input_ids, one.labels, strict=True)):
                    if index in cuts:
                        tell(Message("tokens_left_out", count=cuts[index]))
                    print(f"{'*' if label != IGNORE else ' '} {id_:>7} {encoder.tokenizer.decode([id_])!r}")


@data_app.command("stats")
def stats(
    name: NameArgument,
    model: Annotated[str, typer.Option("--model", help="Whose tokens to count.")],
    dataset_dir: str = "data",
    template: str = "auto",
    cutoff_len: Annotated[int, typer.Option("--cutoff-len", min=0)] = 2048,
    set_: SetOption = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Lengths, what cutoff_len costs, steps and time of an epoch, suggestions. The tokens are kept for the run."""
    from workbench.config.run_config import parse_overrides
    from workbench.ui.phrases import duration, suggestion

    given = {
        "model_name_or_path": model,
        "dataset": name,
        "dataset_dir": dataset_dir,
        "template": template,
        "cutoff_len": cutoff_len,
    }
    statistics = _worker(workspace, json_, model).stats(given | parse_overrides(set_ or []))
    if json_:
        print(json.dumps(statistics))
        return
    if not statistics["training_rows"]:
        raise UserError("no_row_trains", name=name)
    middle = " ".join(f"p{key} {value:,}" for key, value in statistics["percentiles"].items())
    tell(
        Message(
            "stats_rows",
            rows=statistics["rows"],
            broken=statistics["broken"],
            training=statistics["training_rows"],
            tokens=statistics["tokens"],
            share=statistics["share_trained"],
        )
    )
    tell(Message("stats_lengths", mean=statistics["mean"], middle=middle, longest=statistics["longest"]))
    tell(
        Message(
            "stats_cutoff",
            cutoff=statistics["cutoff_len"],
            rows=statistics["rows_cut"],
            share=statistics["share_rows_cut"],
            lost=statistics["share_tokens_lost"],
        )
    )
    time = Message("time_unknown")
    if statistics["seconds"] is not None:
        time = Message(
            "time_as_in",
            time=duration(statistics["seconds"]),
            rate=statistics["throughput"],
            run=statistics["throughput_of"],
        )
    tell(Message("stats_epoch", sequences=statistics["sequences"], steps=statistics["steps"], time=time))
    for kind, values in statistics["suggestions"]:
        print(suggestion(kind, values, language()))


@data_app.command("sequences")
def sequences(
    config: Annotated[Path, typer.Argument(help="A YAML file or a preset's name.")],
    set_: SetOption = None,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Begin behind this many sequences.")] = 0,
    rows: Annotated[int, typer.Option("--rows", min=1)] = 3,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """What a run's collator gives to the model: its datasets mixed, cut and packed. Tokens as id and text, trained ones
    marked with *."""
    from workbench.config.presets import config_file
    from workbench.config.run_config import load_run_config
    from workbench.data.worker import Worker

    options = load_run_config(config_file(config, Workspace(workspace)), set_ or [])
    worker = Worker(
        Workspace(workspace).create(), _tell if sys.stderr.isatty() else lambda message: None, confined=False
    )
    sequences = worker.batches(options.model_dump(exclude_unset=True), skip, rows)
    if json_:
        print(json.dumps(sequences))
        return
    for line in sequences["log"]:
        print(line)
    for one in sequences["sequences"]:
        tell(
            Message(
                "sequence_head",
                number=one["number"],
                total=sequences["total"],
                tokens=one["length"],
                trained=one["trained"],
            )
        )
        for place, (id_, text, trained) in enumerate(one["tokens"]):
            if place == one["head"]:
                tell(Message("more_tokens", count=one["skipped"]))
            index = place if place < one["head"] else place + one["skipped"]
            if index in one["starts"]:
                tell(Message("conversation_head", number=one["starts"].index(index) + 1))
            print(f"{'*' if trained else ' '} {id_:>7} {text!r}")


@data_app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="A data file; it is copied.")],
    name: Annotated[str, typer.Option("--name", help="Of the dataset (default: the file's).")] = "",
    workspace: WorkspaceOption = WORKSPACE,
):
    """Take a data file into the workspace as a dataset. Prints its name."""
    import shutil
    import tempfile

    from workbench.data.editing import add_file

    space = Workspace(workspace).create()
    if not file.is_file():
        raise UserError("file_missing", file=file)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=space.uploads) as folder:
        dataset, layout, encoding = add_file(space, Path(shutil.copyfile(file, Path(folder) / "file")), file.name, name)
    print(dataset)
    layout_line = Message("layout_is", layout=layout) if layout else Message("layout_untold", name=dataset)
    tell(layout_line, file=sys.stderr)
    if encoding:
        line = Message("encoding_guessed", encoding=encoding, name=dataset)
        tell(line, file=sys.stderr)


@data_app.command("copy")
def copy(
    name: NameArgument,
    encoding: Annotated[str, typer.Option("--encoding", help="Of its text, where that is not UTF-8.")] = "",
    dataset_dir: str = "data",
    workspace: WorkspaceOption = WORKSPACE,
):
    """Copy a dataset into the workspace as JSONL in UTF-8, so that its rows can be changed. Prints the copy's name."""
    from workbench.data import editing

    space = Workspace(workspace).create()
    for info in _select(name, dataset_dir, space):
        dataset, lost = editing.copy(replace(info, encoding=encoding or info.encoding), space, _silent)
        print(dataset)
        if lost:
            tell(Message("rows_unread", count=lost), file=sys.stderr)


@data_app.command("split")
def split(
    name: NameArgument,
    share: Annotated[
        float, typer.Option("--share", help="Of the rows that evaluate (below 1), or their number.")
    ] = 0.05,
    seed: int = 42,
    dataset_dir: str = "data",
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Write NAME-train and NAME-eval into the workspace; rows with the same content go to the same side."""
    from workbench.data import editing

    space = Workspace(workspace).create()
    for info in _select(name, dataset_dir, space):
        names = editing.split_off(info, share, space, _silent, seed)
        if json_:
            print(json.dumps(names))
            continue
        sides = [Message("rows_of", name=side, rows=rows) for side, rows in (names["train"], names["eval"])]
        print(" ".join(map(told_here, sides)))
        if names["left_out"]:
            tell(Message("rows_left_out", count=names["left_out"]), file=sys.stderr)


@data_app.command("edit")
def edit(
    name: OwnArgument,
    row: Annotated[int, typer.Argument(min=1, help="Its number, from 1 on.")],
    to: Annotated[
        str, typer.Option("--to", help="The new row as JSON, or - to read it from stdin. Without: print the row.")
    ] = "",
    workspace: WorkspaceOption = WORKSPACE,
):
    """Print one row of a dataset of the workspace, or change it."""
    from workbench.data.editing import change_rows

    space = Workspace(workspace)
    before = _row(name, row, space)
    if not to:
        print(before)
        return
    change_rows(space, name, {row: (before, sys.stdin.read() if to == "-" else to)})
    tell(Message("row_is_changed", row=row, name=name))


@data_app.command("drop")
def drop(
    name: OwnArgument,
    rows: Annotated[list[int], typer.Argument(min=1, help="Their numbers, from 1 on.")],
    workspace: WorkspaceOption = WORKSPACE,
):
    """Delete rows of a dataset of the workspace."""
    from workbench.data.editing import change_rows

    space = Workspace(workspace)
    left = change_rows(space, name, {row: (_row(name, row, space), None) for row in rows})
    tell(Message("rows_are_left", rows=left, name=name))


@data_app.command("layout")
def layout(
    name: OwnArgument,
    formatting: Annotated[str, typer.Option("--formatting", help="Empty: the fields of the rows tell.")] = "",
    ranking: Annotated[bool, typer.Option("--ranking", help="Preference pairs.")] = False,
    columns: Annotated[str, typer.Option("--columns", help='JSON, such as {"prompt": "question"}.')] = "{}",
    tags: Annotated[str, typer.Option("--tags", help='JSON, such as {"role_tag": "speaker"}.')] = "{}",
    encoding: Annotated[str, typer.Option("--encoding", help="Of its text, such as gb18030; empty: UTF-8.")] = "",
    workspace: WorkspaceOption = WORKSPACE,
):
    """Say how the rows of a dataset of the workspace are laid out. Prints the layout that is used."""
    from workbench.data.editing import set_layout
    from workbench.storage import files

    given = {}
    for key, text in (("columns", columns), ("tags", tags)):
        try:
            given[key] = files.parse_json(text)
        except files.Unreadable:
            given[key] = None
        if not isinstance(given[key], dict):
            raise UserError("json_object_wanted", key=key)
    space = Workspace(workspace)
    print(set_layout(space, name, formatting, ranking, given["columns"], given["tags"], encoding=encoding))


@data_app.command("remove")
def remove(
    name: OwnArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Delete a dataset of the workspace with its file."""
    from workbench.data import editing

    space = Workspace(workspace)
    editing.home_of(name, space)
    if not yes:
        typer.confirm(told_here(Message("delete_dataset_sure", name=name)), abort=True)
    editing.remove(space, name)
    tell(Message("dataset_removed", name=name))


def _select(name: str, dataset_dir: str, space: Workspace):
    from workbench.data.registry import select

    return select(name, dataset_folder(dataset_dir, space), space)


def _row(name: str, row: int, space: Workspace) -> str:
    """A row of a dataset of the workspace, as it stands in its file."""
    from workbench.data import editing
    from workbench.data.preview import source
    from workbench.data.registry import read_registry
    from workbench.data.row_index import Places

    rows = Places(read_registry(editing.home_of(name, space))[name]).page(row - 1, 1)
    if not rows:
        raise UserError("row_missing", name=name, row=row)
    return source(rows[0][1])


def _silent(words: str, share: float) -> None:
    pass


def _tell(message: dict) -> None:
    words, share = message["progress"]
    print(f"\r{told_here(words)} {share:.0%}" if share else f"\r{told_here(words)}", end="", file=sys.stderr)


def _without_torch(model: str, space: Workspace) -> None:
    """Let this process do without torch where it can."""
    from workbench.data.chat_template import without_torch
    from workbench.models.locate import is_demo, locate_model

    if not is_demo(model) or Path(locate_model(model, space)).is_dir():
        without_torch()  # the demo model may first have to be converted, which needs it


def _worker(workspace: Path, quiet: bool, model: str):
    from workbench.data.worker import Worker

    space = Workspace(workspace).create()
    _without_torch(model, space)
    tell = _tell if sys.stderr.isatty() and not quiet else lambda message: None
    return Worker(space, tell, confined=False)


def _encoder(values: dict, workspace: Workspace):
    """The encoder that a run with these options has. Raises UserError."""
    _without_torch(values["model_name_or_path"], workspace)
    from workbench.config.run_config import validated
    from workbench.data.training_set import encoder_of
    from workbench.models.load import load_tokenizer

    config = validated(values)
    return encoder_of(config, load_tokenizer(config, workspace.create(), lambda phase, share: None))
