"""Sweeps: which runs they are, that all are checked before any is queued, and that a group is stopped as a whole."""

import math

import pytest

from workbench.config.sweep import MOST, changes_of, drawn, grid, members, words
from workbench.errors import UserError
from workbench.runs.run import create_run, list_runs
from workbench.train import queue, sweep

BASE = {"model_name_or_path": "m", "dataset": "d", "output_dir": "x"}


def code(call, *given) -> str:
    with pytest.raises(UserError) as refused:
        call(*given)
    return refused.value.message.code


def test_a_grid_is_all_combinations():
    changes = grid(["learning_rate=1e-4, 2e-4", "lora_rank = 8,16,8", "use_rslora=true"])
    assert len(changes) == 4
    assert changes[0] == {"learning_rate": 1e-4, "lora_rank": 8, "use_rslora": True}
    assert words(changes[3]) == "learning_rate=0.0002, lora_rank=16, use_rslora=True"
    assert grid(["lora_target=q_proj,v_proj;all"]) == [{"lora_target": "q_proj,v_proj"}, {"lora_target": "all"}]


def test_draws_are_the_same_for_a_seed_and_lie_in_their_ranges():
    lines = ["learning_rate=1e-5:1e-3:log", "lora_rank=4:64", "lora_dropout=0,0.1"]
    first = drawn(lines, 40, 1)
    assert first == drawn(lines, 40, 1) != drawn(lines, 40, 2)
    assert all(1e-5 <= one["learning_rate"] <= 1e-3 and 4 <= one["lora_rank"] <= 64 for one in first)
    assert all(isinstance(one["lora_rank"], int) for one in first) and {one["lora_dropout"] for one in first} == {
        0,
        0.1,
    }
    below = sum(math.log10(one["learning_rate"]) < -4 for one in first)
    assert 10 < below < 30  # half of them, as the logarithm is even
    assert len(drawn(["lora_rank=8,16"], 8, 1)) == 2  # there are no more


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["learning_rate"], "sweep_form"), (["=1"], "sweep_form"), (["lora_rank="], "sweep_form"), ([], "sweep_empty"), (["  "], "sweep_empty"),
        (["learning_rat=1"], "option_unknown"), (["output_dir=a,b"], "sweep_own"), (["lora_rank=8,many"], "option_wrong"),
        (["lora_rank=0"], "option_wrong"), (["lora_rank=8", "lora_rank=16"], "sweep_twice"),
        ([f"seed={','.join(map(str, range(MOST + 1)))}"], "sweep_many"),
    ],
)  # fmt: skip
def test_lines_that_are_wrong(lines, wanted):
    assert code(grid, lines) == wanted


@pytest.mark.parametrize("text", ["5:1", "0:1:log", "1:2:ln", "a:b", "1:1", "nan:1"])
def test_ranges_that_are_none(text):
    assert code(drawn, [f"weight_decay={text}"], 3, 1) in ("sweep_range", "option_wrong")


def test_how_many_and_which_kind():
    assert code(drawn, ["seed=1:9"], 0, 1) == code(drawn, ["seed=1:9"], MOST + 1, 1) == "sweep_many"
    assert code(changes_of, ["seed=1"], ["lora_rank=2:4"], 2, 1) == "sweep_both"
    assert len(changes_of([], ["lora_rank=2:4"], 2, 1)) == 2 and len(changes_of(["seed=1,2"], [], 8, 1)) == 2


def test_a_member_that_cannot_work_is_named():
    with pytest.raises(UserError, match=r"With val_size=0: eval_strategy") as refused:
        members(BASE | {"eval_strategy": "steps"}, grid(["val_size=0.1,0"]))
    assert "Nothing was queued." in str(refused.value)
    assert all(config.output_dir is None for config in members(BASE, grid(["seed=1,2"])))


@pytest.fixture
def quiet(monkeypatch):
    """Nothing is started, and estimates know no model."""
    monkeypatch.setattr(queue, "start_queued", lambda workspace: [])


def launched(workspace, lines, check=lambda *_: None, **more):
    changes = grid(lines)
    return sweep.launch(members(BASE, changes), changes, workspace, check=check, **more)


def test_all_runs_are_queued_as_one_group(workspace, quiet):
    runs = launched(workspace, ["learning_rate=1e-4,2e-4", "lora_rank=8,16"], group="mine", started_by="ann")
    assert [run.notes()["title"] for run in runs][1] == "learning_rate=0.0001, lora_rank=16"
    assert {run.notes()["group"] for run in runs} == {"mine"} and {run.state().started_by for run in runs} == {"ann"}
    assert {run.notes()["sweep"] for run in runs} == {"learning_rate,lora_rank"}
    assert queue.queue(workspace) == runs and sweep.of_group(workspace, "mine") == runs
    assert [run.config_values()["lora_rank"] for run in runs] == [8, 16, 8, 16]
    assert launched(workspace, ["seed=1"])[0].notes()["group"].startswith("sweep 20")


def test_one_bad_member_and_nothing_is_queued(workspace, quiet):
    def check(config, _):
        if config.seed == 2:
            raise UserError("dataset_empty")

    assert code(launched, workspace, ["seed=1,2,3"], check) == "sweep_member"
    assert list_runs(workspace) == []


def test_a_full_disk_in_the_middle_leaves_nothing(workspace, quiet, monkeypatch):
    made = []

    def full(*given, **more):
        if len(made) == 2:
            raise UserError("run_not_written", reason="No space left on device")
        made.append(create_run(*given, **more))
        return made[-1]

    monkeypatch.setattr(sweep, "create_run", full)
    assert code(launched, workspace, ["seed=1,2,3"]) == "run_not_written"
    assert len(made) == 2 and list_runs(workspace) == []


def test_a_group_is_stopped_as_a_whole(workspace, quiet):
    runs = launched(workspace, ["seed=1,2,3"], group="mine")
    other = launched(workspace, ["seed=1"], group="other")[0]
    runs[0].update(state="finished", ended=1.0)
    assert sweep.stop(workspace, "mine", lambda run: run != runs[1]) == (1, 0)
    assert [run.state().state for run in (*runs, other)] == ["finished", "queued", "stopped", "queued"]
    assert sweep.stop(workspace, "mine") == (1, 0) and sweep.stop(workspace, "") == (0, 0)
