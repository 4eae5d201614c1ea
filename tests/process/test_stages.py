"""The stages as a user runs them: real processes on a tiny random model."""

import json

import pytest

from tests.process.test_train import BASE, only_run, rows_of, state_of, workbench, write

pytestmark = pytest.mark.process


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pairs = [
        {"prompt": f"Question {i}?", "chosen": f"Answer {i} is {i * i}.", "rejected": f"I cannot say what {i} is."}
        for i in range(24)
    ]
    texts = [{"text": f"Chapter {i}. " + "It was a dark and stormy night. " * (1 + i % 5)} for i in range(40)]
    for name, rows in (("pairs", pairs), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "dataset_info.json").write_text(json.dumps({n: {"file_name": f"{n}.jsonl"} for n in ("pairs", "texts")}))
    return folder


@pytest.fixture
def config(tiny_model, data):
    return BASE | {
        "model_name_or_path": str(tiny_model), "dataset_dir": str(data), "dataset": "pairs", "save_steps": 4,
        "val_size": 4, "eval_strategy": "steps", "eval_steps": 4, "max_steps": 8, "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["dpo", "kto", "rm", "pt"])
def test_a_stage_runs_and_goes_on_from_its_checkpoint(stage, workspace, config, tmp_path):
    values = config | {"stage": stage, "dataset": "texts" if stage == "pt" else "pairs"}
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    path = only_run(workspace)
    whole = [row["loss"] for row in rows_of(path) if "loss" in row]
    assert state_of(path)["state"] == "finished" and len(whole) == 8
    evaluated = [row for row in rows_of(path) if "eval_loss" in row]
    assert len(evaluated) == 2
    if stage != "pt":
        assert {"rewards/chosen", "rewards/rejected", "rewards/margins"} <= rows_of(path)[0].keys()
        assert any(name.startswith("eval_rewards/") for name in evaluated[0])
    # from the middle again: the same losses
    (path / "checkpoint-8").rename(tmp_path / "gone")
    state = state_of(path)
    (path / "state.json").write_text(json.dumps(state | {"state": "stopped"}))
    done = workbench(workspace, "train", path)
    assert done.returncode == 0, done.stdout + done.stderr
    again = [row["loss"] for row in rows_of(path) if "loss" in row]
    assert again == pytest.approx(whole, rel=1e-4)
    if stage in ("dpo", "kto"):
        assert "known from an earlier run" in (path / "running_log.txt").read_text()
    if stage == "rm":
        other = workbench(workspace, "export", config["model_name_or_path"], "--adapter", path.name, "--name", "merged")
        assert other.returncode != 0 and "reward model" in other.stdout + other.stderr
        asked = {"stage": "grpo", "reward_funcs": "model,length", "reward_model": path.name, "num_generations": 2}
        asked |= {"max_completion_length": 4, "max_steps": 2, "val_size": 0, "eval_strategy": "no"}
        done = workbench(workspace, "train", write(tmp_path, config | asked))
        assert done.returncode == 0, done.stdout + done.stderr
        (learned,) = (run for run in path.parent.iterdir() if run.name != path.name)
        assert len([row for row in rows_of(learned) if "reward" in row]) == 2
        assert f"scored by the reward model {path.name}" in (learned / "running_log.txt").read_text()


def test_a_checkpoint_of_another_stage_is_refused(workspace, config, tmp_path):
    short = {"max_steps": 1, "eval_strategy": "no", "val_size": 0, "save_steps": 1}
    assert workbench(workspace, "train", write(tmp_path, config | short | {"stage": "dpo"})).returncode == 0
    checkpoint = only_run(workspace) / "checkpoint-1"
    values = config | short | {"stage": "sft", "resume_from_checkpoint": str(checkpoint), "max_steps": 3}
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 2 and "is of stage dpo, this run of stage sft" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_grpo_learns_what_is_rewarded(workspace, config, tmp_path):
    """A random model that is rewarded for digits writes more of them."""
    file = tmp_path / "digits.py"
    file.write_text(
        "def reward(prompts, completions, answer, **columns):\n"
        "    assert len(answer) == len(prompts) and all(text.startswith('Answer') for text in answer)\n"
        "    return [sum(c.isdigit() for c in text) / 12 for text in completions]\n"
    )
    values = config | {
        "stage": "grpo", "reward_funcs": "file,json", "reward_weights": "1,0.1", "reward_file": str(file),
        "trust_reward_code": True, "val_size": 0, "eval_strategy": "no", "num_generations": 16, "warmup_steps": 0,
        "per_device_train_batch_size": 16, "max_completion_length": 12, "max_steps": 15, "learning_rate": 5e-3,
        "finetuning_type": "full", "quantization_bit": None, "lr_scheduler_type": "constant", "save_steps": 15,
    }  # fmt: skip
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in rows_of(only_run(workspace)) if "reward" in row]
    rewards = [row["reward"] for row in rows]
    assert len(rewards) == 15 and sum(rewards[-5:]) > 2 * sum(rewards[:5]) > 0, rewards
    assert all("completion_length" in row and "reward_std" in row for row in rows)
    assert "writes answers in every step" in (only_run(workspace) / "running_log.txt").read_text()


def test_a_reward_function_that_raises_is_one_sentence(workspace, config, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def reward(prompts, completions, answer, **columns):\n    return 1 / 0\n")
    values = config | {
        "stage": "grpo", "reward_funcs": "file", "reward_file": str(file), "trust_reward_code": True, "val_size": 0,
        "eval_strategy": "no", "num_generations": 2, "max_completion_length": 4,
    }  # fmt: skip
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 2 and "failed in line 2: ZeroDivisionError" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert state_of(only_run(workspace))["state"] == "failed"
