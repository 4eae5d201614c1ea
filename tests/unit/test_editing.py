"""Datasets of the workspace: taken in, copied, split, edited; and rows by number."""

import errno
import json
import os
import random

import pytest

from workbench.data import editing
from workbench.data.dataset import examples, raw_rows
from workbench.data.preview import row_view, source
from workbench.data.registry import DatasetInfo, read_registry, select
from workbench.data.row_index import Places
from workbench.data.validate import Report, problems_of
from workbench.errors import UserError
from workbench.storage.workspace import PROJECT, Workspace


def quiet(words, share):
    pass


def rows_of(count: int) -> list[dict]:
    return [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(count)]


def jsonl(rows: list) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def given(tmp_path, text: str, name: str = "mine.jsonl"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def own(workspace: Workspace, name: str) -> DatasetInfo:
    return read_registry(workspace.uploads)[name]


def files(workspace: Workspace) -> list[str]:
    return sorted(f.name for f in workspace.uploads.iterdir() if f.name not in (".lock", "dataset_info.json"))


# --- rows by number


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_pages_are_the_rows_in_order_wherever_one_begins(tmp_path, suffix):
    rows = rows_of(1700)
    text = {
        ".jsonl": "\n".join(json.dumps(row) + ("\n \n" if i % 7 == 0 else "") for i, row in enumerate(rows)),
        ".json": json.dumps(rows),
        ".csv": "instruction,output\n" + "".join(f"{r['instruction']},{r['output']}\n" for r in rows),
    }[suffix]
    given(tmp_path, text, f"a{suffix}")
    given(tmp_path, jsonl(rows_of(3)), "b.jsonl")
    info = DatasetInfo("folder", tmp_path)
    expected, places = list(raw_rows(info)), Places(info)
    draw = random.Random(0)
    for start in [0, 499, 500, 501, 1699, 1700, 1702, 1703, *(draw.randrange(1703) for _ in range(20))]:
        page = places.page(start, 5)
        assert [number for number, _ in page] == list(range(start, min(start + 5, 1703)))
        assert [raw for _, raw in page] == expected[start : start + 5]
    assert places.count() == 1703 and places.fresh()
    given(tmp_path, jsonl(rows_of(4)), "b.jsonl")
    assert not places.fresh()


# --- taking in


def test_an_upload_becomes_a_dataset_with_a_name_of_its_own(workspace, tmp_path):
    names = [editing.add_file(workspace, given(tmp_path, jsonl(rows_of(3))), "Meine Daten.jsonl") for _ in range(2)]
    assert names == [("meine-daten", "alpaca", ""), ("meine-daten-2", "alpaca", "")]
    assert len(list(examples(own(workspace, "meine-daten-2")))) == 3
    assert select("meine-daten", PROJECT / "data", workspace)[0].path.parent == workspace.uploads
    # a name that a bundled dataset has would hide the upload
    assert editing.add_file(workspace, given(tmp_path, jsonl(rows_of(3))), "abilities.jsonl")[0] == "abilities-2"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.pdf", "hello", "cannot be read"),
        ("a.jsonl", "", "no rows"),
        ("a.jsonl", "this is\nno JSON\n", "None of the first rows can be used. a.jsonl:1: not valid JSON"),
        ("a.json", "[1, 2]", "should be an object"),
        ("../../a.jsonl", "[", "None of the first rows"),
    ],
)
def test_what_is_no_data_is_refused_and_leaves_nothing(workspace, tmp_path, name, text, words):
    with pytest.raises(UserError, match=words.replace(".", "[.]")):
        editing.add_file(workspace, given(tmp_path, text, "upload"), name)
    assert files(workspace) == [] and not (workspace.uploads / "dataset_info.json").exists()


def test_unusual_fields_can_be_told_afterwards(workspace, tmp_path):
    rows = [{"frage": f"q{i}", "antwort": f"a{i}"} for i in range(3)]
    assert editing.add_file(workspace, given(tmp_path, jsonl(rows)), "odd.jsonl") == ("odd", "", "")
    with pytest.raises(UserError, match="the layout of its rows is not known"):
        list(examples(own(workspace, "odd")))
    with pytest.raises(UserError, match="None of the first rows can be read as sharegpt"):
        editing.set_layout(workspace, "odd", "sharegpt", False, {}, {})
    assert own(workspace, "odd").formatting == ""
    columns = {"prompt": "frage", "response": "antwort"}
    assert editing.set_layout(workspace, "odd", "prompt_completion", False, columns, {}) == "prompt_completion"
    assert next(examples(own(workspace, "odd")))[1].messages[1]["content"] == "a0"
    with pytest.raises(UserError, match="formatting 'nonsense' is unknown"):
        editing.set_layout(workspace, "odd", "nonsense", False, {}, {})


def test_a_full_disk_is_a_sentence_and_loses_nothing(workspace, tmp_path, monkeypatch):
    editing.add_file(workspace, given(tmp_path, jsonl(rows_of(3))), "mine.jsonl")
    before = own(workspace, "mine").path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="The disk is full"):
        editing.change_rows(workspace, "mine", {1: (jsonl(rows_of(1)).strip(), None)})
    assert own(workspace, "mine").path.read_bytes() == before and files(workspace) == ["mine.jsonl"]


# --- copies and splits


def test_a_copy_has_the_same_examples_in_every_layout(workspace, tmp_path):
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    given(tmp_path, json.dumps([{"conversations": talk, "system": "s"}] * 2), "talks.json")
    given(tmp_path, "question,answer\nq,a\n", "table.csv")
    given(
        tmp_path,
        jsonl([{"dialog": [{"speaker": "user", "content": "q"}, {"speaker": "bot", "content": "a"}]}]),
        "odd.jsonl",
    )
    tags = {"role_tag": "speaker", "content_tag": "content", "user_tag": "user", "assistant_tag": "bot"}
    entries = {
        "talks": {"file_name": "talks.json"},
        "table": {"file_name": "table.csv"},
        "odd": {"file_name": "odd.jsonl", "formatting": "sharegpt", "columns": {"messages": "dialog"}, "tags": tags},
    }
    given(tmp_path, json.dumps(entries), "dataset_info.json")
    for name, info in read_registry(tmp_path).items():
        copied, lost = editing.copy(info, workspace, quiet)
        assert (copied, lost) == (f"{name}-copy", 0)
        assert [e for _, e in examples(own(workspace, copied))] == [e for _, e in examples(info)]


def test_a_split_is_exact_and_keeps_equal_rows_together(workspace, tmp_path):
    rows = rows_of(200) + rows_of(20) + [{"instruction": "broken"}]
    random.Random(1).shuffle(rows)
    info = DatasetInfo("mine", given(tmp_path, jsonl(rows)))
    done = editing.split_off(info, 0.1, workspace, quiet)
    sides = {side: [e.digest() for _, e in examples(own(workspace, done[side][0]))] for side in ("train", "eval")}
    assert done["left_out"] == 1 and [done["train"][0], done["eval"][0]] == ["mine-train", "mine-eval"]
    assert len(sides["train"]) + len(sides["eval"]) == 220 == done["train"][1] + done["eval"][1]
    assert not set(sides["train"]) & set(sides["eval"])
    assert 22 <= len(sides["eval"]) <= 23  # one more where the last one is there twice
    assert editing.split_off(info, 7, workspace, quiet, seed=3)["eval"][1] in (7, 8)
    for share in (0, -1, 220, 500):
        with pytest.raises(UserError, match="share"):
            editing.split_off(info, share, workspace, quiet)
    same = DatasetInfo("same", given(tmp_path, jsonl(rows_of(1) * 9), "same.jsonl"))
    with pytest.raises(UserError, match="same"):
        editing.split_off(same, 0.5, workspace, quiet)
    assert not [name for name in files(workspace) if name.startswith(".new")]


# --- rows


def test_rows_are_edited_and_deleted_by_number(workspace, tmp_path):
    lines = [json.dumps(row) for row in rows_of(4)]
    text = f"\ufeff{lines[0]}\n\n{lines[1]}\n{{broken\n{lines[3]}"
    editing.add_file(workspace, given(tmp_path, text), "mine.jsonl")
    fresh = '{"instruction": "Neu?",\n "output": "Ja — 好."}'
    assert editing.change_rows(workspace, "mine", {3: ("{broken", fresh)}) == 4
    assert [e.messages[-1]["content"] for _, e in examples(own(workspace, "mine"))] == [
        "Answer 0.",
        "Answer 1.",
        "Ja — 好.",
        "Answer 3.",
    ]
    assert editing.change_rows(workspace, "mine", {1: (lines[0], None), 4: (lines[3], None)}) == 2
    assert [e.messages[-1]["content"] for _, e in examples(own(workspace, "mine"))] == ["Answer 1.", "Ja — 好."]
    before = own(workspace, "mine").path.read_bytes()
    for changes, words in (
        ({1: ("something else", None)}, "has changed since it was shown"),
        ({1: (lines[1], "{broken")}, "Row 1 is not saved: not valid JSON"),
        ({1: (lines[1], "[]")}, "should be an object"),
        ({1: (lines[1], '{"instruction": "x", "output": " "}')}, "the field 'output' is empty"),
        ({9: ("x", None)}, "has 2 rows, no row 9"),
        ({1: (lines[1], None), 2: (json.dumps(json.loads(fresh), ensure_ascii=False), None)}, "all rows"),
    ):
        with pytest.raises(UserError, match=words):
            editing.change_rows(workspace, "mine", changes)
        assert own(workspace, "mine").path.read_bytes() == before
    assert files(workspace) == ["mine.jsonl"]


def test_a_table_becomes_lines_when_a_row_is_edited(workspace, tmp_path):
    editing.add_file(workspace, given(tmp_path, "question,answer\nq1,a1\nq2,a2\n"), "table.csv")
    row = json.dumps({"question": "q2", "answer": "a2"})
    editing.change_rows(workspace, "table", {2: (row, '{"question": "q2", "answer": "better"}')})
    assert own(workspace, "table").path.name == "table.jsonl" and files(workspace) == [".originals", "table.jsonl"]
    assert [e.messages[-1]["content"] for _, e in examples(own(workspace, "table"))] == ["a1", "better"]
    assert (workspace.uploads / ".originals" / "table.csv").read_text() == "question,answer\nq1,a1\nq2,a2\n"
    editing.remove(workspace, "table")
    assert not list(workspace.uploads.rglob("table*"))


def test_only_the_workspaces_own_data_is_changed(workspace):
    bundled = PROJECT / "data" / "abilities.jsonl"
    before = bundled.read_bytes()
    for act in (
        lambda: editing.change_rows(workspace, "abilities", {1: ("", None)}),
        lambda: editing.remove(workspace, "abilities"),
        lambda: editing.set_layout(workspace, "abilities", "alpaca", False, {}, {}),
    ):
        with pytest.raises(UserError, match="not a dataset of the workspace"):
            act()
    assert bundled.read_bytes() == before


def test_a_removed_dataset_is_gone_with_its_file(workspace, tmp_path):
    editing.add_file(workspace, given(tmp_path, jsonl(rows_of(3))), "mine.jsonl")
    editing.remove(workspace, "mine")
    assert files(workspace) == [] and read_registry(workspace.uploads) == {}
    outside = given(tmp_path, jsonl(rows_of(1)), "outside.jsonl")
    (workspace.uploads / "dataset_info.json").write_text(json.dumps({"far": {"file_name": str(outside)}}))
    editing.remove(workspace, "far")  # an entry may point elsewhere; what lies there is not the workspace's
    assert outside.is_file()


def test_a_read_only_page_changes_nothing(tmp_path):
    place = Workspace(tmp_path / "workspace").create()
    editing.add_file(place, given(tmp_path, jsonl(rows_of(3))), "mine.jsonl")
    looking = Workspace(place.root, read_only=True)
    for act in (
        lambda: editing.add_file(looking, given(tmp_path, jsonl(rows_of(3))), "other.jsonl"),
        lambda: editing.copy(own(looking, "mine"), looking, quiet),
        lambda: editing.split_off(own(looking, "mine"), 0.5, looking, quiet),
        lambda: editing.change_rows(looking, "mine", {}),
        lambda: editing.remove(looking, "mine"),
    ):
        with pytest.raises(UserError, match="read-only"):
            act()
    assert files(place) == ["mine.jsonl"]


# --- what a review found


def test_no_page_of_rows_is_no_rows(workspace, tmp_path):
    places = Places(DatasetInfo("mine", given(tmp_path, jsonl(rows_of(20)))))
    assert places.page(0, 0) == [] and places.page(19, 0) == []


def test_the_first_page_of_a_folder_counts_nothing(tmp_path, monkeypatch):
    from workbench.data import row_index as module

    for name in ("a.json", "b.json"):
        given(tmp_path, json.dumps(rows_of(10)), name)
    places = Places(DatasetInfo("folder", tmp_path))
    monkeypatch.setattr(module._File, "count", lambda self: pytest.fail("counted"))
    assert len(places.page(0, 5)) == 5


@pytest.mark.parametrize("name", ["odd.csv", "odd.json"])
def test_bytes_that_are_not_utf8_are_never_replaced(workspace, tmp_path, name):
    content = {
        "odd.csv": b"instruction,output\nhello,ok\n" + b"caf\xff,th\xff\n",
        "odd.json": b'[{"instruction": "a", "output": "b"}, {"instruction": "x\\ud83d", "output": "y"}]',
    }[name]
    (tmp_path / "file").write_bytes(content)
    added, *_ = editing.add_file(workspace, tmp_path / "file", name)
    info = own(workspace, added)
    (_, first), (_, second) = Places(info).page(0, 2)
    for raw in (first, second):
        row_view(0, raw, info, None, None)["source"].encode()  # can be sent
    with pytest.raises(UserError, match="not UTF-8"):
        editing.change_rows(workspace, added, {1: (source(first), '{"instruction": "new", "output": "x"}')})
    assert own(workspace, added).path.read_bytes() == content
    copied, lost = editing.copy(info, workspace, quiet)
    assert lost == 1 and [e.messages[-1]["content"] for _, e in examples(own(workspace, copied))] in (["ok"], ["b"])


def test_a_line_that_is_not_utf8_can_be_mended(workspace, tmp_path):
    (tmp_path / "file").write_bytes(
        json.dumps(rows_of(1)[0]).encode() + b'\n{"instruction": "caf\xff", "output": "y"}\n'
    )
    name, *_ = editing.add_file(workspace, tmp_path / "file", "odd.jsonl")
    before = source(Places(own(workspace, name)).page(1, 1)[0][1])
    assert "caf\\xff" in before
    editing.change_rows(workspace, name, {2: (before, '{"instruction": "café", "output": "y"}')})
    assert [e.messages[0]["content"] for _, e in examples(own(workspace, name))] == ["Question 0?", "café"]


def test_a_dataset_that_hides_another_of_its_name_is_left_alone(workspace, tmp_path):
    editing.add_file(workspace, given(tmp_path, jsonl(rows_of(3))), "foo.jsonl")
    folder = tmp_path / "mydata"
    folder.mkdir()
    given(folder, jsonl(rows_of(1)), "foo.jsonl")
    given(
        folder, json.dumps({"foo": {"file_name": "foo.jsonl"}, "bar": {"file_name": "foo.jsonl"}}), "dataset_info.json"
    )
    shown = select("foo", folder, workspace)[0].path
    assert shown.parent == folder and not editing.is_own("foo", workspace, shown)
    for act in (
        lambda: editing.remove(workspace, "foo", shown),
        lambda: editing.change_rows(workspace, "foo", {1: ("", None)}, shown),
        lambda: editing.set_layout(workspace, "foo", "alpaca", False, {}, {}, shown),
    ):
        with pytest.raises(UserError, match="hides it"):
            act()
    assert files(workspace) == ["foo.jsonl"]
    assert editing.add_file(workspace, given(tmp_path, jsonl(rows_of(3))), "bar.jsonl", beside=folder)[0] == "bar-2"


def test_problems_name_their_rows_also_where_places_come_twice(tmp_path):
    for name, rows in (("a", [{"instruction": "x"}, *rows_of(2)]), ("b", rows_of(3))):
        (tmp_path / name).mkdir()
        given(tmp_path / name, jsonl(rows), "data.jsonl")
    found = [p for p in problems_of(DatasetInfo("folder", tmp_path), Report()) if p]
    assert [(p.row, p.place, p.kind) for p in found] == [
        (1, "a/data.jsonl:1", "missing"),
        (4, "b/data.jsonl:1", "duplicate"),
        (5, "b/data.jsonl:2", "duplicate"),
    ]
    assert [raw.place for _, raw in Places(DatasetInfo("folder", tmp_path)).page(2, 2)] == [
        "a/data.jsonl:3",
        "b/data.jsonl:1",
    ]
    line = given(
        tmp_path,
        '{"instruction": "x", "output": "y"} {"instruction": "x"} {"instruction": "z", "output": "y"}',
        "line.json",
    )
    assert [p.row for p in problems_of(DatasetInfo("line", line), Report()) if p] == [2]


def test_edits_lose_nothing_of_a_row(workspace, tmp_path):
    editing.add_file(workspace, given(tmp_path, jsonl(rows_of(2))), "mine.jsonl")
    number = 123456789012345678901234567890
    text = json.dumps(rows_of(1)[0] | {"id": number, "mark": "\ud83d"})
    editing.change_rows(workspace, "mine", {2: (json.dumps(rows_of(2)[1]), text)})
    assert json.loads(own(workspace, "mine").path.read_text().splitlines()[1]) == json.loads(text)


def test_a_layout_keeps_what_else_the_entry_says(workspace, tmp_path):
    (workspace.uploads / "sub").mkdir()
    given(workspace.uploads / "sub", jsonl(rows_of(3)), "z.jsonl")
    entry = {"file_name": "sub/z.jsonl", "num_samples": 2, "split": "train"}
    given(workspace.uploads, json.dumps({"z": entry}), "dataset_info.json")
    assert editing.set_layout(workspace, "z", "alpaca", False, {}, {}) == "alpaca"
    assert json.loads((workspace.uploads / "dataset_info.json").read_text())["z"] == entry | {"formatting": "alpaca"}


def test_long_names_keep_their_ends(workspace, tmp_path):
    info = DatasetInfo("a" * 90, given(tmp_path, jsonl(rows_of(10))))
    done = editing.split_off(info, 3, workspace, quiet)
    assert done["train"][0].endswith("-train") and done["eval"][0].endswith("-eval")
