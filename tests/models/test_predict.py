"""Predictions in this process with a tiny model: the answers, the labels, rows that cannot be asked, what goes on."""

import errno
import json
import os

import pytest

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.data import templates
from workbench.data.encode import Encoder
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.evaluation import predict as module
from workbench.evaluation.predict import predict
from workbench.evaluation.questions import layout, questions
from workbench.evaluation.results import Asked, Prediction

QUIET = (lambda phase, share: None, lambda line: None)
TOOL = {
    "name": "weather",
    "description": "",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def ask(tiny_model, workspace, tmp_path):
    """Answer rows with the tiny model; returns `(what was said, the prediction)`."""
    config = validated({"model_name_or_path": str(tiny_model), "devices": "cpu"}, EngineConfig)

    def go(rows: list, name: str = "rows", **options):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
        asked = Asked(
            **{"model": str(tiny_model), "dataset": str(folder / f"{name}.jsonl"), "max_new_tokens": 8} | options
        )
        prediction = Prediction(tmp_path / "out")
        return predict(asked, config, workspace, prediction.path, *QUIET), prediction

    return go


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer)


def asked_of(rows: list[dict], encoder, tmp_path) -> list:
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(questions([DatasetInfo("q", file)], encoder, None))


def test_answers_are_those_of_transformers(ask, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"instruction": f"Question {i} {'x' * i}?", "output": f"Answer {i}."} for i in range(5)]
    said, prediction = ask(rows)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    found = list(prediction.rows())
    assert [row["label"] for row in found] == [row["output"] for row in rows]
    assert [row["row"] for row in found] == [1, 2, 3, 4, 5]
    for row in found:
        assert list(row)[:3] == ["prompt", "predict", "label"]  # LLaMA-Factory's keys
        ids = tokenizer(row["prompt"], return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(
                **ids, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        new = out.sequences[0, ids["input_ids"].shape[1] :]
        # half a letter at the end is no text
        assert row["predict"] == tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")
        chances = [logits[0].log_softmax(-1)[token].item() for logits, token in zip(out.logits, new, strict=True)]
        assert row["tokens"] == len(new)
        if row["finish"] == "length":
            assert row["logprob"] == pytest.approx(sum(chances) / len(chances), abs=1e-3)
    totals = prediction.totals()
    assert totals["predict_samples"] == totals["predict_scored"] == 5 and totals["predict_runtime"] > 0
    assert totals["predict_rouge-l"] == pytest.approx(sum(row["rouge-l"] for row in found) / 5, abs=1e-4)
    assert said.code == "predict_done" and "BLEU-4" in said and "exact" in said


def test_the_prompt_and_the_label_are_the_training_row(encoder, tmp_path):
    """Of a conversation of several turns with a system text: what training reads before its last answer, and that."""
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2 and\n3")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    (question,) = asked_of(rows, encoder, tmp_path)
    trained = encoder.encode(rows[0]["messages"])
    assert trained.input_ids[: len(question.ids)] == question.ids
    assert (
        encoder.tokenizer.decode(trained.input_ids[len(question.ids) :], skip_special_tokens=True).rstrip("\n")
        == "2 and\n3"
    )
    assert question.label == "2 and\n3" and "Be brief." in question.prompt and "Two?" in question.prompt


@pytest.mark.parametrize("name", [name for name in templates.names() if name != "auto"])
def test_every_template_asks_as_it_trains(tokenizer, name, tmp_path):
    encoder = Encoder(tokenizer, name)
    (question,) = asked_of([{"instruction": "One?", "output": "It is 1."}], encoder, tmp_path)
    trained = encoder.encode([{"role": "user", "content": "One?"}, {"role": "assistant", "content": "It is 1."}])
    assert trained.input_ids[: len(question.ids)] == question.ids
    assert question.label.strip() == "It is 1."


def test_a_call_is_a_label_as_the_template_writes_it(tokenizer, tmp_path):
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}],
    }
    row = {"messages": [{"role": "user", "content": "Weather?"}, call], "tools": [TOOL]}
    (question,) = asked_of([row], Encoder(tokenizer, "qwen"), tmp_path)
    assert question.problem == "" and "weather" in question.prompt
    assert "<tool_call>" in question.label and json.loads(question.label.split("<tool_call>")[1].split("</tool_call>")[0]) == {
        "name": "weather", "arguments": {"city": "Bern"},
    }  # fmt: skip
    (refused,) = asked_of([row], Encoder(tokenizer, "deepseek"), tmp_path)  # has no place for tools
    assert refused.problem and not refused.ids


@pytest.mark.parametrize(
    ("row", "last"),
    [
        ({"instruction": "One?"}, "One?"),
        ({"instruction": "One?", "output": ""}, "One?"),
        ({"prompt": "One?"}, "One?"),
        ({"question": "One?", "id": 3}, "One?"),
        ({"messages": [{"role": "user", "content": "One?"}]}, "One?"),
        ({"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": ""}]}, "One?"),
    ],
)
def test_rows_without_an_answer_are_questions(encoder, tmp_path, row, last):
    (question,) = asked_of([row], encoder, tmp_path)
    assert (question.problem, question.label) == ("", "") and last in question.prompt
    assert "Zq5kW" not in question.prompt


def test_an_unwanted_answer_is_no_label_and_a_chosen_one_is(encoder, tmp_path):
    pair = {"prompt": "One?", "chosen": "1", "rejected": "2"}
    assert [q.label for q in asked_of([pair], encoder, tmp_path)] == ["1"]
    kto = [{"prompt": "One?", "completion": "2", "label": False}, {"prompt": "One?", "completion": "1", "label": True}]
    assert [q.label for q in asked_of(kto, encoder, tmp_path)] == ["", "1"]


def test_a_dataset_without_labels_has_answers_and_no_scores(ask):
    said, prediction = ask([{"instruction": "One?"}, {"instruction": "Two?"}])
    assert [("bleu-4" in row, row["label"]) for row in prediction.rows()] == [(False, ""), (False, "")]
    assert "no scores" in said and "predict_bleu-4" not in prediction.totals()


def test_rows_that_cannot_be_asked_are_told_and_the_others_go_on(ask):
    rows = [
        {"instruction": "One?", "output": "1"},
        '{"instruction": ',
        {"instruction": "x" * 600, "output": "1"},  # longer than the context of 512
        {"instruction": 7, "output": "1"},
        {"instruction": "Two?", "output": "2"},
    ]
    said, prediction = ask(rows)
    found = {row["row"]: row for row in prediction.rows()}
    assert list(found) == [1, 2, 3, 4, 5]
    assert [number for number, row in found.items() if row.get("problem")] == [2, 3, 4]
    assert "512" in found[3]["problem"] and "rouge-l" not in found[3] and found[3]["predict"] == ""
    assert prediction.totals()["predict_refused"] == 3 and "3 rows could not be asked" in said


def test_a_dataset_of_which_no_row_can_be_asked_loads_no_model(ask, monkeypatch):
    monkeypatch.setattr("workbench.engine.transformers_backend.TransformersDecoder", None)
    with pytest.raises(UserError) as error:
        ask([{"text": "Plain."}, {"text": "Text."}])
    assert error.value.message.code == "predict_none_askable"
    with pytest.raises(UserError, match="no rows"):
        ask([])


def test_what_is_answered_is_not_asked_again(ask, monkeypatch, tmp_path):
    rows = [{"instruction": f"Question {i}?", "output": "1"} for i in range(6)]
    whole, seen = module.answers, []

    def breaking(backend, questions_, asked):
        for number, one in enumerate(whole(backend, questions_, asked)):
            if number == 2:
                raise RuntimeError("CUDA error: unspecified launch failure")
            yield one

    monkeypatch.setattr(module, "answers", breaking)
    with pytest.raises(UserError) as error:
        ask(rows)
    assert error.value.message.code == "predict_engine_failed" and error.value.message.values["done"] == 2

    def watching(backend, questions_, asked):
        for question, row in whole(backend, questions_, asked):
            seen.append(question.row)
            yield question, row

    monkeypatch.setattr(module, "answers", watching)
    prediction = Prediction(tmp_path / "out")
    first = [row["row"] for row in prediction.rows()]
    with open(prediction.path / "generated_predictions.jsonl", "a") as file:
        file.write('{"row": 6, "pre')  # as a killed process leaves it
    _, prediction = ask(rows)
    assert sorted(first + seen) == [1, 2, 3, 4, 5, 6] and len(first) == 2
    assert [row["row"] for row in prediction.rows()] == [1, 2, 3, 4, 5, 6]
    seen.clear()
    ask(rows, max_new_tokens=4)  # another question: all anew
    assert len(seen) == 6 and all(row["tokens"] <= 4 for row in prediction.rows())


def test_a_full_disk_keeps_the_answers(ask, monkeypatch):
    rows = [{"instruction": f"Question {i}?", "output": "1"} for i in range(4)]
    written = []

    def full(row):
        written.append(row)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return json.dumps(row) + "\n"

    monkeypatch.setattr(module, "_line", full)
    with pytest.raises(UserError) as error:
        ask(rows)
    assert error.value.message.code == "predict_disk_full" and error.value.message.values["done"] == 2
    monkeypatch.undo()
    _, prediction = ask(rows)
    assert len(list(prediction.rows())) == 4


def test_drawn_answers_depend_on_the_seed_and_not_on_the_neighbors(ask):
    rows = [{"instruction": f"Question {i}?", "output": "1"} for i in range(4)]
    draw = {"temperature": 1.0, "top_p": 0.9}
    texts = lambda **more: [row["predict"] for row in ask(rows, **draw, **more)[1].rows()]  # noqa: E731
    all_four = texts()
    assert texts() == all_four and texts(max_samples=2) == all_four[:2] and texts(seed=7) != all_four


def test_a_folder_of_something_else_is_left_alone(ask, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError) as error:
        ask([{"instruction": "One?", "output": "1"}])
    assert error.value.message.code == "predict_folder_taken"


def test_two_do_not_write_into_one_folder(ask, tmp_path):
    from workbench.storage.locks import try_lock

    (tmp_path / "out").mkdir()
    held = try_lock(tmp_path / "out" / ".predict.lock")
    with pytest.raises(UserError) as error:
        ask([{"instruction": "One?", "output": "1"}])
    os.close(held)
    assert error.value.message.code == "predict_folder_busy"


def test_a_layout_that_is_none_is_said(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"x": 1}\n')
    with pytest.raises(UserError) as error:
        layout(DatasetInfo("q", file))
    assert error.value.message.code == "layout_unknown"
