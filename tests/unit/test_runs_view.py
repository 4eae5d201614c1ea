"""What the Runs tab shows, without a page."""

import json
import zipfile

import pytest

from workbench.config.run_config import validated
from workbench.runs.metrics import MetricsReader
from workbench.runs.run import create_run, write_manifest
from workbench.runs.state import own_process
from workbench.ui.catalogue import TEXT
from workbench.ui.charts import along, compare_chart, panel_chart
from workbench.ui.tabs.runs import view

CONFIG = {"model_name_or_path": "org/Model-7B", "dataset": "facts"}


def make(workspace, name, losses, evaluations=(), state="finished", **options):
    run = create_run(workspace, validated(CONFIG | options | {"run_name": name}))
    rows = [
        {
            "current_steps": i + 1,
            "total_steps": 9,
            "loss": loss,
            "epoch": (i + 1) / 2,
            "total_tokens": 100 * (i + 1),
            "elapsed_seconds": 3.0 * (i + 1),
            "throughput": 10.0 * len(losses),
            "elapsed_time": "0:00:09",
        }
        for i, loss in enumerate(losses)
    ]
    rows += [{"current_steps": step, "total_steps": 9, "eval_loss": loss} for step, loss in evaluations]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"current_steps": 99, "lo')
    run.update(state=state, step=len(losses), total_steps=9)
    return run


def test_table_filters_sorts_and_knows_the_best(workspace):
    low = make(workspace, "low", [3.0, 1.0, 2.0], [(2, 1.5), (3, 1.7)])
    high = make(workspace, "high", [5.0, 4.0], state="failed", dataset="other")
    rows = view.summaries(workspace, sort="by_loss")
    assert [row.run for row in rows] == [low, high]
    assert rows[0].cells("en")[:10] == [
        "finished",
        low.id,
        "Model-7B",
        "facts",
        "3/9",
        "2.0000",
        "1.0000",
        "1.5000",
        "0:00:09",
        "30",
    ]
    assert [row.run for row in view.summaries(workspace, search="model-7b OTHER")] == [high]
    assert [row.run for row in view.summaries(workspace, states=["finished"])] == [low]
    assert view.summaries(workspace, search="nothing") == []
    low.set_notes(title="my best")
    assert view.summaries(workspace, search="best")[0].title == "my best"
    assert rows[1].cells("zh")[0] == "失败"


def test_the_table_changes_only_when_a_run_does(workspace):
    run, other = make(workspace, "a", [1.0], state="running"), make(workspace, "b", [1.0])
    run.update(**own_process())
    before = view.runs_token(workspace)
    assert view.runs_token(workspace) == before
    with open(run.metrics, "a") as log:  # of a run that is going
        log.write("\n")
    after = view.runs_token(workspace)
    assert after != before
    other.set_notes(title="t")  # of one that has ended
    assert view.runs_token(workspace) != after
    assert view.summaries(workspace)[0].title == "t"


def test_differences():
    pair = [("a", {"lora_rank": 8, "seed": 1}), ("b", {"lora_rank": 16, "seed": 1, "packing": True})]
    assert view.differences(pair) == [("lora_rank", ["8", "16"]), ("packing", ["–", "True"])]
    assert "<script>" not in view.differences_html([("<script>", {"a": "<img>"}), ("b", {})], "en")
    assert "No differences" in view.differences_html(pair[:1], "en")


def test_checkpoints_mark_the_best(workspace):
    run = make(workspace, "a", [2.0, 1.0], [(1, 1.8), (2, 1.4)])
    for step in (1, 2):
        (run.path / f"checkpoint-{step}").mkdir()
        (run.path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        write_manifest(run.path / f"checkpoint-{step}")
    html = view.checkpoints_html(run, "en")
    assert "checkpoint-2 ★ best" in html and "checkpoint-1 ★" not in html and "1.8000" in html


def test_samples_side_by_side_and_escaped(workspace):
    run = make(workspace, "a", [1.0])
    assert "sample_prompts" in view.samples_html(run, "en")
    rows = [{"current_steps": s, "prompt": "Hi?", "answer": f"<b>{s}</b>"} for s in (0, 5)]
    (run.path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"half')
    html = view.samples_html(run, "en")
    assert "Step 0" in html and "Step 5" in html and "&lt;b&gt;5" in html and "<b>5</b>" not in html


def test_log_search_and_zip(workspace, tmp_path):
    run = make(workspace, "a", [1.0])
    run.log.write_text("first\nSecond <x>\nthird second\n")
    assert view.found_in_log(run.log, "second") == ["Second <x>", "third second"]
    assert len(view.found_in_log(run.log, "")) == 3 and "&lt;x&gt;" in view.log_lines_html(run, "second", "en")
    assert "No line of the log has “&lt;none&gt;”" in view.log_lines_html(run, "<none>", "en")
    (run.path / "checkpoint-1").mkdir()
    (run.path / "checkpoint-1" / "weights").write_text("w")
    with zipfile.ZipFile(view.make_zip(run, tmp_path)) as archive:
        names = archive.namelist()
    assert f"{run.id}/run.yaml" in names and not any("checkpoint" in n or "/." in n for n in names)


@pytest.mark.parametrize(("axis", "last"), [("steps", 3), ("epochs", 1.5), ("tokens", 300), ("seconds", 9)])
def test_curves_over_other_axes(workspace, axis, last):
    reader = MetricsReader(make(workspace, "a", [3.0, 2.0, 1.0], [(2, 2.5), (3, 2.6)]).metrics)
    reader.update()
    assert along(reader.series, [3], axis) == [last]
    figure = json.loads(
        compare_chart(
            [("a", reader.series)] * 10, axis=axis, axis_name="x", smooth=0.0, log_scale=True, eval_name="eval"
        )
    )
    assert len(figure["data"]) == 20 and figure["data"][0]["x"][-1] == last and figure["data"][0]["y"] == [3, 2, 1]
    assert figure["data"][1]["marker"]["symbol"] == ["star", "diamond"]
    assert len({(d["line"]["color"], d["line"]["dash"]) for d in figure["data"] if "line" in d}) == 10
    panels = json.loads(
        panel_chart(reader.series, [("Loss", ("loss",)), ("None", ("lr",)), ("Eval", ("eval_loss",))], run_id="r")
    )
    assert [a["text"] for a in panels["layout"]["annotations"]] == ["Loss", "Eval"]


def test_values_of_choices_are_no_keys_of_the_catalogue():
    """The browser would translate them on their way back."""
    from workbench.runs.state import ACTIVE, FINAL
    from workbench.ui.charts import AXES

    assert not {*view.SORTS, *AXES, *ACTIVE, *FINAL} & TEXT.keys()
