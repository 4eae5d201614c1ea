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

from workbench.data import editing, worker_client
from workbench.data import readers as readers
from workbench.data.dataset import raw_rows, with_layout
from workbench.data.formats import to_example
from workbench.data.readers import BadRow, read_file
from workbench.data.registry import DatasetInfo
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.storage.workspace import Workspace

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
        ("a.json", '{"a":1}\n' + '{"a":' * 100_000),
    ],
)  # fmt: skip
def test_nesting(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    said = problem(tmp_path / name)
    assert said and "Traceback" not in said and len(said) < 400
    assert "nested" in said or "JSON" in said


def test_a_cell_of_a_table_stays_text_however_it_is_nested(tmp_path):
    cell = "[" * 100_000
    (tmp_path / "a.csv").write_text(f'messages\n"{cell}"\n')
    (raw,) = raw_rows(DatasetInfo("d", tmp_path / "a.csv"))
    assert raw.row() == {"messages": cell}
    with pytest.raises(BadRow, match="should be a list of turns, not text"):
        to_example(raw.row(), with_layout(DatasetInfo("d", tmp_path / "a.csv", formatting="openai")))


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
    for name, content in (
        ("a.jsonl.gz", ROW.encode() * 200_000),
        ("b.jsonl.gz", b"x" * 8_000_000),
        ("c.csv.gz", b"a,b\n" + b"1,2\n" * 1_000_000),
        ("d.json.gz", b"[" + b" " * 8_000_000),
    ):
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
    from workbench.data.dataset import raw_rows
    from workbench.data.registry import registries, select

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
    from workbench.data import templates

    (tmp_path / "chatml.jinja").write_text("x")
    with pytest.raises(UserError, match="no template"):
        templates.read(f"../../../../../../../..{tmp_path}/chatml")


# --- the worker


ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{%"
    " endfor %}"
)
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


QUICK = {"dataset_dir": "uploads"}  # without a model no tokenizer is loaded: for jobs that only have to be there


@contextlib.contextmanager
def working(place):
    worker = DataWorker(place)
    try:
        yield worker
    finally:
        worker.end()


@pytest.mark.process
def test_an_endless_template_is_ended_and_holds_nobody_up(place, monkeypatch):
    def preview(user: str, **more) -> dict:
        return worker.ask("preview", user, dataset="small", config=config(**more))

    with working(place) as worker:
        both = [threading.Thread(target=preview, args=(user,)) for user in ("mallory", "ann")]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(60)
        assert len(worker.processes) == 2  # what is measured now is not their start
        (place.models / "tiny" / "chat_template.jinja").write_text(ENDLESS)
        monkeypatch.setattr(worker_client, "LOOK_SECONDS", 4.0)
        told = []

        def ask() -> None:
            try:
                preview("mallory", model_revision="2")
            except UserError as error:
                told.append(str(error))

        hanging = threading.Thread(target=ask)
        hanging.start()
        while not worker._busy:
            hanging.join(0.01)
        # another user's question is answered while the first one hangs
        assert worker.ask("count", "ann", dataset="small", config=config()) == 3
        assert preview("ann", template="chatml")["rows"][0]["encoded"]
        assert hanging.is_alive() and not told
        hanging.join(60)
        assert told and "took more than 4 s" in told[0] and "chat template" in told[0]
        monkeypatch.setattr(worker_client, "LOOK_SECONDS", 30.0)
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
    monkeypatch.setattr(worker_client, "SILENT_SECONDS", 5.0)
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
    monkeypatch.setattr(worker_client, "LOOK_MEMORY", 300 << 20)
    table = pyarrow.table({"instruction": ["x" * (320 << 20)], "output": ["b"]})
    pyarrow.parquet.write_table(table, place.uploads / "huge.parquet", compression="zstd", use_dictionary=False)
    del table
    pyarrow.default_memory_pool().release_unused()
    (place.uploads / "dataset_info.json").write_text('{"huge": {"file_name": "huge.parquet"}}')
    with working(place) as worker, pytest.raises(UserError, match="memory"):
        worker.ask("preview", dataset="huge", config=config(dataset="huge"))


@pytest.mark.process
def test_each_user_has_two_jobs(place, monkeypatch):
    monkeypatch.setattr(worker_client, "JOB_PATIENCE", 0.3)

    async def three(worker) -> str:
        first, second, third = (worker.job("check", user="ann", dataset="small", config=QUICK) for _ in range(3))
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
        assert "You have jobs going" in asyncio.run(three(worker)) and not worker._jobs and not worker._waiting


@pytest.mark.process
def test_a_job_waits_for_the_place_of_one_that_ends(place):
    async def last(worker) -> dict:
        first, second, third = (worker.job("check", user="ann", dataset="small", config=QUICK) for _ in range(3))
        await anext(first)
        await anext(second)
        waiting = asyncio.ensure_future(anext(third))
        while not worker._waiting:
            await asyncio.sleep(0)
        await first.aclose()
        answers = [await waiting, *[answer async for answer in third]]
        await second.aclose()
        return answers[-1]

    async def too_many(worker) -> list:
        going = [worker.job("check", user="ann", dataset="small", config=QUICK) for _ in range(2)]
        for one in going:
            await anext(one)
        more = [worker.job("check", user="ann", dataset="small", config=QUICK) for _ in range(6)]
        tasks = [asyncio.ensure_future(anext(one)) for one in more]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.exception() for task in done]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in going:
            await one.aclose()
        return refused

    with working(place) as worker:
        assert asyncio.run(last(worker))["result"]["rows"] and not worker._jobs
        refused = asyncio.run(too_many(worker))  # no more than four wait, the others are told at once
        assert refused and all(error.message.code == "own_jobs" for error in refused)
        assert not worker._jobs and not worker._waiting


@pytest.mark.process
def test_an_answer_is_limited(place, monkeypatch):
    monkeypatch.setattr(worker_client, "MAX_ANSWER", 1000)
    with working(place) as worker:
        with pytest.raises(UserError, match="The answer has more than"):
            worker.ask("preview", dataset="small", config=config())
        monkeypatch.setattr(worker_client, "MAX_ANSWER", 1 << 20)
        assert worker.ask("count", dataset="small", config=config()) == 3


def test_the_lock_is_free_while_rows_are_read(place, monkeypatch):
    """Issue: an upload that was looked at held everybody up."""
    from workbench.storage.locks import is_held

    looked = []

    def looking(info):
        looked.append(is_held(place.uploads / ".lock"))
        return real(info)

    real = editing.raw_rows
    monkeypatch.setattr(editing, "raw_rows", looking)
    sent = place.incoming / "x"
    sent.mkdir(parents=True)
    (sent / "new.jsonl").write_text(ROW * 5)
    name, *_ = editing.add_file(place, sent / "new.jsonl")
    editing.copy(editing.read_registry(place.uploads, place)[name], place, lambda *_: None)
    (place.uploads / "two.jsonl").write_text(ROW + ROW.replace("a", "z"))
    editing._register(place.uploads, "two", {"file_name": "two.jsonl"})
    editing.split_off(editing.read_registry(place.uploads, place)["two"], 1, place, lambda *_: None)
    editing.set_layout(place, name, "alpaca", False, {}, {})
    (place.uploads / "t.csv").write_text("instruction,output\na,b\nc,d\n")
    editing._register(place.uploads, "t", {"file_name": "t.csv"})
    assert editing.change_rows(place, "t", {2: ('{"instruction": "c", "output": "d"}', None)}) == 1
    assert len(looked) >= 4 and not any(looked)
    assert not list(place.uploads.glob(".new-*"))


def test_a_file_that_somebody_else_changed_meanwhile_is_kept(place, monkeypatch):
    real = editing.pieces

    def meanwhile(file):
        yield from real(file)
        (place.uploads / "other").write_text(ROW)
        (place.uploads / "other").rename(place.uploads / "small.jsonl")

    monkeypatch.setattr(editing, "pieces", meanwhile)
    with pytest.raises(UserError, match="changed by somebody else"):
        editing.change_rows(place, "small", {1: (ROW.strip(), None)})
    assert (place.uploads / "small.jsonl").read_text() == ROW


def test_an_upload_is_taken_in_only_from_where_uploads_are(place, tmp_path):
    from workbench.data.worker import Worker

    (tmp_path / "secret.jsonl").write_text(ROW)
    worker = Worker(place, lambda message: None)
    for path in (tmp_path / "secret.jsonl", place.uploads / "small.jsonl", place.incoming / ".." / "small.jsonl"):
        with pytest.raises(UserError, match="is not an upload"):
            worker.add(str(path), "a.jsonl", config())
    with pytest.raises(UserError, match="Add it on the Data tab"):
        place.inside("uploads/.incoming/x/model")


def test_patterns_that_never_end_are_ended():
    from workbench.uncertainty.rules import passes

    with pytest.raises(UserError, match="took more than 1 s"):
        passes("a" * 60 + "!", {"pattern": "^(a|a|aa)+$"})
    assert passes("yes, 42", {"pattern": r"\d+"}) and not passes("no", {"pattern": r"\d+"})


@pytest.mark.process
def test_one_address_does_not_get_all_places(place, monkeypatch):
    """Each request with a cookie of its own."""
    monkeypatch.setattr(worker_client, "JOB_PATIENCE", 0.3)

    async def many(worker) -> tuple[int, bool]:
        begun, refused = [], 0
        for number in range(8):
            job = worker.job("check", user=f"10.0.0.1 cookie{number}", dataset="small", config=QUICK)
            try:
                await anext(job)
                begun.append(job)
            except UserError:
                refused += 1
        other = worker.job("check", user="10.0.0.2 ann", dataset="small", config=QUICK)
        answered = bool(await anext(other))
        for job in [*begun, other]:
            await job.aclose()
        return refused, answered

    with working(place) as worker:
        assert asyncio.run(many(worker)) == (4, True) and not worker._jobs


def test_workers_are_no_more_than_cores(monkeypatch, tmp_path):
    from workbench.data import pipeline

    asked = []

    class Pool:
        def __init__(self, workers, *_, initargs, **__):
            asked.append((workers, initargs[2]))
            raise UserError("enough")

    monkeypatch.setattr(pipeline, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(pipeline, "cores", lambda: 3)
    (tmp_path / "a.jsonl").write_text(ROW * 3000)
    with pytest.raises(UserError, match="enough"):
        list(pipeline.scan(DatasetInfo("a", tmp_path / "a.jsonl"), workers=256))
    assert asked == [(3, 0)]


def test_a_text_to_import_is_bounded():
    """shlex took 36 s for a quoted word of 2 MB."""
    from workbench.config.llamafactory import import_text

    with pytest.raises(UserError, match="at most 65,536 are imported"):
        import_text("--a '" + "x" * 2_000_000)


def test_a_dataset_folder_outside_says_nothing_of_itself(tmp_path, monkeypatch):
    from workbench.storage.workspace import dataset_folder

    workspace = Workspace(tmp_path / "w", confined=True).create()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "dataset_info.json").write_text('{"top_secret": {"file_name": "x.jsonl"}}')
    said = set()
    for folder in (secret, tmp_path / "nowhere"):
        with pytest.raises(UserError) as error:
            dataset_folder(str(folder), workspace)
        said.add(str(error.value).replace(str(folder), "FOLDER"))
    assert len(said) == 1 and "top_secret" not in str(said)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is outside the workspace"):
        dataset_folder("secret", workspace)
    assert (
        dataset_folder("data", workspace).name == "data"
        and dataset_folder("secret", workspace.seen(confined=False)) == secret
    )


def test_a_probe_set_comes_from_where_the_page_may_read(tmp_path, monkeypatch):
    from workbench.uncertainty import probes

    workspace = Workspace(tmp_path / "w", confined=True).create()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat.jsonl").write_text('{"prompt": "PRIVATE", "expect": "x"}\n')
    (tmp_path / "private").mkdir()
    (tmp_path / "flat").write_text((tmp_path / "flat.jsonl").read_text())
    (tmp_path / "private" / "q.jsonl").write_text((tmp_path / "flat.jsonl").read_text())
    for name in ("flat.jsonl", "flat", "private/q.jsonl", str(tmp_path / "flat.jsonl"), "../flat.jsonl"):
        with pytest.raises(UserError):
            probes.read_set(name, workspace)
        assert probes.read_set(name, workspace.seen(confined=False)) if name != "../flat.jsonl" else True
    (workspace.root / "own.jsonl").write_text((tmp_path / "flat.jsonl").read_text())
    assert probes.read_set("own.jsonl", workspace)


def test_resume_runs_no_code_that_the_server_does_not_allow(tmp_path):
    """A run of a time, or of a command line, that allowed it."""
    from workbench.config.run_config import validated
    from workbench.runs.run import create_run
    from workbench.train import queue

    workspace = Workspace(tmp_path / "w", confined=True).create()
    run = create_run(workspace, validated({"model_name_or_path": "evil", "dataset": "d", "trust_remote_code": True}))
    run.update(state="stopped", ended=1.0)
    with pytest.raises(UserError, match="--allow-remote-code"):
        queue.resume(run, workspace)
    assert run.state().state == "stopped"


def test_a_conversation_that_grows_keeps_its_words(tmp_path):
    from workbench.chat import conversations

    workspace = Workspace(tmp_path / "w").create()
    entry = {
        "token": "x",
        "logprob": -1.0,
        "top_logprobs": [{"token": "y" * 50, "logprob": -2.0, "bytes": [1] * 20}] * 5,
    }
    long = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tokens": [entry] * 13000}]
    kept = conversations.Conversation("20260101-aaaaaa", columns=[long * 2], models=["m"])
    conversations.save(workspace, kept)
    again = conversations.load(workspace, kept.id)
    assert [m["content"] for m in again.columns[0]] == ["q", "a", "q", "a"]
    assert "tokens" not in again.columns[0][1] and len(again.columns[0][3]["tokens"]) == 13000
    assert (workspace.conversations / f"{kept.id}.json").stat().st_size <= conversations.MAX_BYTES
    too_long = conversations.Conversation("20260101-bbbbbb", columns=[[{"role": "user", "content": "q" * (17 << 20)}]])
    with pytest.raises(UserError, match="is not saved"):
        conversations.save(workspace, too_long)


class Endless:
    """A server that never stops, packs what it sends, or lists hundreds of thousands of models."""

    def __init__(self, kind: str):
        self.kind = kind

    async def __call__(self, scope, receive, send):
        headers = [(b"content-type", b"text/event-stream" if scope["method"] == "POST" else b"application/json")]
        if self.kind == "packed":
            headers.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        pieces = {
            "endless": b" " * 65536,
            "packed": gzip.compress(b" " * 1_000_000),
            "chat": (
                b"data: "
                + json.dumps(
                    {
                        "id": "x",
                        "object": "chat.completion.chunk",
                        "created": 0,
                        "model": "m",
                        "choices": [{"index": 0, "delta": {"content": "x" * 1000}}],
                    }
                ).encode()
                + b"\n\n"
            ),
        }
        if self.kind == "many":
            listed = [{"id": f"{'m' * 1000}{i}", "object": "model", "created": 0, "owned_by": "x"} for i in range(3000)]
            await send({"type": "http.response.body", "body": json.dumps({"object": "list", "data": listed}).encode()})
            return
        for _ in range(3000):
            await send({"type": "http.response.body", "body": pieces[self.kind], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("endless", "more than 4 MiB"),
        ("packed", "packed answers"),
        ("many", ""),
        ("chat", "more than 400,000 characters"),
    ],
)
def test_another_server_cannot_fill_the_page(kind, words):
    import uvicorn

    from workbench.engine.client import Endpoint, models, stream

    server = uvicorn.Server(uvicorn.Config(Endless(kind), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    backend = Endpoint(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1", "", own=False)

    async def ask():
        if kind != "chat":
            return await models(backend)
        return [delta async for delta in stream(backend, "m", [{"role": "user", "content": "q"}], {"max_tokens": 10})]

    try:
        if kind == "many":
            found = asyncio.run(ask())
            assert len(found) == 1000 and max(map(len, found)) == 200
        else:
            with pytest.raises(UserError, match=words):
                asyncio.run(ask())
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("pytorch_model.bin", "x", "only in pickled form"), ("config.json", "[" * 100_000, "nested more than 100 deep"), ("config.json", "[]", "a JSON object"),
        ("config.json", '{"num_hidden_layers": -3}', "num_hidden_layers is -3"), ("config.json", '{"hidden_size": "many"}', "hidden_size is many"),
        ("tokenizer.json", '{"a":' * 100_000, "nested more than 100 deep"), ("adapter_config.json", "\xff", "cannot be read"),
    ],
)  # fmt: skip
def test_a_models_folder_that_no_library_should_read(tmp_path, name, text, words):
    from workbench.models.locate import check_folder

    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=words):
        check_folder(tmp_path)
    (tmp_path / name).unlink()
    check_folder(tmp_path)
