"""Jobs: children with a state directory that outlive who started them, seen through their files."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from workbench.errors import UserError
from workbench.runs import job
from workbench.storage.workspace import CODE

pytestmark = pytest.mark.process

SLEEPER = """
import sys, time
from pathlib import Path
from workbench.runs.job import told
from workbench.runs.state import StateDirectory
from workbench.errors import UserError

how, directory = sys.argv[1], StateDirectory(Path(sys.argv[sys.argv.index("--state-dir") + 1]))
with told(directory, lambda: "All done."):
    print("begun", flush=True)
    if how == "wait":
        time.sleep(60)
    if how == "refuse":
        raise UserError("It cannot be done. Do something else.")
    if how == "break":
        raise ValueError("a bug")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that a job can run."""
    (tmp_path / "sleeper_job.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "sleeper_job"


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "state", "reason"),
    [
        ("work", "finished", "All done."),
        ("refuse", "failed", "It cannot be done. Do something else."),
        ("break", "failed", "ValueError: a bug"),
    ],
)
def test_the_end_of_a_job_is_told(workspace, module, how, state, reason):
    directory = job.start_job(workspace, "export", "a b/c", module, how)
    wait_for(lambda: not directory.state().active)
    assert (directory.state().state, directory.state().reason[: len(reason)]) == (state, reason)
    assert "begun" in directory.log.read_text()
    assert job.jobs(workspace, "export") == [directory]


def test_one_of_a_kind_at_a_time_and_stop_ends_it(workspace, module):
    directory = job.start_job(workspace, "export", "one", module, "wait")
    wait_for(lambda: directory.state().state == "running")
    with pytest.raises(UserError, match="is still going"):
        job.start_job(workspace, "export", "two", module, "wait")
    pid = directory.state().pid
    job.stop_job(directory)
    assert directory.state().state == "stopped"
    wait_for(lambda: not psutil.pid_exists(pid))


def test_a_killed_job_reads_as_lost(workspace, module):
    directory = job.start_job(workspace, "export", "one", module, "wait")
    wait_for(lambda: directory.state().state == "running")
    os.kill(directory.state().pid, signal.SIGKILL)
    wait_for(lambda: directory.state().state == "lost")


def test_an_export_goes_on_when_who_started_it_is_gone(workspace, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    tuned = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False))
    layer = tuned.base_model.model.model.layers[0].self_attn.q_proj
    wanted = before + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    tuned.save_pretrained(tmp_path / "adapter")
    code = (
        "import sys; from workbench.runs import job; from workbench.storage.workspace import"
        " Workspace;job.start_job(Workspace(sys.argv[1]), 'export', 'merged', 'workbench', 'export', sys.argv[2],"
        " '--name', 'merged','--adapter', sys.argv[3], '--set', 'infer_dtype=float32', '--workspace', sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", code, workspace.root, tiny_model, tmp_path / "adapter"],
        check=True,
        env=job.environment(),
    )
    (directory,) = job.jobs(workspace, "export")
    wait_for(lambda: not directory.state().active, 120)
    assert directory.state().state == "finished", directory.log.read_text()
    assert "merged" in directory.state().reason
    merged = load_file(workspace.models / "merged" / "model.safetensors")
    assert (merged["model.layers.0.self_attn.q_proj.weight"] - wanted).abs().max() < 1e-6
    assert json.loads((workspace.models / "merged" / "config.json").read_text())["model_type"] == "llama"


def test_children_find_the_package_from_any_folder(tmp_path):
    code = "import workbench, pathlib; print(pathlib.Path(workbench.__file__).parents[1])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=job.environment(), capture_output=True, text=True
    )
    assert done.stdout.strip() == str(CODE)
