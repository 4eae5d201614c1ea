import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.dataset import examples
from workbench.data.formats import BadRow, detect, to_example
from workbench.data.registry import DatasetInfo, read_registry, select
from workbench.errors import UserError

ROOT = Path(__file__).parents[2]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 你好"},
    {"role": "assistant", "content": "Hello 你"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long."},
]


def test_bundled_dataset():
    info = select("abilities", ROOT / "data")[0]
    rows = [json.loads(line) for line in info.path.read_text(encoding="utf-8").splitlines()]
    talks = [example.messages for _, example in examples(info)]
    assert len(talks) == len(rows) >= 150
    languages = [row["lang"] for row in rows]
    assert languages.count("en") >= 80 and languages.count("zh") >= 50
    asked = [" ".join(m["content"] for m in talk if m["role"] == "user").lower() for talk in talks]
    assert len(set(asked)) == len(asked)
    from tests.browser.test_story import HELD_OUT

    assert not any(question.lower() in text for question in HELD_OUT for text in asked)


def to_messages(row: dict, formatting: str) -> list[dict]:
    return to_example(row, detect(row, DatasetInfo("d", None, formatting=formatting))).messages


def test_alpaca_rows():
    row = {"instruction": "Add", "input": "1+1", "output": "2", "system": "S", "history": [["a", "b"]]}
    assert [(m["role"], m["content"]) for m in to_messages(row, "alpaca")] == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Add\n1+1"),
        ("assistant", "2"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "q"}, "'output' is missing"),
        ({"instruction": "", "output": "a"}, "'instruction' is empty"),
        ({"instruction": 3, "output": "a"}, "should be text"),
        ({"instruction": "q", "output": "a", "history": "x"}, "list of \\[question, answer\\]"),
    ],
)
def test_bad_alpaca_rows(row, words):
    with pytest.raises(BadRow, match=words):
        to_messages(row, "alpaca")


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ("x", "of turns|no turns"),
        ([], "of turns|no turns"),
        ([{"role": "user", "content": "a"}], "never speaks"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "no text"),
        ([{"role": "wizard", "content": "a"}], "unknown role"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], "ends with a turn of the user"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}],
            "out of order",
        ),
    ],
)
def test_bad_conversations(turns, words):
    with pytest.raises(BadRow, match=words):
        to_messages({"messages": turns}, "openai")


def test_naming_one_column_keeps_the_answer_and_drops_what_is_optional(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([{"q": "Q", "output": "A", "system": "S"}]))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "d.json", "columns": {"prompt": "q"}}}))
    ((_, example),) = examples(select("d", tmp_path)[0])
    assert [m["content"] for m in example.messages] == ["Q", "A"]


def test_broken_files_name_file_and_line(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"instruction": "q", "output": "a"}\n{"instruction": \n')
    (tmp_path / "l.jsonl").write_bytes(b'{"instruction": "\xff\xff"}\n')
    (tmp_path / "e.json").write_text("[]")
    entries = {
        name: {"file_name": file}
        for name, file in {"d": "d.jsonl", "l": "l.jsonl", "e": "e.json", "m": "none.json"}.items()
    }
    (tmp_path / "dataset_info.json").write_text(
        json.dumps(entries | {"r": {"file_name": "e.json", "ranking": True}, "bad": 3})
    )
    for name, words in {
        "d": "d.jsonl:2: not valid JSON",
        "l": "not UTF-8",
        "e": "no rows",
        "m": "does not exist",
        "r": "no rows",
        "bad": "should be an object",
        "x": "There is no dataset 'x'",
    }.items():
        with pytest.raises(UserError, match=words):
            list(examples(select(name, tmp_path)[0]))
    assert read_registry(tmp_path)["m"].problem and not read_registry(tmp_path)["d"].problem


def test_broken_registry(tmp_path):
    with pytest.raises(UserError, match=r"no dataset_info\.json"):
        read_registry(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{\n 'x'")
    with pytest.raises(UserError, match="line 2"):
        read_registry(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["instruction", "input", "output", "history", "system", "messages", "role"]), json_values
    )
)
def test_any_row_is_read_or_refused_with_a_reason(row):
    for formatting in ("alpaca", "openai"):
        try:
            messages = to_messages(row, formatting)
        except BadRow as reason:
            assert str(reason)
        else:
            assert messages[-1]["role"] == "assistant"
