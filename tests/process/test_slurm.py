"""Runs as jobs of Slurm. There is none here: programs of the same names keep jobs in a folder and run batch files."""

import json
import os
import shlex
import signal
import subprocess
import sys

import psutil
import pytest

from tests import fake_slurm, fake_ssh
from tests.process.test_lifecycle import wait_for
from tests.process.test_train import BASE, ROOT, only_run, state_of, write
from workbench.runs.run import Run, step_of
from workbench.storage.workspace import Workspace

pytestmark = pytest.mark.process


@pytest.fixture
def config(tiny_model, tiny_data):
    return BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data)}


@pytest.fixture
def slurm(tmp_path):
    """`(folder of jobs, environment)`."""
    folder = tmp_path / "slurm"
    yield folder, os.environ | fake_slurm.install(folder) | {"WORKBENCH_HOST": "login", "WORKBENCH_BEAT": "0.5"}
    for file in folder.glob("*.json"):
        job = json.loads(file.read_text())
        if job["state"] == "RUNNING":
            os.killpg(job["pid"], signal.SIGTERM)


def workbench(env, workspace, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "workbench", *map(str, arguments), "--workspace", str(workspace.root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)


def submitted(env, workspace, *arguments) -> Run:
    done = workbench(env, workspace, "submit", "--slurm", *arguments)
    assert done.returncode == 0, done.stderr
    return Run(workspace.runs / done.stdout.splitlines()[0])


def test_a_job_trains_the_run_and_a_second_one_goes_on(slurm, config, tmp_path):
    workspace = Workspace(tmp_path / 'it\'s 50% a "work space"').create()  # as people name folders
    folder, env = slurm
    options = ("--partition", "gpu", "--time", "1-00:00:00", "--account", "me", "--cpus", "4", "--sbatch", "--mem=8G")
    file = write(tmp_path, config | {"max_steps": 4, "save_steps": 2, "run_name": '$(touch x); "quoted"'})
    run = submitted(env, workspace, file, *options, "--setup", "export FROM_SETUP='a b'")
    wait_for(lambda: run.stored_state().ended)
    state = state_of(run.path)
    assert (state["state"], state["slurm"], state["host"]) == ("finished", "101", "node1"), state
    asked = fake_slurm.job_of(folder, 101)["options"]
    assert asked["job-name"] == run.id.replace("_", "-") and asked["mem"] == "8G" and asked["signal"] == "B:TERM@120"
    assert (asked["partition"], asked["time"], asked["account"]) == ("gpu", "1-00:00:00", "me")
    assert (run.path / "slurm-101.log").is_file() and "export FROM_SETUP" in (run.path / "slurm.sbatch").read_text()
    again = submitted(env, workspace, run.path, "--set", "max_steps=6")
    wait_for(lambda: again.stored_state().ended and again.stored_state().slurm == "102")
    assert again.stored_state().step == 6 and [step_of(p) for p in again.checkpoints()] == [2, 4, 6]


def test_a_waiting_job_is_shown_cancelled_and_not_started_here(slurm, workspace, config, tmp_path):
    folder, env = slurm
    (folder / "hold").touch()
    run = submitted(env, workspace, write(tmp_path, config))
    listed = json.loads(workbench(env, workspace, "runs", "--json").stdout)[0]
    assert (listed["state"], listed["reason"], listed["pid"]) == ("queued", "Waits in Slurm as job 101.", None)
    workbench(env, workspace, "queue", "list")
    by_hand = workbench(env, workspace, "train", run.path)
    assert by_hand.returncode == 2 and "waits in Slurm as job 101" in by_hand.stderr
    assert workbench(env, workspace, "delete", "--yes", run.id).returncode == 2
    assert "taken out of Slurm" in workbench(env, workspace, "stop", run.id).stdout
    assert state_of(run.path)["state"] == "stopped" and fake_slurm.job_of(folder, 101)["state"].startswith("CANCELLED")
    assert "is deleted" in workbench(env, workspace, "delete", "--yes", run.id).stdout


def test_stop_of_a_job_that_has_begun_saves_a_checkpoint(slurm, workspace, config, tmp_path):
    folder, env = slurm
    run = submitted(env, workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 1000}))
    wait_for(lambda: run.stored_state().state == "running" and run.stored_state().step > 2)
    assert "node1 is asked to stop" in workbench(env, workspace, "stop", run.id).stdout
    wait_for(lambda: run.stored_state().ended)
    state = run.stored_state()
    assert state.state == "stopped" and step_of(run.checkpoints()[-1]) == state.step
    wait_for(lambda: fake_slurm.job_of(folder, 101)["state"] == "COMPLETED")


def test_the_time_limit_saves_a_checkpoint(slurm, workspace, config, tmp_path):
    """Slurm signals the batch process itself (`--signal=B:`), which is the supervisor."""
    folder, env = slurm
    run = submitted(env, workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 1000}))
    wait_for(lambda: run.stored_state().state == "running" and run.stored_state().step > 2)
    os.kill(fake_slurm.job_of(folder, 101)["pid"], signal.SIGTERM)
    wait_for(lambda: run.stored_state().ended)
    assert run.stored_state().state == "stopped" and run.checkpoints()


@pytest.mark.parametrize("accounting", [True, False])
def test_a_job_that_vanishes_ends_the_run(slurm, workspace, config, tmp_path, accounting):
    folder, env = slurm
    (folder / "hold").touch()
    if not accounting:
        (folder / "no-accounting").touch()
    submitted(env, workspace, write(tmp_path, config))
    (folder / "down").touch()
    fake_slurm.write_job(folder, fake_slurm.job_of(folder, 101) | {"state": "TIMEOUT"})
    assert json.loads(workbench(env, workspace, "runs", "--json").stdout)[0]["state"] == "queued"  # no answer
    (folder / "down").unlink()
    listed = json.loads(workbench(env, workspace, "runs", "--json").stdout)[0]
    code = listed["messages"]["reason"]["code"]
    assert (listed["state"], code) == ("failed", "slurm_ended" if accounting else "slurm_gone")
    assert ("TIMEOUT" in listed["reason"]) == accounting


def test_a_node_that_dies_and_a_job_that_slurm_starts_anew(slurm, workspace, config, tmp_path):
    folder, env = slurm
    run = submitted(env, workspace, write(tmp_path, config | {"max_steps": 400, "save_steps": 4}))
    wait_for(lambda: run.stored_state().step > 6)
    trainer = run.stored_state().trainer_pid
    job = fake_slurm.job_of(folder, 101)
    for pid in (job["pid"], trainer):
        psutil.Process(pid).kill()
    wait_for(lambda: fake_slurm.job_of(folder, 101)["state"] == "FAILED")
    before = run.stored_state().step
    fake_slurm.begin(folder, 101)  # requeued at once, with the same number
    wait_for(lambda: run.stored_state().pid not in (None, job["pid"]))
    wait_for(lambda: run.stored_state().step > before or run.stored_state().ended)
    assert run.stored_state().state == "running"
    for pid in (fake_slurm.job_of(folder, 101)["pid"], run.stored_state().trainer_pid):
        psutil.Process(pid).kill()
    ended = wait_for(
        lambda: (s := json.loads(workbench(env, workspace, "runs", "--json").stdout)[0])["state"] == "failed" and s
    )
    assert ended["messages"]["reason"]["code"] == "slurm_ended" and "job 101: FAILED" in ended["reason"]


def test_a_job_of_two_nodes_trains_on_both(slurm, workspace, config, tmp_path):
    _, env = slurm
    env = env | {"OMP_NUM_THREADS": "1"}
    env |= fake_ssh.install(tmp_path / "hosts", "srun") | {
        "PATH": f"{tmp_path / 'hosts' / 'bin'}{os.pathsep}{env['PATH']}"
    }
    values = config | {"quantization_bit": None, "max_steps": 3, "save_steps": 3}
    run = submitted(env, workspace, write(tmp_path, values), "--nodes", "2")
    wait_for(lambda: run.stored_state().ended)
    state = run.stored_state()
    assert (state.state, state.device, state.host) == ("finished", "2 × CPU", "node1"), state.reason


def test_what_fails_before_the_training_is_the_runs_reason(slurm, workspace, config, tmp_path, monkeypatch):
    folder, env = slurm
    (folder / "hold").touch()
    run = submitted(env, workspace, write(tmp_path, config | {"devices": "7"}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # what Slurm gives
    fake_slurm.begin(folder, 101)
    wait_for(lambda: run.stored_state().ended)
    assert run.stored_state().state == "failed" and run.stored_state().reason.code == "devices_missing"


def test_bad_wishes_are_refused_before_a_run_is_made(slurm, workspace, config, tmp_path):
    folder, env = slurm
    file = write(tmp_path, config)
    for arguments in (
        ("--partition", "a\n#SBATCH --uid=0"), ("--account", "$(id)"), ("--time", "1h"), ("--sbatch", "--mem=1G\nrm -rf ~"),
        ("--sbatch", "rm -rf ~"), ("--setup", "a\nb"),
    ):  # fmt: skip
        done = workbench(env, workspace, "submit", "--slurm", file, *arguments)
        assert done.returncode == 2 and "cannot stand in a batch file" in done.stderr, arguments
    done = workbench(env, workspace, "submit", file)
    assert done.returncode == 2 and "--slurm" in done.stderr
    none = env | {"PATH": os.pathsep.join(p for p in env["PATH"].split(os.pathsep) if p != str(folder / "bin"))}
    done = workbench(none, workspace, "submit", "--slurm", file)
    assert done.returncode == 2 and "There is no Slurm here" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(workspace.runs.iterdir())
    refused = workbench(env, workspace, "submit", "--slurm", file, "--partition", "nowhere")
    assert refused.returncode == 2 and "Invalid partition name" in refused.stderr
    assert state_of(only_run(workspace))["state"] == "failed"


def test_print_only_prints(slurm, workspace, config, tmp_path):
    folder, env = slurm
    done = workbench(
        env, workspace, "submit", "--slurm", write(tmp_path, config), "--print", "--nodes", "2", "--gpus", "4"
    )
    assert done.returncode == 0 and not list(workspace.runs.iterdir()) and not list(folder.glob("*.json"))
    file = tmp_path / "printed"
    file.write_text(done.stdout)
    assert subprocess.run(["bash", "-n", file]).returncode == 0
    assert fake_slurm.options_of(str(file))["gres"] == "gpu:4"
    last = shlex.split(done.stdout.splitlines()[-1])
    assert last[0] == "exec" and "--nodes" in last and "srun" in last
