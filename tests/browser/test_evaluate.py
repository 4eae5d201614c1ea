"""The Evaluate tab in a browser: a dataset answered by a real process, with progress and Stop; rows side by side."""

import json
import shutil

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from workbench.config.run_config import validated
from workbench.evaluation.harness import read
from workbench.evaluation.results import Asked, Prediction, listed, place
from workbench.evaluation.scores import scores_of
from workbench.runs.run import create_run
from workbench.storage.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]

ROWS = [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(6)]


def predicted(workspace: Workspace, adapter: str, answers: list[str]) -> Prediction:
    """Predictions as they lie on the disk."""
    asked = Asked("tiny-llama", adapter, "small")
    prediction = Prediction(place(workspace, asked))
    prediction.path.mkdir(parents=True)
    prediction.write_asked(asked)
    rows = [
        {"prompt": r["instruction"], "predict": a, "label": r["output"], "row": n, **scores_of(a, r["output"])}
        for n, (r, a) in enumerate(zip(ROWS, answers, strict=True), 1)
    ]
    (prediction.path / "generated_predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    totals = {"predict_exact_match": 50.0, "predict_rouge-l": 66.6667, "predict_samples": 6}
    (prediction.path / "predict_results.json").write_text(json.dumps(totals))
    return prediction


@pytest.fixture
def place_(tmp_path, tiny_model) -> Workspace:
    workspace = Workspace(tmp_path / "w").create()
    shutil.copytree(tiny_model, workspace.models / "tiny-llama")
    (workspace.uploads / "small.json").write_text(json.dumps(ROWS))
    (workspace.uploads / "big.json").write_text(
        json.dumps([{"instruction": f"{i}?", "output": "a"} for i in range(3000)])
    )
    names = {name: {"file_name": f"{name}.json"} for name in ("small", "big")}
    (workspace.uploads / "dataset_info.json").write_text(json.dumps(names))
    (workspace.root / "tasks").mkdir()
    (workspace.root / "tasks" / "rows.jsonl").write_text("".join(json.dumps({"q": f"Q{i}?"}) + "\n" for i in range(4)))
    (workspace.root / "tasks" / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: [' yes', ' no']\ndoc_to_target: 0\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return workspace


@pytest.fixture
def runs(place_):
    made = []
    for name, answers in (
        ("worse", ["Answer 0.", "no", "no", "Answer 3.", "<b>x</b>", "no"]),
        ("better", ["Answer 0.", "Answer 1.", "no", "no", "no", "no"]),
    ):
        run = create_run(place_, validated({"model_name_or_path": "tiny-llama", "dataset": "small", "run_name": name}))
        run.update(state="finished", ended=1.0)
        predicted(place_, run.id, answers)
        evaluations = [
            {"task": "tiny_mc", "model": "tiny-llama", "adapter": run.id, "metrics": {"acc": 0.25}, "limit": 8}
        ]
        (run.path / "evaluations.json").write_text(json.dumps({"evaluations": evaluations}))
        made.append(run)
    return made


@pytest.fixture
def page(place_, runs):
    started = Page(place_.root)
    yield started
    started.end()


def choose(tab, where: str, what: str) -> None:
    field = tab.locator(f"{where} input")
    field.fill(what)
    tab.locator(f"ul[role=listbox] li:has-text('{what}')").first.click()


def test_a_dataset_is_answered_and_compared(opened, place_, runs):
    tab = opened
    open_part(tab, "Evaluate")
    expect(tab.locator("#evaluate-totals")).to_contain_text(runs[0].id[:10])
    expect(tab.locator("#evaluate-task-results")).to_contain_text("tiny_mc")
    tab.click("#evaluate-start")
    expect(tab.locator("#evaluate-message")).to_contain_text("Choose a run or a model")

    field = tab.locator("#evaluate-target input")
    field.fill("tiny-llama")
    field.press("Enter")
    choose(tab, "#evaluate-dataset", "small")
    tab.locator("#evaluate-tokens input").fill("8")
    tab.locator("#evaluate-tokens input").press("Tab")
    tab.locator("#evaluate-dataset input").press("Escape")
    tab.click("#evaluate-start")
    expect(tab.locator("#evaluate-status")).to_contain_text("6 rows answered", timeout=120_000)
    expect(tab.locator("#evaluate-status")).to_contain_text("BLEU-4")
    prediction = listed(place_)["predictions/tiny-llama/small"]
    assert [row["label"] for row in prediction.rows()] == [row["output"] for row in ROWS]
    assert all(row["tokens"] <= 8 for row in prediction.rows())
    expect(tab.locator("#evaluate-totals tr")).to_have_count(4)  # the head, two runs, the model

    choose(tab, "#evaluate-first", "worse")
    choose(tab, "#evaluate-second", "better")
    pairs = tab.locator("#evaluate-pairs")
    expect(pairs).to_contain_text("6 rows: 1 better, 1 worse", timeout=20_000)
    expect(pairs.locator("tr[data-row]")).to_have_count(3)  # where they differ
    expect(pairs).to_contain_text("<b>x</b>")
    tab.locator("#evaluate-show input").click()
    tab.get_by_role("option", name="where the second is better").click()
    expect(pairs.locator("tr[data-row]")).to_have_count(1)
    expect(pairs.locator("tr[data-row='2'] .wb-verdict.ok")).to_contain_text("+100.0")


def test_totals_stand_among_compared_runs(opened, runs):
    tab = opened
    open_part(tab, "Runs")
    open_part(tab, "Compare")
    for run in runs:
        field = tab.locator("#compare-runs input")
        field.fill(run.id)
        field.press("Enter")
    table = tab.locator("#compare-table .wb-totals")
    expect(table.locator("tr")).to_have_count(3)
    expect(table).to_contain_text("66.67")
    expect(tab.locator("#compare-table .wb-tasks")).to_contain_text("0.2500")


def ask(tab, dataset: str) -> None:
    """Choose the model and a dataset on the Evaluate tab."""
    open_part(tab, "Evaluate")
    field = tab.locator("#evaluate-target input")
    field.fill("tiny-llama")
    field.press("Enter")
    choose(tab, "#evaluate-dataset", dataset)
    tab.locator("#evaluate-dataset input").press("Escape")


def test_stopped_and_started_again_it_goes_on(opened, place_):
    tab = opened
    ask(tab, "big")
    tab.locator("#evaluate-tokens input").fill("30")
    tab.locator("#evaluate-tokens input").press("Tab")
    tab.click("#evaluate-start")
    status = tab.locator("#evaluate-status")
    expect(status).to_contain_text("of 3,000 rows", timeout=120_000)
    expect(status).to_contain_text("left")
    tab.click("#evaluate-start")
    expect(tab.locator("#evaluate-message")).to_contain_text("still going")
    tab.click("#evaluate-stop")
    expect(status).to_contain_text("Stopped", timeout=30_000)
    expect(tab.locator("#evaluate-stop")).to_be_disabled()
    expect(tab.locator("#evaluate-totals")).to_contain_text("unfinished")
    prediction = listed(place_)["predictions/tiny-llama/big"]
    first = {row["row"]: row for row in prediction.rows()}
    assert 0 < len(first) < 3000
    tab.reload()  # what was chosen is gone, what was answered is not
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    ask(tab, "big")
    tab.locator("#evaluate-tokens input").fill("30")
    tab.locator("#evaluate-tokens input").press("Tab")
    tab.click("#evaluate-start")
    expect(status).to_contain_text("of 3,000 rows", timeout=120_000)
    tab.click("#evaluate-stop")
    expect(status).to_contain_text("Stopped", timeout=30_000)
    rows = {row["row"]: row for row in prediction.rows()}
    assert len(rows) > len(first) and all(rows[number] == row for number, row in first.items())


def test_a_task_runs_and_its_result_is_shown(opened, place_):
    pytest.importorskip("lm_eval")
    tab = opened
    ask(tab, "small")
    tab.locator("#evaluate-tasks > button").click()
    choose(tab, "#evaluate-task", "mine.yaml")
    tab.locator("#evaluate-limit textarea, #evaluate-limit input").fill("3")
    tab.click("#evaluate-run-task")
    expect(tab.locator("#evaluate-task-status")).to_contain_text("mine: acc", timeout=120_000)
    row = tab.locator("#evaluate-task-results tr", has_text="mine")
    expect(row).to_contain_text("limit 3")
    assert [one.samples for one in read(place_.root / "predictions" / "tiny-llama" / "evaluations.json")] == [3]
