"""Handlers of the Evaluate tab: what is refused before a process starts, what is sent again, and only what changed."""

import json
from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.config.llamafactory import import_text
from workbench.config.run_config import validated
from workbench.evaluation.results import Asked, Prediction, place
from workbench.runs import job
from workbench.runs.run import create_run
from workbench.storage.workspace import Workspace
from workbench.ui.form import Form
from workbench.ui.tabs.evaluate import tab as module
from workbench.ui.tabs.evaluate import view
from workbench.ui.tabs.evaluate.tab import EvaluateTab

ENGLISH = SimpleNamespace(
    cookies={}, headers={"accept-language": "en"}, client=SimpleNamespace(host="h"), session_hash="s"
)
CHINESE = SimpleNamespace(
    cookies={}, headers={"accept-language": "zh"}, client=SimpleNamespace(host="h"), session_hash="s"
)


@pytest.fixture
def place_(tmp_path) -> Workspace:
    """A page's workspace with a model by its config alone, a dataset, and a task."""
    workspace = Workspace(tmp_path / "w", confined=True).create()
    (workspace.models / "little").mkdir()
    (workspace.models / "little" / "config.json").write_text("{}")
    (workspace.uploads / "small.json").write_text('[{"instruction": "a", "output": "b"}]')
    (workspace.uploads / "dataset_info.json").write_text('{"small": {"file_name": "small.json"}}')
    (workspace.root / "tasks").mkdir()
    (workspace.root / "tasks" / "rows.jsonl").write_text('{"q": "a"}\n')
    (workspace.root / "tasks" / "good.yaml").write_text(
        "task: good\ndataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\noutput_type: generate_until\n"
    )
    (workspace.root / "tasks" / "code.yaml").write_text("task: bad\nprocess_docs: !function utils.f\n")
    return workspace


@pytest.fixture
def started(monkeypatch):
    """What would be started, instead of a process."""
    calls = []

    def start(workspace, kind, name, python, *arguments):
        calls.append([kind, name, python, *map(str, arguments)])
        return job.new_directory(workspace.jobs, f"{kind}-{name}")

    monkeypatch.setattr(module.job, "start_job", start)
    return calls


def test_predictions_start_with_what_was_chosen(place_, started):
    tab = EvaluateTab(place_)
    assert tab.predict("little", ["small"], "5", 64, 0.5, ENGLISH) == ""
    (call,) = started
    assert call[:4] == ["predict", "little", "workbench", "predict"]
    assert call[4:] == [
        "little", "--dataset", "small", "--max-new-tokens", "64", "--temperature", "0.5", "--max-samples", "5",
        "--workspace", str(place_.root),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("", ["small"], "", 64, 0), "Choose a run or a model"),
        (("little", [], "", 64, 0), "Choose a run or a model"),
        (("little", ["small"], "five", 64, 0), "whole number"),
        (("little", ["small"], "0", 64, 0), "whole number"),
        (("little", ["nothing"], "", 64, 0), "nothing"),
        (("no-such", ["small"], "", 64, 0), "no-such"),
        (("--help", ["small"], "", 64, 0), "--help"),
        (("little", ["/etc/passwd"], "", 64, 0), "outside"),
        (("little", ["../../x.json"], "", 64, 0), "x.json"),
        (("/etc", ["small"], "", 64, 0), "outside"),
        (("../..", ["small"], "", 64, 0), "outside"),
    ],
)
def test_what_cannot_be_predicted_starts_nothing(place_, started, given, words):
    shown = EvaluateTab(place_).predict(*given, ENGLISH)
    assert "wb-note bad" in shown and words in shown and started == []


def test_a_task_starts_with_its_limits(place_, started):
    tab = EvaluateTab(place_)
    assert tab.evaluate("little", "good.yaml", "8", "0", False, ENGLISH) == ""
    file = str(place_.root / "tasks" / "good.yaml")
    assert started[0][3:] == [
        "evaluate",
        "little",
        "--task",
        file,
        "--limit",
        "8",
        "--num-fewshot",
        "0",
        "--workspace",
        str(place_.root),
    ]


@pytest.mark.parametrize(
    ("task", "trust", "words"),
    [
        ("code.yaml", False, "!function"),
        ("code.yaml", True, "does not run"),  # the server was not told to
        ("/etc/passwd", False, "outside"),
        ("gone.yaml", False, "gone.yaml"),
        ("", False, "Choose"),
    ],
)
def test_a_task_that_may_not_run_starts_nothing(place_, started, task, trust, words):
    shown = EvaluateTab(place_).evaluate("little", task, "", "", trust, ENGLISH)
    assert "wb-note bad" in shown and started == []
    assert words in shown or words == "does not run", shown


def test_a_read_only_page_starts_nothing(place_, started):
    place_.read_only = True
    assert "wb-note bad" in EvaluateTab(place_).predict("little", ["small"], "", 64, 0, ENGLISH)
    assert started == []


def test_only_what_has_changed_is_sent_again(place_):
    tab = EvaluateTab(place_)
    first = tab.look(None, ENGLISH)
    assert "Nothing is predicted yet" in first[4]
    seen = first[-1]
    assert tab.look(seen, ENGLISH) == [gr.skip()] * 9
    directory = job.new_directory(place_.jobs, "predict-little")
    tab._newest["predict"] = directory
    directory.update(state="running", phase="5 rows", progress=0.5, pid=None)
    status, task, stop, *_ = tab.look(seen, ENGLISH)[:4]
    assert "5 rows" in status and "50%" in status and task == gr.skip() and stop["interactive"] is True
    directory.update(state="failed", reason="It broke.", ended=module.time.time())
    assert "It broke." in tab.look(seen, ENGLISH)[0]


def test_two_predictions_side_by_side(place_):
    keys = []
    for name, answer in (("one", "Yes."), ("two", "<b>No.</b>")):
        run = create_run(place_, validated({"model_name_or_path": "little", "dataset": "small", "run_name": name}))
        asked = Asked("little", run.id, "small")
        prediction = Prediction(place(place_, asked))
        prediction.path.mkdir(parents=True)
        prediction.write_asked(asked)
        row = {
            "prompt": "Is it?",
            "predict": answer,
            "label": "Yes.",
            "row": 1,
            "rouge-l": 10.0,
            "exact_match": 100.0 * (answer == "Yes."),
        }
        (prediction.path / "generated_predictions.jsonl").write_text(json.dumps(row) + "\n")
        keys.append(f"runs/{run.id}/predictions/small")
    tab = EvaluateTab(place_)
    shown = tab.compare(*keys, "worse", "by_worse", 1, ENGLISH)
    assert "1 rows: 0 better, 1 worse" in shown and "&lt;b&gt;No." in shown and "-100.0" in shown
    assert "没有这样的行" in tab.compare(*keys, "better", "by_row", 1, CHINESE)
    assert "wb-note warn" in tab.compare(keys[0], "../../etc", "all", "by_row", 1, ENGLISH)
    assert tab.compare(*keys, "nonsense", "nonsense", None, ENGLISH).count("<tr") == 2
    assert tab.download(keys[1]).endswith("small.jsonl") and tab.download("/etc/passwd") is None
    assert [key for _, key in view.choices(place_)] == keys[::-1]
    assert view.of_runs_html(place_, [keys[0].split("/")[1]], "en").count("<tr>") == 2


def test_a_file_for_predictions_fills_the_train_form(place_):
    """Imported, it starts a run that predicts and trains nothing."""
    text = "model_name_or_path: little\nstage: sft\ndo_predict: true\neval_dataset: small\npredict_with_generate: true"
    imported = import_text(text)
    form = Form(place_, {})
    config = form.config(form.fill(imported.defaults | imported.values))
    assert (config.do_train, config.do_predict, config.eval_dataset, config.temperature) == (False, True, "small", 0.95)
