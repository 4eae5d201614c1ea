"""Rows of every layout and file kind, right and broken; each against what transformers makes of the same
conversation."""

import csv
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.dataset import examples
from workbench.data.formats import detect, to_example
from workbench.data.readers import BadRow
from workbench.data.registry import DatasetInfo, read_registry, select
from workbench.data.validate import Report, problems_of
from workbench.errors import UserError

ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
NO = {"role": "assistant", "content": "No"}
TOOL = {"name": "clock", "description": "Time", "parameters": {"type": "object", "properties": {}}}


def read(row: dict, **given):
    return to_example(row, detect(row, DatasetInfo("d", None, **given)))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Hi", "input": "", "output": "Hello"}, [ASK, SAY]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [ASK, SAY]),
        ({"messages": [ASK, SAY]}, [ASK, SAY]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, SAY]}, [ASK, SAY]),
        ({"prompt": "Hi", "completion": "Hello"}, [ASK, SAY]),
        ({"prompt": [ASK], "completion": [SAY]}, [ASK, SAY]),
        ({"question": "Hi", "answer": "Hello"}, [ASK, SAY]),
    ],
)
def test_layouts_are_told_from_the_fields(row, messages):
    assert read(row).conversation == messages


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "No"},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {"messages": [ASK], "chosen": SAY, "rejected": NO},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"chosen": [ASK, SAY], "rejected": [ASK, NO]},
    ],
)
def test_preference_pairs(row):
    example = read(row)
    assert (example.messages, example.chosen, example.rejected) == ([ASK], [SAY], [NO])


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hi", "output": "Hello", "kto_tag": False},
        {"prompt": "Hi", "completion": "Hello", "label": "false"},
        {"messages": [ASK, SAY], "kto_tag": False},
    ],
)
def test_kto_labels(row):
    assert read(row).label is False and read(row).conversation == [ASK, SAY]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    rows = [{"instruction": f"Q{i}", "input": "", "output": f"A{i}"} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.json").write_text(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name, mark in (("e.csv", ""), ("f.csv", "\ufeff")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            file.write(mark)
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "g.parquet")
    (tmp_path / "folder" / "data").mkdir(parents=True)
    (tmp_path / "folder" / "data" / "train-00000-of-00001.jsonl").write_text(lines)
    (tmp_path / "folder" / "data" / "test-00000-of-00001.jsonl").write_text(lines)
    expected = [[{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": f"A{i}"}] for i in range(5)]
    for name in ("a.jsonl", "b.json", "c.json", "d.jsonl.gz", "e.csv", "f.csv", "g.parquet", "folder"):
        found = [example.messages for _, example in examples(DatasetInfo(name, tmp_path / name))]
        assert found == expected, name


BREAKS = [  # (what to do to a good row, kind, words)
    (lambda good: b'{"messages": [', "json", "not valid JSON"),
    (lambda good: b'{"messages": "\xff\xfe"}', "utf8", "not UTF-8"),
    (lambda good: b"[1, 2]", "type", "should be an object, not a list"),
    (lambda good: {"text": "x"}, "missing", "'messages' is missing"),
    (lambda good: {"messages": []}, "empty", "no turns"),
    (lambda good: {"messages": "x"}, "type", "should be a list of turns"),
    (lambda good: {"messages": [{"role": "wizard", "content": "x"}, SAY]}, "role", "unknown role 'wizard'"),
    (lambda good: {"messages": [ASK, ASK, SAY]}, "order", "turn 2 (user) is out of order"),
    (lambda good: {"messages": [ASK]}, "no_assistant", "never speaks"),
    (lambda good: {"messages": [ASK, {"role": "assistant", "content": 3}]}, "type", "should be text, not a number"),
    (lambda good: {"messages": [ASK, {"role": "assistant", "content": " "}]}, "empty", "has no text"),
    (lambda good: {"messages": [{"role": "user", "content": "a\x00b"}, SAY]}, "control", "U+0000"),
]


def test_ten_thousand_rows_with_37_broken_in_12_ways(tmp_path):
    """Right lines, right reasons; the pool of processes and the one at the beginning both have some."""
    expected, lines = [], []
    where = [n * 269 % 9_973 for n in range(1, 38)]
    for number in range(10_000):
        good = {"messages": [{"role": "user", "content": f"Question {number}"}, SAY]}
        line = json.dumps(good).encode()
        if number in where:
            make, kind, words = BREAKS[where.index(number) % 12]
            made = make(good)
            if kind == "control":
                made["messages"][0]["content"] += str(number)
            line = made if isinstance(made, bytes) else json.dumps(made).encode()
            expected.append((f"d.jsonl:{number + 1}", kind, words))
        lines.append(line)
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(lines))
    report = Report()
    found = [
        p for p in problems_of(DatasetInfo("d", tmp_path / "d.jsonl", formatting="openai"), report, workers=2) if p
    ]
    assert [(p.place, p.kind) for p in found] == [(place, kind) for place, kind, _ in expected] and len(found) == 37
    assert all(words in p.reason for p, (_, _, words) in zip(found, expected, strict=True))
    assert report.rows == 10_000 and report.broken == 34 and report.counts["control"] == 3


def test_a_broken_list_is_read_on(tmp_path):
    (tmp_path / "d.json").write_text(
        '[\n {"instruction": "a", "output": "b"},\n {"instruction": "a" "output"},\n {"instruction": "c", "output":'
        ' "d"}\n]'
    )
    report = Report()
    (found,) = [p for p in problems_of(DatasetInfo("d", tmp_path / "d.json"), report) if p]
    assert found.place == "d.json:3 (row 2)" and report.rows == 3


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.floats()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "from", "content", "value", "tool_calls", "function", "name", "arguments", "type", "text"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
names = st.sampled_from(
    [
        "instruction",
        "input",
        "output",
        "history",
        "system",
        "messages",
        "conversations",
        "tools",
        "prompt",
        "completion",
        "text",
        "chosen",
        "rejected",
        "kto_tag",
        "label",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(names, values, max_size=5),
    st.sampled_from(["", "alpaca", "sharegpt", "openai", "prompt_completion", "text"]),
    st.booleans(),
)
def test_any_row_is_read_or_refused_with_a_sentence(row, formatting, ranking):
    try:
        example = read(row, formatting=formatting, ranking=ranking)
    except (BadRow, UserError) as error:
        assert len(str(error)) > 10 and str(error).endswith((".", "?"))
    else:
        assert example.text or example.conversation[-1]["role"] == "assistant"
        assert isinstance(example.digest(), int)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=4),
        st.dictionaries(
            st.sampled_from(
                [
                    "file_name",
                    "hf_hub_url",
                    "ms_hub_url",
                    "formatting",
                    "ranking",
                    "subset",
                    "split",
                    "folder",
                    "num_samples",
                    "columns",
                    "tags",
                ]
            ),
            values,
        )
        | values,
    )
)
def test_any_registry_is_read_or_refused_with_a_sentence(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("registry")
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    for name, info in read_registry(folder).items():
        if info.path and not info.problem:
            try:
                list(examples(select(name, folder)[0])) if name.strip() == name and "," not in name and name else None
            except UserError as error:
                assert len(str(error)) > 10
