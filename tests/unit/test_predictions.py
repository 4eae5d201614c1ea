"""Predictions as they lie on the disk: where, read in spite of what is broken, compared row by row."""

import json

import pytest

from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.evaluation.results import Asked, Pair, Prediction, changes, compared, listed, of_run, place
from workbench.evaluation.target import engine_values, target
from workbench.runs.run import create_run
from workbench.storage.workspace import Workspace
from workbench.ui.tabs.evaluate import view


def row(number: int, predict: str, label: str = "yes", **more) -> dict:
    scores = {"exact_match": 100.0 * (predict == label), "rouge-l": 50.0, "bleu-4": 1.0}
    return {"prompt": "p", "predict": predict, "label": label, "row": number, **scores, **more}


def write(folder, rows: list[dict], **asked) -> Prediction:
    folder.mkdir(parents=True, exist_ok=True)
    prediction = Prediction(folder)
    prediction.write_asked(Asked(**{"model": "m", "dataset": "d"} | asked))
    (folder / "generated_predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return prediction


def test_a_half_written_line_and_strange_rows_are_left_out(tmp_path):
    prediction = write(tmp_path / "x", [row(1, "yes")])
    with open(prediction.path / "generated_predictions.jsonl", "a") as file:
        file.write('[1]\n{"row": "2"}\n{"row": 3, "predict": 7}\n{"row": 4, "pred')
    assert [one["row"] for one in prediction.rows()] == [1]
    assert prediction.asked().dataset == "d" and prediction.totals() == {} and not prediction.done
    (prediction.path / "predict.json").write_text('{"model": 7}')
    assert prediction.asked() is None and list(Prediction(tmp_path / "nowhere").rows()) == []


def test_predictions_lie_with_their_run_or_with_their_model(workspace):
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}), state="finished")
    assert place(workspace, Asked("m", run.id, "a,b")) == run.path / "predictions" / "a-b"
    assert place(workspace, Asked("m", f"{run.id}/checkpoint-8", "a")) == run.path / "predictions" / "a-checkpoint-8"
    assert place(workspace, Asked(str(run.path), "", "a")) == run.path / "predictions" / "a"  # a fully trained model
    assert place(workspace, Asked("org/Some.Model", "", "a")) == workspace.root / "predictions" / "some.model" / "a"
    write(place(workspace, Asked("m", run.id, "a")), [row(1, "no")], adapter=run.id)
    write(run.path, [row(1, "no")], adapter=run.id)  # do_predict
    write(place(workspace, Asked("m", "", "a")), [row(1, "no")])
    assert list(listed(workspace)) == [f"runs/{run.id}", f"runs/{run.id}/predictions/a", "predictions/m/a"]
    assert len(of_run(workspace, run.id)) == 2


def test_rows_side_by_side_by_what_became_better(tmp_path):
    first = [row(1, "no"), row(2, "yes"), row(3, "no"), row(4, "no", problem="x"), row(5, "gone")]
    second = [row(1, "yes"), row(2, "no"), row(3, "no"), row(4, "no"), row(6, "new")]
    second[2]["rouge-l"] = 60.0
    one, other = write(tmp_path / "a", first), write(tmp_path / "b", second)
    every = compared(one, other)
    assert [pair.gain for pair in every] == [100.0, -100.0, 10.0, 0.0]
    assert changes(every) == {"better": 2, "worse": 1, "same": 1, "words": 1}
    numbers = lambda *how: [pair.row for pair in compared(one, other, *how)]  # noqa: E731
    assert numbers("all", "by_better") == [1, 3, 4, 2] and numbers("all", "by_worse") == [2, 4, 3, 1]
    assert numbers("differ", "by_difference") == [1, 2, 4]
    assert numbers("better") == [1, 3] and numbers("worse") == [2] and numbers("wrong") == [2, 3, 4]


def test_rows_of_other_datasets_are_not_compared(tmp_path):
    one, other = write(tmp_path / "a", [row(1, "x")]), write(tmp_path / "b", [row(1, "x", label="other")])
    with pytest.raises(UserError) as error:
        compared(one, other)
    assert error.value.message.code == "compare_other_rows"


def test_rows_without_scores_have_no_change(tmp_path):
    bare = {"prompt": "p", "predict": "a", "label": "", "row": 1}
    pair = Pair(1, bare, bare | {"predict": "b"})
    assert pair.gain is None and pair.differs
    assert changes([pair]) == {"better": 0, "worse": 0, "same": 0, "words": 0}
    assert "<b></b>" in view.pairs_html([pair], ("m", "n"), "en")


def test_what_models_write_is_escaped(tmp_path, workspace):
    evil = "<img src=x onerror=alert(1)>"
    pair = Pair(1, row(1, evil, label=evil), row(1, "b", label=evil, prompt=evil))
    html = view.pairs_html([pair], (evil, "n"), "en")
    prediction = write(tmp_path / "x", [row(1, evil)], model=evil, dataset=evil)
    html += view.totals_html({"x": prediction}, "zh")
    assert "<img" not in html and html.count("&lt;img") >= 5


def test_a_run_stands_for_its_model_its_adapter_and_its_options(workspace):
    values = {
        "model_name_or_path": "SmolLM2-135M-Instruct",
        "dataset": "d",
        "template": "chatml",
        "learning_rate": 1e-3,
    }
    (workspace.models / "SmolLM2-135M-Instruct").mkdir()
    (workspace.models / "SmolLM2-135M-Instruct" / "config.json").write_text("{}")
    run = create_run(workspace, validated(values), state="finished")
    with pytest.raises(UserError) as error:
        target(run.id, "", [], workspace)
    assert error.value.message.code == "predict_run_empty"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run.path / name).write_text("{}")
    model, adapter, config = target(run.id, "", ["enable_thinking=off"], workspace)
    assert (model, adapter) == ("SmolLM2-135M-Instruct", run.id)
    assert (config.template, config.enable_thinking) == ("chatml", "off")
    (run.path / "adapter_config.json").unlink()
    (run.path / "config.json").write_text("{}")  # finetuning_type: full
    assert target(run.id, "", [], workspace)[:2] == (str(run.path), "")
    with pytest.raises(UserError, match="no-such"):
        target("no-such", "", [], workspace)


def test_options_of_a_training_do_not_load_a_model():
    assert engine_values({"learning_rate": 1, "devices": "0", "quantization_bit": 4, "template": "qwen"}) == {
        "quantization_bit": 4, "template": "qwen",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"do_train": False}, "nothing_to_do"),
        ({"do_train": False, "do_predict": True}, "predict_needs_dataset"),
        ({"dataset": "d", "do_predict": True}, "predict_needs_dataset"),
        ({"dataset": "d", "val_size": 0.1, "do_predict": True}, "predict_needs_dataset"),
    ],
)
def test_what_cannot_be_predicted_is_said_beforehand(values, code):
    with pytest.raises(UserError) as error:
        validated({"model_name_or_path": "m"} | values)
    assert [problem.code for problem in error.value.message.values["problems"]] == [code]


def test_predictions_need_no_dataset_to_train_on():
    validated({"model_name_or_path": "m", "do_train": False, "do_predict": True, "eval_dataset": "d"})
    validated({"model_name_or_path": "m", "do_train": False, "do_predict": True, "dataset": "d"})


def test_a_page_is_held_inside_its_folders(tmp_path):
    workspace = Workspace(tmp_path / "w", confined=True).create()
    assert listed(workspace) == {}
