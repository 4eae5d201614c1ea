"""Input that would take the machine down: one sentence each, within the limits, and nobody else waits."""

import asyncio
import contextlib
import csv
import gzip
import json
import threading
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from workbench import data_worker
from workbench.corpus import rows as readers
from workbench.corpus import store
from workbench.corpus.formats import to_example
from workbench.corpus.registry import DatasetInfo
from workbench.corpus.rows import BadRow, read_file
from workbench.corpus.sources import with_layout
from workbench.data_worker import DataWorker
from workbench.errors import UserError
from workbench.workspace import Workspace

ROW = '{"instruction": "a", "output": "b"}\n'


def problem(path) -> str:
    """What is said of a file: the error, or the first row that cannot be used."""
    try:
        for raw in read_file(path):
            raw.row()
    except (UserError, BadRow) as error:
        return str(error)
    return ""


# --- readers, in this process


def test_a_table_with_very_many_columns(tmp_path, monkeypatch):
    """Issue: a quadratic loop over 200,000 names. Each name is looked at once now."""
    (tmp_path / "wide.csv").write_text(",".join(f"c{i}" for i in range(200_000)) + "\n")
    assert "names 200,000 fields; at most 4,096 are read" in problem(tmp_path / "wide.csv")
    looked_at = Counter()

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            looked_at["compared"] += 1
            return str.__eq__(self, other)

    names = [Name(f"c{i}") for i in range(4000)]

    class Reader:
        line_num, rows = 1, iter([names])

        def __next__(self):
            return next(self.rows)

    monkeypatch.setattr(csv, "reader", lambda *_, **__: Reader())
    (tmp_path / "a.csv").write_text("x\n1\n")
    assert problem(tmp_path / "a.csv") == "" and looked_at["compared"] < 10 * len(names)


def test_a_field_that_is_named_twice_is_still_told(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    assert "the field 'a' is named twice" in problem(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"a":' * 1_000_000), ("a.json", '{"a":' * 1_000_000), ("a.json", "[" * 1_000_000), ("a.json", '[{"a":' + "[" * 5000 + "]" * 5000 + "}]"),
        ("a.jsonl", '{"a":' + "[" * 200 + "]" * 200 + "}"), ("a.json", '[{"a":' + "[" * 200 + "]" * 200 + "}]"),
        ("a.csv", "a\n" + '"' + "[" * 200 + "]" * 200 + '"\n'), ("a.json", '{"a":1}\n' + '{"a":' * 100_000),
    ],
)  # fmt: skip
def test_nesting(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    said = problem(tmp_path / name)
    assert said and "Traceback" not in said and len(said) < 400
    assert "nested" in said or "JSON" in said


def test_nesting_inside_of_texts(tmp_path):
    deep = "[" * 100_000
    info = with_layout_of(
        tmp_path,
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": deep}],
    )
    with pytest.raises(BadRow, match="not valid JSON"):
        to_example(
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": deep}, info
        )


def with_layout_of(folder, lines) -> DatasetInfo:
    (folder / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return with_layout(DatasetInfo("d", folder / "d.jsonl"))


def test_lines_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST", 1000)
    (tmp_path / "a.jsonl").write_text(ROW + '{"a": "' + "x" * 5000 + '"}\n' + ROW)
    found = list(read_file(tmp_path / "a.jsonl"))
    assert [isinstance(raw.data, BadRow) for raw in found] == [False, True, False]
    assert [raw.place for raw in found] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert found[2].offset == len(ROW) + 5010  # where it is read on from
    (tmp_path / "a.csv").write_text("a,b\n" + "x" * 5000)
    assert "line of more than" in problem(tmp_path / "a.csv")


def test_a_gzip_file_that_unpacks_beyond_measure(tmp_path, monkeypatch):
    """Issue: 2 MB of gzip lines became 4.6 to 6.5 GB."""
    monkeypatch.setattr(readers, "_UNPACKED", 1 << 20)
    for name, content in (("a.jsonl.gz", ROW.encode() * 200_000), ("b.jsonl.gz", b"x" * 8_000_000), ("c.csv.gz", b"a,b\n" + b"1,2\n" * 1_000_000),
                          ("d.json.gz", b"[" + b" " * 8_000_000)):  # fmt: skip
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(content)
        assert "over 200 times its size" in problem(tmp_path / name), name
    with gzip.open(tmp_path / "e.jsonl.gz", "wt") as file:  # as large, but no bomb
        for number in range(40_000):
            file.write(
                json.dumps({"instruction": f"{number * 7919 % 40_009} {number}", "output": str(number**3)}) + "\n"
            )
    assert problem(tmp_path / "e.jsonl.gz") == ""


def test_parquet_rows_that_are_far_larger_than_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST", 1 << 20)
    table = pyarrow.table({"instruction": ["a", "x" * (8 << 20), "c"], "output": ["b", "d", "e"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    found = list(read_file(tmp_path / "a.parquet"))
    assert [isinstance(raw.data, BadRow) for raw in found] == [False, True, False] and "at most 1 are read" in str(
        found[1].data
    )
    wide = pyarrow.table({f"c{i}": [1] for i in range(5000)})
    pyarrow.parquet.write_table(wide, tmp_path / "wide.parquet")
    assert "5,000 columns" in problem(tmp_path / "wide.parquet")


def test_only_regular_files_are_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.jsonl")
    assert "not a regular file" in problem(tmp_path / "a.jsonl")  # it would wait for a writer
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    assert "not a regular file" in problem(tmp_path / "b.jsonl")


# --- registries


def test_an_uploaded_registry_names_nothing_outside(tmp_path):
    """Issue: file_name, folder and hub entries led out of the workspace."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "s.jsonl").write_text(ROW)
    workspace = Workspace(tmp_path / "w", confined=True).create()
    (workspace.uploads / "link.jsonl").symlink_to(outside / "s.jsonl")
    folder = workspace.uploads / "folder"
    folder.mkdir()
    (folder / "train.jsonl").symlink_to(outside / "s.jsonl")
    (workspace.uploads / "own.jsonl").write_text(ROW)
    entries = {
        "absolute": {"file_name": str(outside / "s.jsonl")}, "dots": {"file_name": "../../outside/s.jsonl"}, "link": {"file_name": "link.jsonl"},
        "passwd": {"file_name": "/etc/passwd"}, "hub": {"hf_hub_url": str(outside)}, "hub2": {"hf_hub_url": "../../outside"},
        "ms": {"ms_hub_url": "/etc"}, "part": {"hf_hub_url": "a/b", "folder": "../../outside"}, "part2": {"hf_hub_url": "a/b", "folder": "/etc"},
        "script": {"script_url": "evil.py"}, "inside": {"file_name": "folder"}, "own": {"file_name": "own.jsonl"},
    }  # fmt: skip
    (workspace.uploads / "dataset_info.json").write_text(json.dumps(entries))
    from workbench.corpus.registry import registries, select
    from workbench.corpus.sources import raw_rows

    for seen in (
        workspace,
        workspace.seen(confined=False),
    ):  # the trainer is not confined, but the registry is an uploaded one
        found = registries(workspace.uploads, seen)
        assert {name for name, info in found.items() if not info.problem} >= {"own", "inside"}
        for name in set(entries) - {"own", "inside"}:
            assert found[name].problem, name
            with pytest.raises(UserError):
                list(raw_rows(found[name]))
        with pytest.raises(UserError, match="leads out of the workspace"):
            list(raw_rows(found["inside"]))
        assert len(list(raw_rows(found["own"]))) == 1
    with pytest.raises(UserError, match="outside the workspace"):
        select(str(outside / "s.jsonl"), workspace.uploads, workspace)
    allowing = Workspace(workspace.root, [outside], confined=True)
    assert not registries(workspace.uploads, allowing)["absolute"].problem
    # who owns the machine names files where he likes
    (outside / "dataset_info.json").write_text(json.dumps({"x": {"file_name": str(workspace.uploads / "own.jsonl")}}))
    assert not registries(outside, workspace.seen(confined=False))["x"].problem


def test_a_template_name_is_no_path(tmp_path):
    from workbench.corpus import templates

    (tmp_path / "chatml.jinja").write_text("x")
    with pytest.raises(UserError, match="no template"):
        templates.read(f"../../../../../../../..{tmp_path}/chatml")


# --- the worker


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
HUGE = "{{ 'x' * 15000000000 }}"


@pytest.fixture
def place(tmp_path, tiny_model):
    """A workspace with a copy of the tiny model whose template can be set, and a small dataset."""
    import shutil

    workspace = Workspace(tmp_path / "w", confined=True).create()
    shutil.copytree(tiny_model, workspace.models / "tiny")
    (workspace.uploads / "small.jsonl").write_text(ROW * 3)
    (workspace.uploads / "dataset_info.json").write_text('{"small": {"file_name": "small.jsonl"}}')
    return workspace


def config(**more) -> dict:
    return {"model_name_or_path": "tiny", "dataset": "small", "template": "auto", "dataset_dir": "uploads", **more}


@contextlib.contextmanager
def working(place):
    worker = DataWorker(place)
    try:
        yield worker
    finally:
        worker.end()


@pytest.mark.process
def test_an_endless_template_is_ended_and_holds_nobody_up(place, monkeypatch):
    monkeypatch.setattr(data_worker, "LOOK_SECONDS", 6.0)
    (place.models / "tiny" / "chat_template.jinja").write_text(ENDLESS)
    with working(place) as worker:
        told = []

        def ask() -> None:
            try:
                worker.ask("preview", "mallory", dataset="small", config=config())
            except UserError as error:
                told.append(str(error))

        hanging = threading.Thread(target=ask)
        hanging.start()
        while not worker.processes:
            hanging.join(0.01)
        # another user's question is answered while the first one hangs
        assert worker.ask("count", "ann", dataset="small", config=config()) == 3
        assert worker.ask("preview", "ann", dataset="small", config=config(template="chatml"))["rows"][0]["encoded"]
        assert hanging.is_alive() and not told
        hanging.join(60)
        assert told and "took more than 6 s" in told[0] and "chat template" in told[0]
        assert worker.ask("count", "mallory", dataset="small", config=config()) == 3


@pytest.mark.process
def test_a_template_that_wants_all_memory(place):
    (place.models / "tiny" / "chat_template.jinja").write_text(HUGE)
    with working(place) as worker:
        found = worker.ask("preview", dataset="small", config=config())
        said = [reason for row in found["rows"] for _, reason in row["problems"]]
        assert said and all("more memory" in words for words in said)
        (place.models / "tiny" / "chat_template.jinja").write_text("{{ 'x' * 50000000 }}")
        assert "characters of this conversation" in str(
            worker.ask("preview", dataset="small", config=config(model_revision="2"))["rows"]
        )


@pytest.mark.process
@pytest.mark.parametrize("op", ["check", "stats"])
def test_a_job_without_progress_is_ended(place, monkeypatch, op):
    monkeypatch.setattr(data_worker, "SILENT_SECONDS", 5.0)
    (place.models / "tiny" / "chat_template.jinja").write_text(ENDLESS)

    async def listen(worker) -> None:
        async for _ in worker.job(
            op, user="mallory", config=config(), **({"dataset": "small"} if op == "check" else {})
        ):
            pass

    with working(place) as worker, pytest.raises(UserError, match="took more than 5 s"):
        asyncio.run(listen(worker))


@pytest.mark.process
def test_memory_is_limited(place, monkeypatch):
    """A compressed table of a few KB whose one value takes more than there is."""
    monkeypatch.setattr(data_worker, "LOOK_MEMORY", 400 << 20)
    table = pyarrow.table({"instruction": ["x" * (700 << 20)], "output": ["b"]})
    pyarrow.parquet.write_table(table, place.uploads / "huge.parquet", compression="zstd", use_dictionary=False)
    del table
    (place.uploads / "dataset_info.json").write_text('{"huge": {"file_name": "huge.parquet"}}')
    with working(place) as worker, pytest.raises(UserError, match="memory"):
        worker.ask("preview", dataset="huge", config=config(dataset="huge"))


@pytest.mark.process
def test_each_user_has_two_jobs(place):
    async def three(worker) -> str:
        first, second, third = (worker.job("check", user="ann", dataset="small", config=config()) for _ in range(3))
        await anext(first)
        await anext(second)
        try:
            await anext(third)
        except UserError as error:
            return str(error)
        finally:
            await first.aclose()
            await second.aclose()

    with working(place) as worker:
        assert "You have jobs going" in asyncio.run(three(worker)) and not worker._jobs


@pytest.mark.process
def test_an_answer_is_limited(place, monkeypatch):
    monkeypatch.setattr(data_worker, "MAX_ANSWER", 1000)
    with working(place) as worker:
        with pytest.raises(UserError, match="The answer has more than"):
            worker.ask("preview", dataset="small", config=config())
        monkeypatch.setattr(data_worker, "MAX_ANSWER", 1 << 20)
        assert worker.ask("count", dataset="small", config=config()) == 3


def test_the_lock_is_free_while_rows_are_read(place, monkeypatch):
    """Issue: an upload that was looked at held everybody up."""
    from workbench.locks import is_held

    looked = []

    def looking(info):
        looked.append(is_held(place.uploads / ".lock"))
        return real(info)

    real = store.raw_rows
    monkeypatch.setattr(store, "raw_rows", looking)
    sent = place.incoming / "x"
    sent.mkdir(parents=True)
    (sent / "new.jsonl").write_text(ROW * 5)
    name, _ = store.add_file(place, sent / "new.jsonl")
    store.copy(store.read_registry(place.uploads, place)[name], place, lambda *_: None)
    (place.uploads / "two.jsonl").write_text(ROW + ROW.replace("a", "z"))
    store._register(place.uploads, "two", {"file_name": "two.jsonl"})
    store.split_off(store.read_registry(place.uploads, place)["two"], 1, place, lambda *_: None)
    store.set_layout(place, name, "alpaca", False, {}, {})
    (place.uploads / "t.csv").write_text("instruction,output\na,b\nc,d\n")
    store._register(place.uploads, "t", {"file_name": "t.csv"})
    assert store.change_rows(place, "t", {2: ('{"instruction": "c", "output": "d"}', None)}) == 1
    assert len(looked) >= 4 and not any(looked)
    assert not list(place.uploads.glob(".new-*"))


def test_a_file_that_somebody_else_changed_meanwhile_is_kept(place, monkeypatch):
    real = store.pieces

    def meanwhile(file):
        yield from real(file)
        (place.uploads / "other").write_text(ROW)
        (place.uploads / "other").rename(place.uploads / "small.jsonl")

    monkeypatch.setattr(store, "pieces", meanwhile)
    with pytest.raises(UserError, match="changed by somebody else"):
        store.change_rows(place, "small", {1: (ROW.strip(), None)})
    assert (place.uploads / "small.jsonl").read_text() == ROW


def test_an_upload_is_taken_in_only_from_where_uploads_are(place, tmp_path):
    from workbench.corpus.worker import Worker

    (tmp_path / "secret.jsonl").write_text(ROW)
    worker = Worker(place, lambda message: None)
    for path in (tmp_path / "secret.jsonl", place.uploads / "small.jsonl", place.incoming / ".." / "small.jsonl"):
        with pytest.raises(UserError, match="is not an upload"):
            worker.add(str(path), "a.jsonl", config())
    with pytest.raises(UserError, match="Add it on the Data tab"):
        place.inside("uploads/.incoming/x/model")


def test_patterns_that_never_end_are_ended():
    from workbench.uncertainty.judge import passes

    with pytest.raises(UserError, match="took more than 1 s"):
        passes("a" * 60 + "!", {"pattern": "^(a|a|aa)+$"})
    assert passes("yes, 42", {"pattern": r"\d+"}) and not passes("no", {"pattern": r"\d+"})
