"""The Train tab's sweep and the Runs tab's group, without a browser."""

import json
from types import SimpleNamespace

import pytest

from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.runs.run import create_run, list_runs
from workbench.train import queue
from workbench.ui.tabs.runs import view
from workbench.ui.tabs.runs.group import GroupPart, best_first, differing, parallel, table_html
from workbench.ui.tabs.train.sweep_panel import SweepPanel

ENGLISH = SimpleNamespace(cookies={}, headers={"accept-language": "en"}, username=None)
CHINESE = SimpleNamespace(cookies={}, headers={"accept-language": "zh-CN"}, username=None)
BASE = {"model_name_or_path": "m", "dataset": "d"}


@pytest.fixture
def panel(workspace, monkeypatch):
    """The fold over a form that holds `BASE`; nothing is started. `asked` are the configs that the worker looked at."""
    monkeypatch.setattr(queue, "start_queued", lambda workspace: [])
    monkeypatch.setattr("workbench.ui.tabs.train.sweep_panel.user_of", lambda request: "ann")
    asked = []

    def ask(what, user, config):
        asked.append(config)
        if config.get("seed") == 13:
            raise UserError("dataset_empty")

    made = SweepPanel(workspace, SimpleNamespace(ask=ask), lambda contents: validated(BASE))
    made.asked = asked
    return made


def test_how_many_is_said_before_anything_is_queued(panel, workspace):
    said = panel.counted("grid", "learning_rate=1e-4,2e-4\nlora_rank = 8,16", 8, 1, ENGLISH)
    assert "4 runs, one after the other for a time that cannot be told yet." in said
    assert "learning_rate=0.0001, lora_rank=16" in said and list_runs(workspace) == []
    assert "3 个运行" in panel.counted("random", "learning_rate=1e-5:1e-3:log", 3, 1, CHINESE)
    assert "would be 65" in panel.counted("random", "seed=1:99", 65, 1, ENGLISH)
    assert "does not say what an option may be" in panel.counted("grid", "lr", None, None, ENGLISH)
    assert "Name at least one option" in panel.counted("grid", None, 8, 1, ENGLISH)


def test_all_are_queued_or_none(panel, workspace):
    refused = panel.queued("grid", "seed=1,13", 8, 1, "mine", ENGLISH)
    assert "With seed=13:" in refused and "Nothing was queued." in refused and list_runs(workspace) == []
    said = panel.queued("grid", "seed=1,2\nlora_rank=4,8", 8, 1, " mine ", ENGLISH)
    assert "4 runs are queued as the group mine." in said
    assert len(queue.queue(workspace)) == 4 and len(panel.asked) == 2 + 4


@pytest.fixture
def rows(workspace):
    """Four runs of a group; the last has no figures yet."""
    losses = (2.0, 1.0, 3.0, None)
    values = [{"learning_rate": 10.0 ** -(3 + n), "lora_target": ("all", "<b>")[n % 2]} for n in range(4)]
    for loss, changed in zip(losses, values, strict=True):
        run = create_run(workspace, validated(BASE | changed), state="finished", ended=1.0)
        run.set_notes(group="mine", title=f"lr {changed['learning_rate']:g}", sweep="learning_rate,lora_target")
        if loss:
            run.metrics.write_text(json.dumps({"current_steps": 1, "loss": loss}) + "\n")
    return view.summaries(workspace, group="mine")


def test_a_group_is_shown_best_first_with_what_differs(rows):
    ranked = best_first(rows)
    assert [row.best_loss for row in ranked] == [1.0, 2.0, 3.0, None]
    options = differing(ranked)
    assert list(options) == ["learning_rate", "lora_target"] and options["learning_rate"][0] == 1e-4
    table = table_html(ranked, options, ranked[0].run.id, "en")
    assert table.index("lr 0.0001") < table.index("lr 0.001") < table.index("lr 1e-05") < table.index("lr 1e-06")
    assert "<b>" not in table and "&lt;b&gt;" in table and "1.0000" in table and "–" in table


def test_the_chart_has_an_axis_for_each_option_and_the_loss(rows):
    ranked = best_first(rows)
    figure = json.loads(parallel(ranked, differing(ranked), "en"))
    (data,) = figure["data"]
    rate, target, loss = data["dimensions"]
    assert data["type"] == "parcoords" and loss["values"] == [1.0, 2.0, 3.0]
    assert rate["values"] == pytest.approx([-4, -3, -5]) and rate["ticktext"] == ["1e-05", "0.0001", "0.001"]
    assert target["values"] == [0, 1, 1] and target["ticktext"] == ["&lt;b&gt;", "all"]
    assert parallel(ranked[:1], differing(ranked), "en") == "" == parallel(ranked, {}, "en")


def test_the_part_follows_the_run_and_stops_its_group(rows, workspace):
    part = GroupPart(workspace)
    head, table, chart, name, seen = part.look(rows[0].run.id, None, ENGLISH)
    assert "mine: 4 runs, 0 not ended" in head and "lr 0.001" in table and "parcoords" in chart and name == "mine"
    assert part.look(rows[0].run.id, seen, ENGLISH)[0] == {"__type__": "update"}
    alone = create_run(workspace, validated(BASE), state="queued")
    assert "belongs to no group" in part.look(alone.id, seen, ENGLISH)[0]
    rows[0].run.update(state="queued", ended=None)
    assert "mine: 1 taken out of the queue, 0 stopped" in part.stopped("mine", ENGLISH)
    assert rows[0].run.state().state == "stopped" and alone.state().state == "queued"
    part.workspace.read_only = True
    assert "wb-note bad" in part.stopped("mine", ENGLISH) and "wb-note bad" in part.stopped("mine", CHINESE)
