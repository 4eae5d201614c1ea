"""Several processes of one training: the losses of one, one writer, and an end together, however it comes."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.process.conftest import ROOT
from tests.process.test_train import rows_of, state_of, workbench, write
from workbench.config.run_config import validated
from workbench.runs import job
from workbench.runs.run import FollowedRun, create_run

pytestmark = pytest.mark.process

BASE = {
    "dataset": "small", "learning_rate": 1e-2, "gradient_accumulation_steps": 2, "logging_steps": 1, "lora_dropout": 0,
    "save_steps": 3, "max_steps": 6, "val_size": 3, "eval_strategy": "steps", "eval_steps": 3, "lora_rank": 4,
    "per_device_eval_batch_size": 2, "plot_loss": False,
}  # fmt: skip
PREFERENCES = {"stage": "dpo", "dataset": "pairs"}
SHARED = {"weights_on": "shared", "quantization_bit": 4}


@pytest.fixture
def config(tiny_model, tmp_path):
    """Rows of 20 to 400 tokens, and pairs of answers."""
    folder = tmp_path / "data"
    folder.mkdir()
    texts = [
        {"instruction": f"Question {i}?", "output": f"Answer {i}. " + "It was a dark night. " * (i * 7 % 13)}
        for i in range(27)
    ]
    pairs = [
        {"prompt": f"Question {i}?", "chosen": f"Answer {i} is {i * i}. " * (1 + i % 3), "rejected": f"No {i}."}
        for i in range(27)
    ]
    for name, rows in (("small", texts), ("pairs", pairs)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    info = {"small": {"file_name": "small.json"}, "pairs": {"file_name": "pairs.json", "ranking": True}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(folder)}


def train(workspace, tmp_path, values, devices: str):
    """A run of steps of 8 rows; its folder."""
    each = 4 // len(devices.split(","))
    values = values | {"devices": devices, "per_device_train_batch_size": each, "run_name": f"on-{devices}"}
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    return max(workspace.runs.iterdir(), key=os.path.getmtime)


def of(path, name: str) -> list[float]:
    return [row[name] for row in rows_of(path) if name in row]


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_prompts": "Question 3?", "sample_max_new_tokens": 4},
        {"packing": True, "cutoff_len": 256},
        PREFERENCES,
        {"neftune_noise_alpha": 1e-9},
        SHARED | {"sample_prompts": "Question 3?", "sample_max_new_tokens": 4},
        SHARED | PREFERENCES,
        SHARED | {"neftune_noise_alpha": 1e-9},
    ],
    ids=["rows", "packed", "pairs", "padded", "shared", "shared pairs", "shared padded"],
)
def test_two_processes_learn_as_one(workspace, tmp_path, config, changes):
    shared = "weights_on" in changes
    alone = train(workspace, tmp_path, config | changes | ({"weights_on": "card"} if shared else {}), "cpu")
    together = train(workspace, tmp_path, config | changes, "cpu,cpu")
    assert len(of(alone, "loss")) == 6 and len(of(alone, "eval_loss")) == 2
    exact = {"rel": 1e-5, "abs": 1e-6}
    for name in ("loss", "eval_loss", "grad_norm", "rewards/margins", "eval_rewards/margins"):
        assert of(together, name) == pytest.approx(of(alone, name), **exact), name
    assert of(together, "total_tokens") == of(alone, "total_tokens")
    assert {p.name for p in together.iterdir()} == {p.name for p in alone.iterdir()}
    assert (state_of(together)["state"], state_of(together)["device"]) == ("finished", "2 × CPU")
    padded = "neftune_noise_alpha" in changes
    warned = "divided among 2 devices" if shared else "transformers makes them" if padded else ""
    assert warned in state_of(together)["warning"] and bool(state_of(together)["warning"]) == bool(warned)
    if "sample_prompts" in changes:
        assert (together / "samples.jsonl").read_text() == (alone / "samples.jsonl").read_text()


def test_one_device_has_nobody_to_share_with(workspace, tmp_path, config):
    done = workbench(workspace, "train", write(tmp_path, config | SHARED | {"devices": "cpu"}))
    assert done.returncode == 2
    (path,) = workspace.runs.iterdir()
    assert state_of(path)["messages"]["reason"]["code"] == "shared_alone"


def test_a_resume_on_another_number_of_devices_keeps_the_batch(workspace, tmp_path, config):
    path = train(workspace, tmp_path, config, "cpu,cpu")
    whole = of(path, "loss")
    again = {"state": "stopped", "resume": "checkpoint-3"}

    def resume(devices: str, rows: int):
        (path / "state.json").write_text(json.dumps(state_of(path) | again))
        values = config | {"devices": devices, "per_device_train_batch_size": rows}
        (path / "run.yaml").write_text(write(tmp_path, values).read_text())
        return workbench(workspace, "train", path)

    refused = resume("cpu,cpu,cpu", 2)
    assert refused.returncode == 2 and "made steps of 8 rows with 2 processes" in state_of(path)["reason"]
    done = resume("cpu", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gradient_accumulation_steps 4 keeps 8 rows in a step" in (path / "running_log.txt").read_text()
    assert of(path, "loss") == pytest.approx(whole, rel=1e-5)


@pytest.fixture
def going(workspace, tmp_path, config):
    """A run of two processes that has made steps: `(its supervisor, its folder, processes of its training)`."""
    values = config | {"devices": "cpu,cpu", "per_device_train_batch_size": 2, "max_steps": 2000, "eval_strategy": "no"}
    command = [
        sys.executable,
        "-m",
        "workbench",
        "train",
        str(write(tmp_path, values)),
        "--workspace",
        str(workspace.root),
    ]
    supervisor = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in supervisor.stdout:
        if line.startswith("step 4/"):
            break
    (path,) = workspace.runs.iterdir()
    trainers = psutil.Process(supervisor.pid).children()
    assert len(trainers) == 2
    yield supervisor, path, trainers
    for process in trainers:
        if process.is_running():
            process.kill()
    supervisor.kill()
    supervisor.communicate()


def gone(processes) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_killed_ends_the_run(going, which):
    supervisor, path, trainers = going
    first = state_of(path)["trainer_pid"]
    victim = next(p for p in trainers if (p.pid == first) == (which == 0))
    victim.kill()
    supervisor.communicate(timeout=30)
    assert gone(trainers)
    state = state_of(path)
    assert state["state"] == "failed" and "SIGKILL" in state["reason"]
    assert state["reason"].startswith("Process 1 of the training failed: ") == (which == 1)
    if which == 0:
        assert "[rank 1] " in (path / "running_log.txt").read_text()


def test_stop_saves_once_and_leaves_nothing(going):
    supervisor, path, trainers = going
    supervisor.send_signal(signal.SIGTERM)
    supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0 and gone(trainers)
    state = state_of(path)
    assert state["state"] == "stopped"
    checkpoint = path / f"checkpoint-{state['step']}"
    assert (checkpoint / "trainer_state.json").is_file() and not (path / ".saving").exists()
    assert {p.name for p in checkpoint.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_they_save_and_end_when_the_supervisor_is_killed(going):
    supervisor, path, trainers = going
    supervisor.kill()
    assert gone(trainers)
    state = state_of(path)
    assert state["state"] == "stopped" and (path / f"checkpoint-{state['step']}" / "trainer_state.json").is_file()


def test_a_process_that_is_left_alone_says_so(workspace, tiny_model, tiny_data):
    run = create_run(
        workspace,
        validated({"model_name_or_path": str(tiny_model), "dataset": "small", "dataset_dir": str(tiny_data)}),
    )
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9", "LOCAL_RANK": "1"}
    command = [sys.executable, "-m", "workbench.train.main", str(run.path), "--workspace", str(workspace.root)]
    environment = job.environment(WORKBENCH_JOIN_SECONDS="2", **variables)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "did not find each other within 2 s (127.0.0.1:9)" in done.stdout
    assert "did not find each other" in (run.path / ".failed-1.json").read_text()


def test_a_followed_run_is_not_written(workspace, tiny_model):
    run = create_run(workspace, validated({"model_name_or_path": str(tiny_model), "dataset": "small"}))
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    followed = FollowedRun(run.path)
    followed.update(state="running", step=3)
    followed.set_notes(title="x")
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before
