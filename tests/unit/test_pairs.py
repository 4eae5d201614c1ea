"""Questions and answers about documents: passages, what a model may write, what is kept."""

import json

import pytest

from workbench.data import pairs
from workbench.data.readers import read_file
from workbench.data.registry import DatasetInfo, read_registry
from workbench.errors import UserError
from workbench.storage.workspace import Workspace

ONE = '{"question": "What is it?", "answer": "A thing."}'


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (f"[{ONE}]", 1), (f"Here you are:\n```json\n[{ONE}, {ONE}]\n```", 1), (ONE, 1), (f'[{ONE}, {{"question": "cut o', 1),
        (f'[{ONE}, {{"question": 5, "answer": []}}, 7, null, {{"question": "q"}}, {{"question": " ", "answer": "a"}}]', 1),
        ("Q: What is it?\nA: A thing.\n\nQ2: And?\nA2: More\nof it.", 2), ("问：是什么？\n答：东西。", 1), ("**Question 1:** What?\nAnswer: That", 1),
        ("", 0), ("I cannot.", 0), ("[" * 100_000, 0), ("{" * 100_000, 0), ("[]", 0), ("A: no question\nQ: no answer", 0), ("[1, 2]", 0),
        ("[" + ", ".join(json.dumps({"question": f"q{i}", "answer": "a"}) for i in range(50)) + "]", 5),
        (json.dumps([{"question": "q" * 99_999, "answer": "a" * 99_999}])[:150_000], 0), ("Q: " + "x" * 10**6 + "\nA: y", 0),
    ],
)  # fmt: skip
def test_pairs_are_found_in_whatever_a_model_writes(answer, found):
    read = pairs.found_in(answer)
    assert len(read) == found and all(0 < len(q) <= pairs.QUESTION and 0 < len(a) <= pairs.ANSWER for q, a in read)


def test_answers_of_several_lines_stay_whole():
    assert pairs.found_in("Q: What?\nA: More\nof it.") == [("What?", "More\nof it.")]


def test_passages_come_from_plain_text_only(tmp_path):
    (tmp_path / "d.txt").write_text("\n".join(f"Sentence number {i}." for i in range(100)))
    info = DatasetInfo("d", tmp_path / "d.txt")
    whole = pairs.passages_of(info, 500)
    assert all(len(passage) <= 500 for passage in whole) and "\n".join(whole).count("Sentence") == 100
    assert pairs.passages_of(info, 500, 2, 1) == whole[1:2] and pairs.passages_of(info, 500, 99) == []
    assert max(map(len, pairs.passages_of(info, -5))) <= pairs.SHORTEST
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(UserError, match="laid out as alpaca"):
        pairs.passages_of(DatasetInfo("d", tmp_path / "d.jsonl"), 500)


def test_the_request_holds_the_passage_as_it_is():
    (message,) = pairs.request("a {text} with %s", 2)
    assert message["content"].endswith("Text:\na {text} with %s") and "2 questions" in message["content"]


def test_kept_pairs_become_a_dataset(workspace):
    assert pairs.keep(workspace, "My Book.docx", " q1 ", "a1\n") == ("my-book-qa", 1)
    assert pairs.keep(workspace, "My Book.docx", "问", "答 \ud800") == ("my-book-qa", 2)
    info = read_registry(workspace.uploads, workspace)["my-book-qa"]
    rows = [raw.row()["messages"] for raw in read_file(info.file)]
    assert [[turn["content"] for turn in turns] for turns in rows] == [["q1", "a1"], ["问", "答 ?"]]
    for question, answer in (("", "a"), ("q", "  ")):
        with pytest.raises(UserError, match="a question and an answer"):
            pairs.keep(workspace, "book", question, answer)
    assert pairs.keep(workspace, "../../etc/passwd", "q", "a")[0] == "passwd-qa"
    with pytest.raises(UserError, match="read-only"):
        pairs.keep(Workspace(workspace.root, read_only=True), "book", "q", "a")
    assert not [p for p in workspace.uploads.iterdir() if p.name.startswith(".new-")]
