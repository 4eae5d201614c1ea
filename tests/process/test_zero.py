"""Full tuning with ZeRO, where DeepSpeed is installed (`pip install deepspeed`): processes on the CPU, over gloo."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.process.test_ranks import config, of  # noqa: F401
from tests.process.test_train import state_of, workbench, write
from workbench.runs.run import Run, step_of

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


def zero(stage: int, **more) -> str:
    return json.dumps({"zero_optimization": {"stage": stage, "overlap_comm": False, "reduce_bucket_size": 5e8} | more})


CPU = {"device": "cpu", "pin_memory": False}


@pytest.fixture
def full(config):  # noqa: F811
    """16 rows, so that no step lacks any: accelerate would fill it up with rows from the start. Some are longer than what
    goes through the output head at once, so that processes use it a different number of times."""
    path = Path(config["dataset_dir"]) / "small.json"
    rows = json.loads(path.read_text())
    for row in rows[::4]:
        row["output"] += "The rain fell all the time. " * 40
    path.write_text(json.dumps(rows))
    return config | {
        "cutoff_len": 1200,
        "finetuning_type": "full", "quantization_bit": None, "val_size": 11, "eval_strategy": "steps", "eval_steps": 3,
        "max_grad_norm": 0.5, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
    }  # fmt: skip


def train(workspace, tmp_path, values, devices: str):
    each = 4 // len(devices.split(","))
    before = set(workspace.runs.iterdir())
    values = values | {"devices": devices, "per_device_train_batch_size": each}
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = set(workspace.runs.iterdir()) - before
    return path


@pytest.mark.parametrize(
    ("devices", "given"),
    [
        ("cpu,cpu", zero(1)),
        ("cpu,cpu", zero(2)),
        ("cpu,cpu", zero(3)),
        ("cpu,cpu", zero(3, offload_optimizer=CPU, offload_param=CPU)),
        ("cpu", zero(2, offload_optimizer=CPU)),
        ("cpu", zero(3)),
    ],
    ids=["1", "2", "3", "3-offload", "2-alone", "3-alone"],
)
def test_it_learns_what_one_process_learns_without(workspace, tmp_path, full, devices, given):
    plain = train(workspace, tmp_path, full, "cpu")
    spread = train(workspace, tmp_path, full | {"deepspeed": given}, devices)
    assert len(of(plain, "loss")) == 6 and len(of(plain, "eval_loss")) == 2
    for name in ("loss", "eval_loss"):
        assert of(spread, name) == pytest.approx(of(plain, name), rel=1e-5), name
    if '"stage": 3' not in given:
        assert of(spread, "grad_norm") == pytest.approx(of(plain, "grad_norm"), rel=1e-3)
    assert state_of(spread)["state"] == "finished" and "DeepSpeed makes its steps" in state_of(spread)["warning"]
    from safetensors.torch import load_file

    one, other = load_file(plain / "model.safetensors"), load_file(spread / "model.safetensors")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight - other[name]).abs().max() < 1e-4, name
    assert [step_of(p) for p in Run(spread).checkpoints()] == [3, 6]
    assert load_file(Run(spread).checkpoints()[-1] / "model.safetensors").keys() == one.keys()


@pytest.mark.parametrize("stage", [2, 3])
def test_it_goes_on_from_a_checkpoint_on_as_many_devices(workspace, tmp_path, full, stage):
    path = train(workspace, tmp_path, full | {"deepspeed": zero(stage)}, "cpu,cpu")
    whole = of(path, "loss")

    def resume(devices: str, rows: int):
        (path / "state.json").write_text(json.dumps(state_of(path) | {"state": "stopped", "resume": "checkpoint-3"}))
        values = full | {"deepspeed": zero(stage), "devices": devices, "per_device_train_batch_size": rows}
        (path / "run.yaml").write_text(write(tmp_path, values).read_text())
        return workbench(workspace, "train", path)

    refused = resume("cpu", 4)
    assert refused.returncode == 2 and "cannot go on with 1" in state_of(path)["reason"]
    done = resume("cpu,cpu", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert of(path, "loss") == pytest.approx(whole, rel=1e-5)
