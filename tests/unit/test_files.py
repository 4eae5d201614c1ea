"""Data files as other people have them: each row as its author means it, or a reason with its line."""

import datetime
import json
import random
import zipfile
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from workbench.data import dataset as dataset_module
from workbench.data import editing
from workbench.data.dataset import raw_rows, unused_columns, with_layout
from workbench.data.encodings import WrongEncoding, looks_like
from workbench.data.formats import to_example
from workbench.data.readers import BadRow
from workbench.data.registry import DatasetInfo, read_registry, select
from workbench.errors import UserError

ASK, SAY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def rows_in(info: DatasetInfo) -> list:
    """Its rows as examples, or as what is wrong with them."""
    info, rows = with_layout(info), []
    for raw in raw_rows(info):
        try:
            rows.append(to_example(raw.row(), info))
        except BadRow as bad:
            rows.append(f"{raw.place}: {bad}")
    return rows


def read(folder: Path, name: str, content: bytes | str, **entry) -> list:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return rows_in(DatasetInfo("d", path, **entry))


def answers(rows: list) -> list[str]:
    return [row.conversation[-1]["content"] for row in rows]


# --- tables


def test_an_unclosed_quote_is_an_error_with_its_line(tmp_path):
    text = 'question,answer\nHow tall?,"6 feet\nHow wide?,3 feet\nHow deep?,2 feet\n'
    (problem,) = read(tmp_path, "d.csv", text)
    assert problem.startswith("d.csv:2: a quote is opened") and "3 feet" not in problem


def test_a_quote_within_an_unquoted_cell_is_text(tmp_path):
    assert answers(read(tmp_path, "d.csv", 'question,answer\nHow tall?,6 feet 2"\nWhy?,so\n')) == ['6 feet 2"', "so"]


def test_cells_that_hold_json_stay_text(tmp_path):
    text = 'instruction,output\nAnn,"{""name"": ""Ann""}"\nPrimes,"[2, 3, 5]"\nHi,hi\n'
    assert answers(read(tmp_path, "d.csv", text)) == ['{"name": "Ann"}', "[2, 3, 5]", "hi"]


def test_a_cell_with_a_conversation_is_one(tmp_path):
    cell = json.dumps([ASK, SAY]).replace('"', '""')
    assert [row.messages for row in read(tmp_path, "d.csv", f'id,messages\n1,"{cell}"\n')] == [[ASK, SAY]]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [json.dumps([ASK, SAY])]}), tmp_path / "d.parquet")
    assert [row.messages for row in rows_in(DatasetInfo("d", tmp_path / "d.parquet"))] == [[ASK, SAY]]


def test_columns_and_lines_that_a_spreadsheet_leaves_behind_are_ignored(tmp_path):
    assert answers(read(tmp_path, "d.csv", "instruction,output,,\nq1,a1,,\nq2,a2\n,,,\n")) == ["a1", "a2"]
    (problem,) = read(tmp_path, "e.csv", "instruction,output\nq1,a1,rest\n")
    assert "3 cells" in problem


# --- workbooks


def workbook(path: Path, *rows) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    second = book.create_sheet("second")
    second.append(["instruction", "output"])
    second.append(["not", "read"])
    book.save(path)
    return path


def test_the_first_sheet_of_a_workbook_is_read_as_csv_is(tmp_path):
    day = datetime.datetime(2026, 1, 2)
    path = workbook(
        tmp_path / "d.xlsx",
        ["instruction", "output", None],
        ["你好", "{'a': 1}"],
        [],
        ["How many?", 3.0],
        ["Half?", 0.5],
        ["True?", True],
        ["When?", day],
        ["When, exactly?", day.replace(hour=5)],
        ["=1+1", "a formula without a result"],
    )
    rows = rows_in(DatasetInfo("d", path))
    assert answers(rows[:-1]) == ["{'a': 1}", "3", "0.5", "true", "2026-01-02", "2026-01-02 05:00:00"]
    assert rows[-1].startswith("d.xlsx:9:") and "instruction" in rows[-1]  # no program has computed it
    assert rows[0].conversation[0]["content"] == "你好"
    (problem,) = rows_in(DatasetInfo("d", workbook(tmp_path / "e.xlsx", ["instruction", "output"], ["a", "b", "c"])))
    assert problem.startswith("e.xlsx:2:") and "3 cells" in problem


def test_a_workbook_is_uploaded_and_edited(workspace, tmp_path):
    path = workbook(tmp_path / "d.xlsx", ["instruction", "output"], ["q1", "a1"], ["q2", "a2"])
    name, _, _ = editing.add_file(workspace, path, "d.xlsx")
    assert answers(rows_in(read_registry(workspace.uploads, workspace)[name])) == ["a1", "a2"]
    row = {"instruction": "q1", "output": "a1"}
    editing.change_rows(workspace, name, {1: (json.dumps(row), json.dumps(row | {"output": "A1"}))})
    assert answers(rows_in(read_registry(workspace.uploads, workspace)[name])) == ["A1", "a2"]


def test_what_is_no_workbook_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "d.xlsx"
    for content in (b"", b"instruction,output\na,b\n", b"PK\x03\x04 not really"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"no Excel workbook of the kind \.xlsx"):
            rows_in(DatasetInfo("d", path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="cannot be read as an Excel workbook"):
        rows_in(DatasetInfo("d", path))
    whole = workbook(path, ["instruction", "output"], ["q", "a"]).read_bytes()
    for cut in range(200, len(whole), len(whole) // 7):  # damaged anywhere: never a traceback
        path.write_bytes(whole[:cut] + bytes(40) + whole[cut + 40 :])
        try:
            rows_in(DatasetInfo("d", path))
        except UserError as error:
            assert "\n" not in str(error)


def repacked(path: Path, parts: dict[str, bytes], changed: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (parts | changed).items():
            archive.writestr(name, data)


def parts_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.filterwarnings("ignore")
def test_a_workbook_with_broken_parts_is_one_sentence_at_most(tmp_path):
    path = workbook(tmp_path / "d.xlsx", ["instruction", "output"], *([f"q{i}", i] for i in range(20)))
    parts, generator = parts_of(path), random.Random(1)
    for _ in range(150):
        name = generator.choice(sorted(parts))
        data = bytearray(parts[name])
        for _ in range(3):
            at = generator.randrange(len(data))
            data[at : at + generator.randint(0, 6)] = bytes(generator.choices(b'<>&"0169az/ \x00\xff', k=3))
        repacked(path, parts, {name: bytes(data)})
        try:
            rows_in(DatasetInfo("d", path))
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) not in str(error)


def test_entities_that_grow_beyond_measure_are_refused(tmp_path):
    path = workbook(tmp_path / "d.xlsx", ["instruction", "output"], ["q", "a"])
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    sheet = (
        f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">{entities}]>'
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData><row r="1">'
        '<c t="inlineStr"><is><t>&j;</t></is></c></row></sheetData></worksheet>'
    )
    repacked(path, parts_of(path), {"xl/worksheets/sheet1.xml": sheet.encode()})
    with pytest.raises(
        UserError, match="cannot be read as an Excel workbook"
    ):  # by expat, or by lxml where that is installed
        rows_in(DatasetInfo("d", path))


def test_a_workbook_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path):
    path = workbook(tmp_path / "d.xlsx", ["instruction", "output"], ["q", "a"])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/media/zeros", bytes(300 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match="unpacks to 300 MiB"):
        rows_in(DatasetInfo("d", path))


def test_rows_far_down_a_sheet_are_not_filled_up(tmp_path):
    path = workbook(tmp_path / "d.xlsx", ["instruction", "output"], ["q", "a"])
    parts = parts_of(path)
    sheet = parts["xl/worksheets/sheet1.xml"].replace(b'<row r="2"', b'<row r="999999999"')
    repacked(path, parts, {"xl/worksheets/sheet1.xml": sheet})
    with pytest.raises(UserError, match="more than 1,048,576 rows"):
        rows_in(DatasetInfo("d", path))


# --- encodings


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "问题,答案\n你好吗？,我很好，谢谢你。\n"),
        ("gb18030", "instruction,output\n今天天气怎么样,今天是晴天\n"),
        ("shift_jis", "instruction,output\nこんにちは,お元気ですか\n"),
        ("utf-16", "instruction,output\nZürich,schön\n"),
        ("utf-16", "instruction,output\n你好,世界\n"),
        ("big5", "instruction,output\n請問台北今天的天氣如何？,今天台北是晴天，謝謝你的問題。\n"),
        ("euc_kr", "instruction,output\n오늘 서울 날씨가 어떻습니까?,오늘은 맑습니다. 감사합니다.\n"),
        ("cp1252", "instruction,output\nOù est l’hôtel ?,Près du café — à côté.\n"),
        ("cp1252", "instruction,output\nWie spät ist es?,Fünf Uhr.\n"),
        ("cp1251", "instruction,output\nКакая сегодня погода в Москве?,Сегодня солнечно и тепло.\n"),
    ],
)
def test_text_that_is_not_utf8_is_named_and_read(workspace, tmp_path, encoding, text):
    columns = {"prompt": "问题", "response": "答案"} if text.startswith("问题") else {}
    with pytest.raises(WrongEncoding) as caught:
        read(tmp_path, "d.csv", text.encode(encoding), columns=columns)
    assert caught.value.encoding == encoding and str(caught.value).isascii()
    expected = [text.strip().split("\n")[1].split(",")[1]]
    assert answers(read(tmp_path, "d.csv", text.encode(encoding), columns=columns, encoding=encoding)) == expected
    # an upload is read as what it looks like, and says so
    name, _, guessed = editing.add_file(workspace, tmp_path / "d.csv", "d.csv")
    entry = json.loads((workspace.uploads / "dataset_info.json").read_text())[name]
    assert guessed == entry["encoding"] == encoding
    if not columns:
        assert answers(rows_in(read_registry(workspace.uploads, workspace)[name])) == expected
        # a change of a row makes it UTF-8
        row = next(iter(raw_rows(read_registry(workspace.uploads, workspace)[name]))).row()
        editing.change_rows(
            workspace, name, {1: (json.dumps(row, ensure_ascii=False), '{"instruction":"é","output":"ü"}')}
        )
        assert answers(rows_in(read_registry(workspace.uploads, workspace)[name])) == ["ü"]


def test_utf8_and_what_is_nothing_known_are_left_alone():
    assert looks_like("é你好".encode()) == looks_like(b"plain") == looks_like(b"") == ""
    assert looks_like("中文\n".encode() + b"broken \xff line\n") == ""
    assert looks_like(b"\xff\xff\xff\n") == looks_like("½÷ÿ".encode("latin-1")) == ""


def test_a_wrong_encoding_is_one_sentence(workspace, tmp_path):
    (tmp_path / "d.csv").write_bytes("instruction,output\n你好,世界\n".encode())
    with pytest.raises(UserError, match="is not text in utf-16"):
        rows_in(DatasetInfo("d", tmp_path / "d.csv", encoding="utf-16"))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "d.csv", "encoding": "klingon"}}))
    assert "encoding 'klingon' is unknown" in read_registry(tmp_path)["d"].problem


# --- kinds of files


def test_a_list_in_a_jsonl_file_is_read(tmp_path):
    pair = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
    assert answers(read(tmp_path, "d.jsonl", json.dumps(pair))) == ["b", "d"]
    assert answers(read(tmp_path, "e.jsonl", json.dumps(pair, indent=1))) == ["b", "d"]


def test_arrow_in_both_of_its_forms(tmp_path):
    table = pyarrow.table({"instruction": ["q", "r"], "output": ["a", "b"]})
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    pyarrow.feather.write_feather(table, tmp_path / "b.arrow", compression="uncompressed")
    with pyarrow.ipc.new_stream(tmp_path / "c.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.feather", "b.arrow", "c.arrow"):
        assert answers(rows_in(DatasetInfo("d", tmp_path / name))) == ["a", "b"]
    (tmp_path / "d.arrow").write_bytes(b"ARROW1 and nothing more")
    (problem,) = list(raw_rows(DatasetInfo("d", tmp_path / "d.arrow")))
    assert "damaged" in str(problem.data)


def test_a_text_file_has_a_text_a_line(tmp_path):
    rows = read(tmp_path, "d.txt", "\ufefffirst [1]\n\nsecond {x}\n")
    assert [row.text for row in rows] == ["first [1]", "second {x}"]


def test_keys_that_arrow_filled_with_null_are_left_out(tmp_path, monkeypatch):
    def row(name: str, arguments: dict) -> dict:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        tool = {
            "type": "function",
            "function": {"name": name, "parameters": {"properties": {k: {} for k in arguments}}},
        }
        properties = {key: {"type": "string"} for key in arguments}
        tool["function"]["parameters"]["properties"] = properties
        turns = [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "r"}, SAY]
        return {"messages": turns, "tools": [tool]}

    rows = [row("weather", {"city": "Rome"}), row("add", {"a": "1", "b": "2"})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    assert rows_in(DatasetInfo("d", tmp_path / "d.parquet")) == read(tmp_path, "d.jsonl", lines)
    # a hub's rows come out of Arrow, too
    monkeypatch.setattr(dataset_module, "dataset_rows", lambda info: pyarrow.Table.from_pylist(rows).to_pylist())
    assert rows_in(DatasetInfo("d", None, hub="a/b")) == read(tmp_path, "d.jsonl", lines)


def test_a_link_into_the_hubs_cache_is_read_by_its_own_name(tmp_path):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    (blobs / "5f2a").write_text('{"instruction": "q", "output": "a"}\n')
    (folder / "train.jsonl").symlink_to(blobs / "5f2a")
    (folder / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "train.jsonl"}}))
    for info in (read_registry(folder)["d"], select(str(folder / "train.jsonl"), folder)[0]):
        assert answers(rows_in(info)) == ["a"]


# --- columns


def test_a_pair_that_holds_the_whole_conversation(tmp_path):
    no = {"role": "assistant", "content": "no"}
    row = {"prompt": "a", "chosen": [ASK, SAY], "rejected": [ASK, no], "messages": [ASK, SAY], "score_chosen": 8.0}
    (example,) = read(tmp_path, "d.jsonl", json.dumps(row))
    assert (example.messages, example.chosen, example.rejected) == ([ASK], [SAY], [no])
    assert example.conversation == row["messages"]


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"question": "a", "answer": "b", "label": 0}, None),
        ({"instruction": "a", "output": "b", "label": "negative"}, None),
        ({"instruction": "a", "output": "b", "label": False}, None),
        ({"prompt": "a", "completion": "b", "label": "negative"}, None),
        ({"prompt": "a", "completion": "b", "label": False}, False),
        ({"question": "a", "answer": "b", "kto_tag": True}, True),
    ],
)
def test_label_means_kto_where_the_columns_say_so(tmp_path, row, label):
    (example,) = read(tmp_path, "d.jsonl", json.dumps(row))
    assert example.label is label and example.messages == [ASK, SAY]


def test_a_column_that_is_not_named_beside_others_is_none(workspace, tmp_path):
    row = {"input": "a", "target": "b", "system": "S"}
    columns = {"prompt": "input", "response": "target"}
    (example,) = read(tmp_path, "d.jsonl", json.dumps(row), columns=columns)
    assert example.messages == [ASK, SAY]
    # a copy keeps that, also where the names are the usual ones
    row = {"instruction": "a", "output": "b", "input": "x"}
    info = DatasetInfo("d", tmp_path / "e.jsonl", columns={"prompt": "instruction", "response": "output"})
    info.path.write_text(json.dumps(row))
    name, _ = editing.copy(with_layout(info), workspace, lambda *_: None)
    for read_as in (info, read_registry(workspace.uploads, workspace)[name]):
        assert [e.messages for e in rows_in(read_as)] == [[ASK, SAY]]


def test_an_entry_that_names_only_the_text_of_pre_training(tmp_path):
    row = {"text": "Some page.", "timestamp": "2019-04-25", "url": "https://x"}
    (example,) = read(tmp_path, "d.jsonl", json.dumps(row), columns={"prompt": "text"})
    assert example.text == "Some page." and not example.messages
    (example,) = read(tmp_path, "e.jsonl", json.dumps({"q": "a", "output": "b"}), columns={"prompt": "q"})
    assert example.messages == [ASK, SAY]


def test_llama_factorys_newer_form(tmp_path):
    def turn(role: str, text: str, weight: float) -> dict:
        return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}

    row = {"messages": [turn("user", "a", 0.0), turn("assistant", "b", 1.0)]}
    (example,) = read(tmp_path, "d.jsonl", json.dumps(row))
    assert example.messages == [ASK, SAY]
    pair = {"chosen_messages": row["messages"], "rejected_messages": [row["messages"][0], turn("assistant", "no", 1.0)]}
    (example,) = read(tmp_path, "e.jsonl", json.dumps(pair))
    assert (example.messages, example.chosen) == ([ASK], [SAY]) and example.rejected[0]["content"] == "no"


def test_columns_that_are_not_used_are_named(tmp_path):
    rows = [{"question": "a", "answer": "b", "label": 0}, {"question": "a", "answer": "b", "score": 8.0, "label": None}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert unused_columns(DatasetInfo("d", tmp_path / "d.jsonl")) == ["label", "score"]
    row = {"instruction": "a", "input": "", "output": "b", "system": "s"}
    (tmp_path / "e.jsonl").write_text(json.dumps(row))
    assert unused_columns(DatasetInfo("e", tmp_path / "e.jsonl")) == []
    named = {"prompt": "instruction", "response": "output"}
    assert unused_columns(DatasetInfo("e", tmp_path / "e.jsonl", columns=named)) == ["input", "system"]
