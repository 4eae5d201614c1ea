"""Two hosts over one workspace, in real processes: this machine under two names, and with namespaces of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from tests.process.test_lifecycle import read_until, trainer_of, wait_for
from tests.process.test_train import BASE, ROOT, only_run, state_of, write
from workbench.runs.run import Run, step_of

pytestmark = pytest.mark.process
BEAT = {"WORKBENCH_BEAT": "0.5"}  # quiet after 1.5 s, lost after 6 s


@pytest.fixture
def config(tiny_model, tiny_data):
    return BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data)}


def on(host: str, workspace, *arguments, prefix=()) -> subprocess.CompletedProcess:
    """A command on a host."""
    command = [*prefix, sys.executable, "-m", "workbench", *map(str, arguments), "--workspace", str(workspace.root)]
    env = os.environ | BEAT | {"WORKBENCH_HOST": host}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)


def begin(host: str, workspace, file, prefix=()) -> subprocess.Popen:
    command = [*prefix, sys.executable, "-m", "workbench", "train", str(file), "--workspace", str(workspace.root)]
    env = os.environ | BEAT | {"WORKBENCH_HOST": host}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env)


def seen(host: str, workspace, path) -> dict:
    """What a host sees of a run."""
    return next(run for run in json.loads(on(host, workspace, "runs", "--json").stdout) if run["id"] == path.name)


def test_another_host_sees_the_run_and_stops_it(workspace, config, tmp_path):
    process = begin("alpha", workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 1000}))
    read_until(process, "step 3/")
    path = only_run(workspace)
    state = seen("beta", workspace, path)
    assert (state["state"], state["host"], state["warning"]) == ("running", "alpha", "")
    for arguments in (("delete", "--yes", path.name), ("resume", path.name), ("train", path)):
        refused = on("beta", workspace, *arguments)
        assert refused.returncode == 2 and "going" in refused.stderr and len(refused.stderr.splitlines()) == 1
    beside = on("beta", workspace, "queue", "add", write(tmp_path, config | {"max_steps": 2, "run_name": "beside"}))
    other = Run(workspace.runs / beside.stdout.strip())
    wait_for(lambda: other.state().ended)  # beta's own device is free
    assert state_of(other.path)["state"] == "finished" and state_of(other.path)["host"] == "beta"
    asked = on("beta", workspace, "stop", path.name).stdout
    assert "alpha is asked to stop" in asked
    process.stdout.read()
    assert process.wait(60) == 0
    state = state_of(path)
    assert state["state"] == "stopped" and step_of(Run(path).checkpoints()[-1]) == state["step"] < 1000


def test_a_trainer_that_hangs_is_killed_from_another_host(workspace, config, tmp_path):
    process = begin("alpha", workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 4}))
    read_until(process, "step 6/")
    path, trainer = only_run(workspace), trainer_of(process)
    trainer.suspend()
    assert "is asked to stop" in on("beta", workspace, "stop", path.name).stdout
    assert "is asked to kill" in on("beta", workspace, "stop", path.name).stdout
    process.stdout.read()
    assert process.wait(60) == 0 and not trainer.is_running()
    assert state_of(path)["state"] == "stopped" and "pressed twice" in state_of(path)["reason"]


def test_a_silent_host_is_first_said_to_be_so_then_lost_then_seen_again(workspace, config, tmp_path):
    process = begin("alpha", workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 4}))
    read_until(process, "step 6/")
    path, trainer = only_run(workspace), trainer_of(process)
    for one in (trainer, psutil.Process(process.pid)):
        one.suspend()
    quiet = wait_for(lambda: (s := seen("beta", workspace, path))["warning"] and s)
    assert quiet["state"] == "running" and quiet["messages"]["warning"]["code"] == "host_quiet"
    lost = wait_for(lambda: (s := seen("beta", workspace, path))["state"] == "lost" and s)
    assert lost["messages"]["reason"]["code"] == "host_lost"
    refused = on("beta", workspace, "resume", path.name)  # its processes are there and hold the lock
    assert refused.returncode == 2 and "still holds the lock" in refused.stderr
    for one in (psutil.Process(process.pid), trainer):
        one.resume()
    wait_for(lambda: seen("beta", workspace, path)["state"] == "running")
    os.killpg(trainer.pid, signal.SIGKILL)
    process.kill()  # and now the host is gone
    process.wait(10)
    wait_for(lambda: seen("beta", workspace, path)["state"] == "lost")
    last = step_of(Run(path).checkpoints()[-1])
    assert "goes on from" in on("beta", workspace, "resume", path.name, "--set", f"max_steps={last + 2}").stdout
    wait_for(lambda: Run(path).stored_state().ended)
    assert state_of(path)["state"] == "finished" and state_of(path)["host"] == "beta"


def test_a_host_whose_run_was_taken_over_ends_its_own_processes(workspace, config, tmp_path):
    """Without locks across hosts, one that was away for long may come back to a run that another has resumed."""
    process = begin("alpha", workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 4}))
    read_until(process, "step 6/")
    path, trainer = only_run(workspace), trainer_of(process)
    trainer.suspend()
    theirs = {"state": "running", "pid": 4, "pid_started": 1.0, "boot": "another", "host": "beta", "reason": ""}
    Run(path).update(**theirs)
    said = process.stdout.read()
    assert process.wait(60) == 2 and f"beta has taken {path.name} over" in said
    assert not trainer.is_running() and {key: state_of(path)[key] for key in theirs} == theirs


def test_two_containers_are_two_hosts(workspace, config, tmp_path):
    """Pid namespaces: the same kernel, the same boot, and pids that mean something else."""
    apart = ["unshare", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child", "--"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("namespaces need rights that are missing here")
    named = [*apart, "sh", "-c", 'hostname alpha; exec "$@"', "sh"]
    command = [sys.executable, "-m", "workbench", "train"]
    file = write(tmp_path, config | {"max_steps": 5000, "save_steps": 1000})
    process = subprocess.Popen(
        [*named, *command, str(file), "--workspace", str(workspace.root)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | BEAT,
    )  # fmt: skip
    read_until(process, "step 3/")
    path = only_run(workspace)
    assert Run(path).state().state == "running" and Run(path).state().host == "alpha"
    assert state_of(path)["pid"] < 10  # one of the container's own
    asked = on("", workspace, "stop", path.name).stdout
    assert "alpha is asked to stop" in asked
    process.stdout.read()
    assert process.wait(60) == 0 and state_of(path)["state"] == "stopped"
