"""Several processes of one training: the same losses as one, and one writer of the run's files."""

import json
import subprocess
import sys

import pytest

from tests.process.conftest import ROOT
from workbench.config.run_config import validated
from workbench.runs import job
from workbench.runs.run import FollowedRun, create_run

pytestmark = pytest.mark.process


def train(workspace, tiny_model, tiny_data, processes: int):
    config = validated({
        "model_name_or_path": str(tiny_model), "dataset": "small", "dataset_dir": str(tiny_data), "max_steps": 4, "learning_rate": 1e-2,
        "per_device_train_batch_size": 4 // processes, "gradient_accumulation_steps": 1, "save_steps": 2, "logging_steps": 1, "lora_dropout": 0,
        "run_name": f"ranks-{processes}",
    })  # fmt: skip
    run = create_run(workspace, config)
    launch = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    )
    command = [sys.executable, *launch, "-m", "workbench.train.main", str(run.path), "--workspace", str(workspace.root)]
    done = subprocess.run(
        command, cwd=ROOT, env=job.environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return run, [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_two_processes_learn_as_one_and_one_of_them_writes(workspace, tiny_model, tiny_data):
    alone, one = train(workspace, tiny_model, tiny_data, 1)
    together, two = train(workspace, tiny_model, tiny_data, 2)
    assert [row["current_steps"] for row in two] == [row["current_steps"] for row in one] == [1, 2, 3, 4]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    assert together.state().state == "finished"
    assert {p.name for p in together.path.iterdir()} == {p.name for p in alone.path.iterdir()}
    assert [p.name for p in together.checkpoints()] == ["checkpoint-2", "checkpoint-4"]


def test_a_followed_run_is_not_written(workspace, tiny_model):
    run = create_run(workspace, validated({"model_name_or_path": str(tiny_model), "dataset": "small"}))
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    followed = FollowedRun(run.path)
    followed.update(state="running", step=3)
    followed.set_notes(title="x")
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before
