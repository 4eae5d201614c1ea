"""A sweep as real runs: one after the other on one device, and stopped as a whole."""

import pytest

from tests.process.test_lifecycle import ended, losses_of, wait_for
from tests.process.test_train import BASE, state_of, workbench, write
from workbench.runs.run import Run

pytestmark = pytest.mark.process


@pytest.fixture
def config(tiny_model, tiny_data):
    return BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data)}


def test_two_runs_of_a_sweep_follow_each_other(workspace, config, tmp_path):
    file = write(tmp_path, config | {"max_steps": 3})
    said = workbench(workspace, "sweep", file, "--grid", "learning_rate=1e-4,1e-1", "--dry-run")
    assert said.stdout.startswith("learning_rate=0.0001\nlearning_rate=0.1\n2 runs, one after the other "), said.stderr
    assert not list(workspace.runs.iterdir())
    refused = workbench(workspace, "sweep", file, "--grid", "lora_target=all,no_such_layer")
    assert refused.returncode == 2 and "With lora_target=no_such_layer:" in refused.stderr
    assert "Nothing was queued." in refused.stderr and not list(workspace.runs.iterdir())

    done = workbench(workspace, "sweep", file, "--grid", "learning_rate=1e-4,1e-1", "--group", "rates")
    paths = [workspace.runs / name for name in done.stdout.split()]
    assert len(paths) == 2, done.stderr
    wait_for(lambda: all(ended(path) for path in paths))
    first, second = (state_of(path) for path in paths)
    assert second["started"] >= first["ended"]
    losses = [losses_of(path) for path in paths]
    assert losses[0][1] == losses[1][1] and losses[0][3] != losses[1][3]  # the same start, another rate
    assert Run(paths[1]).notes() == {"group": "rates", "title": "learning_rate=0.1", "sweep": "learning_rate"}
    assert workbench(workspace, "runs", "--group", "rates").stdout.count("finished") == 2


def test_a_going_sweep_is_stopped_as_a_whole(workspace, config, tmp_path):
    file = write(tmp_path, config | {"max_steps": 5000})
    done = workbench(workspace, "sweep", file, "--random", "seed=1:9", "--trials", 3, "--group", "long")
    paths = [workspace.runs / name for name in done.stdout.split()]
    assert len(paths) == 3, done.stderr
    wait_for(lambda: state_of(paths[0])["state"] == "running" and state_of(paths[0])["step"] > 0)
    said = workbench(workspace, "stop", "--group", "long").stdout
    assert "long: 2 taken out of the queue, 1 stopped while running." in said
    wait_for(lambda: all(ended(path, "stopped") for path in paths))
    assert not any(Run(path).metrics.exists() for path in paths[1:])
