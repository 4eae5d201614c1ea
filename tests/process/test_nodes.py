"""`train --nodes`: several hosts over one workspace. The others are this machine, reached by a program named ssh."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import fake_ssh
from tests.process.test_lifecycle import read_until, wait_for
from tests.process.test_ranks import config, of  # noqa: F401
from tests.process.test_train import ROOT, only_run, state_of, write
from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.runs.run import Run, step_of
from workbench.storage.workspace import Workspace
from workbench.train import elsewhere, queue
from workbench.train.nodes import Place, parse_nodes

pytestmark = pytest.mark.process


@pytest.fixture
def hosts(tmp_path):
    """`(folder that says what hosts are like, environment)`; nothing may be left on them."""
    folder = tmp_path / "hosts"
    yield folder, os.environ | fake_ssh.install(folder) | {"OMP_NUM_THREADS": "1", "WORKBENCH_STOP_GRACE": "10"}
    wait_for(lambda: not left(tmp_path), 20)


def left(tmp_path) -> list[psutil.Process]:
    """Processes of trainings and agents of this test."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        ours = str(tmp_path) in words or str(tmp_path) in (process.info["environ"] or {}).get("PATH", "")
        if ours and ("train.node" in words or "train.main" in words) and process.info["status"] != "zombie":
            found.append(process)
    return found


def line(workspace, file, nodes: str, *more) -> list[str]:
    given = ["--workspace", str(workspace.root), "--nodes", nodes, *more]
    return [sys.executable, "-m", "workbench", "train", str(file), *given]


def workbench(env, workspace, file, nodes: str, *more) -> subprocess.CompletedProcess:
    return subprocess.run(
        line(workspace, file, nodes, *more), cwd=ROOT, capture_output=True, text=True, timeout=200, env=env
    )


def begin(env, workspace, file, nodes: str) -> subprocess.Popen:
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(line(workspace, file, nodes), cwd=ROOT, stdout=pipe, stderr=out, text=True, env=env)


def newest(workspace):
    return max(workspace.runs.iterdir(), key=os.path.getmtime)


@pytest.mark.parametrize("through", ["ssh", "srun"])
def test_two_hosts_learn_as_one(hosts, workspace, config, tmp_path, through):  # noqa: F811
    folder, env = hosts
    if through == "srun":
        (folder / "bin" / "ssh").rename(folder / "bin" / "srun")
    alone = config | {"per_device_train_batch_size": 4, "devices": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "train", str(write(tmp_path, alone)), "--workspace", str(workspace.root)],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one = newest(workspace)
    done = workbench(
        env,
        workspace,
        write(tmp_path, config | {"per_device_train_batch_size": 2}),
        "127.0.0.1,node2",
        "--through",
        through,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    two = newest(workspace)
    assert two != one and state_of(two)["state"] == "finished" and state_of(two)["device"] == "2 × CPU"
    assert "--node-rank 1" in done.stdout and "--nproc-per-node 1 --master-addr 127.0.0.1" in done.stdout
    for name in ("loss", "eval_loss"):
        assert of(two, name) == pytest.approx(of(one, name), rel=1e-4) and of(one, name)
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}


def test_stop_saves_on_both(hosts, workspace, config, tmp_path):  # noqa: F811
    _, env = hosts
    file = write(tmp_path, config | {"max_steps": 5000, "save_steps": 1000, "eval_strategy": "no", "val_size": 0})
    process = begin(env, workspace, file, "127.0.0.1,node2:2")
    read_until(process, "step 3/")
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    path = only_run(workspace)
    assert process.wait(60) == 0 and state_of(path)["state"] == "stopped"
    (checkpoint,) = Run(path).checkpoints()
    assert step_of(checkpoint) == state_of(path)["step"]
    assert len(list(checkpoint.glob("rng_state_*.pth"))) == 3  # one of each process
    wait_for(lambda: not left(tmp_path), 20)


def test_a_killed_supervisor_leaves_nothing_on_any_host(hosts, workspace, config, tmp_path):  # noqa: F811
    _, env = hosts
    file = write(tmp_path, config | {"max_steps": 5000, "save_steps": 1000, "eval_strategy": "no", "val_size": 0})
    process = begin(env, workspace, file, "127.0.0.1,node2")
    read_until(process, "step 3/")
    assert len(left(tmp_path)) >= 3
    process.kill()
    process.wait(10)
    wait_for(lambda: not left(tmp_path), 40)
    path = only_run(workspace)
    assert state_of(path)["state"] == "stopped" and len(Run(path).checkpoints()) == 1  # saved on the way out


@pytest.mark.parametrize("how", ["process", "connection"])
def test_a_host_that_fails_ends_all_with_its_reason(hosts, workspace, config, tmp_path, how):  # noqa: F811
    folder, env = hosts
    file = write(tmp_path, config | {"max_steps": 5000, "save_steps": 1000, "eval_strategy": "no", "val_size": 0})
    process = begin(env, workspace, file, "127.0.0.1,node2")
    read_until(process, "step 3/")
    agent = psutil.Process(int((folder / "node2.pid").read_text()))  # it has become what it ran
    (agent if how == "connection" else agent.children()[0]).kill()
    process.stdout.read()
    assert process.wait(60) == 1
    state = Run(only_run(workspace)).state()
    assert state.state == "failed"
    if how == "connection":
        assert state.reason.code == "node_lost" and "node2" in state.reason
    else:
        assert state.reason.code == "rank_failed" and "Process 1" in state.reason and "SIGKILL" in state.reason


@pytest.mark.parametrize(
    ("prelude", "words"),
    [
        ("", "No route to host"),
        ("hang", "did not answer within 3 s"),
        ("exit 3", "cannot be reached: exit code 3"),
        ("export PYTHONPATH=/nowhere; cd() { echo no such folder >&2; return 1; }", "no such folder"),
        ("mkdir -p other/peft-0.1.dist-info; printf 'Name: peft\\nVersion: 0.1\\n' > other/peft-0.1.dist-info/METADATA;"
         " export PYTHONPATH=$PWD/other", "peft is"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_host_is_one_sentence_before_a_run_is_made(
    hosts,
    workspace,
    config,  # noqa: F811
    tmp_path,
    prelude,
    words,
):
    folder, env = hosts
    if prelude == "hang":
        (folder / "node2.hangs").touch()
        env = env | {"WORKBENCH_NODE_SECONDS": "3"}
    elif prelude:
        (folder / "node2.prelude").write_text(f"cd {tmp_path}\n{prelude}")
    else:
        (folder / "node2.refuses").touch()
    begun = time.monotonic()
    done = workbench(env, workspace, write(tmp_path, config), "127.0.0.1,node2,node3")
    assert done.returncode == 2 and words in done.stderr and "node2" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and time.monotonic() - begun < 60
    assert not list(workspace.runs.iterdir()) and not list(workspace.jobs.glob(".seen-*"))


def test_a_workspace_that_the_other_host_does_not_see(hosts, workspace, config, tmp_path):  # noqa: F811
    """Its own mount namespace hides it."""
    folder, env = hosts
    apart = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("namespaces need rights that are missing here")
    ssh = folder / "bin" / "ssh"
    hide = f"exec {' '.join(apart)} sh -c 'mount -t tmpfs none {workspace.jobs} && exec \"$@\"' sh "
    ssh.write_text(ssh.read_text().replace("exec ", hide))
    done = workbench(env, workspace, write(tmp_path, config), "127.0.0.1,node2")
    assert done.returncode == 2 and "node2 does not see the workspace" in done.stderr


def test_the_first_host_is_this_one(hosts, workspace, config, tmp_path):  # noqa: F811
    _, env = hosts
    done = workbench(env, workspace, write(tmp_path, config), "192.0.2.1,node2")
    assert done.returncode == 2 and "192.0.2.1 is no address of this host" in done.stderr


def test_print_only_prints(hosts, workspace, config, tmp_path):  # noqa: F811
    _, env = hosts
    done = workbench(env, workspace, write(tmp_path, config), "node1:2,me@node2:4", "--print")
    first, second = done.stdout.splitlines()
    assert first.startswith("node1: torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr node1")
    assert second.startswith("me@node2: torchrun --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr node1")
    assert not list(workspace.runs.iterdir())


def test_names_of_hosts():
    assert parse_nodes("a, me@b-1.c:4") == [Place("a"), Place("me@b-1.c", 4)]
    assert parse_nodes("me@b:4")[0].address == "b"
    for wrong in ("a,", "-oProxyCommand=x", "a;b", "a:0", "a,a", "a b", "a:x", "$(id)", "a\nb"):
        with pytest.raises(UserError) as error:
            parse_nodes(wrong)
        assert error.value.message.code == "nodes_form"


@pytest.fixture
def as_page(hosts, monkeypatch, workspace, config):  # noqa: F811
    """`(folder that says what hosts are like, workspace of a page)`, in this process's environment."""
    folder, env = hosts
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    allowed = [Path(config["model_name_or_path"]), Path(config["dataset_dir"])]
    return folder, Workspace(workspace.root, allowed, confined=True)


def test_a_page_starts_a_run_over_hosts_that_outlives_it(as_page, config):  # noqa: F811
    workspace = as_page[1]
    parsed = validated(config | {"per_device_train_batch_size": 2})
    run = elsewhere.launch_over("127.0.0.1, node2:1", parsed, workspace, started_by="ann", notes={"group": "g"})
    assert run.stored_state().pid and run.notes() == {"group": "g"} and run.stored_state().started_by == "ann"
    wait_for(lambda: run.stored_state().ended, 120)
    assert (run.stored_state().state, run.stored_state().device) == ("finished", "2 × CPU")
    assert "[node2]" in run.log.read_text() or of(run.path, "loss")


def test_a_page_resumes_a_run_over_its_hosts(as_page, config):  # noqa: F811
    folder, workspace = as_page
    parsed = validated(config | {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2})
    run = elsewhere.launch_over("127.0.0.1, node2:1", parsed, workspace)
    wait_for(lambda: run.stored_state().ended, 120)
    assert run.stored_state().nodes == "127.0.0.1:1,node2:1" and run.state().state == "finished"
    before = run.stored_state()
    (folder / "node2.refuses").touch()
    with pytest.raises(UserError) as caught:
        elsewhere.resume(run, workspace, overrides={"max_steps": 6})
    assert caught.value.message.code == "node_unreached" and run.stored_state() == before  # as if nobody had asked
    assert run.config_values()["max_steps"] == 4
    (folder / "node2.refuses").unlink()
    said = elsewhere.resume(run, workspace, overrides={"max_steps": 6})
    assert said == f"{run.id} goes on over 127.0.0.1:1,node2:1 from checkpoint-4."
    wait_for(lambda: run.stored_state().ended, 120)
    state = run.stored_state()
    assert (state.state, state.step, state.device) == ("finished", 6, "2 × CPU"), state
    assert queue.queue(workspace) == []


def test_a_host_that_goes_between_the_check_and_the_start_is_the_runs_end(as_page, config, monkeypatch):  # noqa: F811
    folder, workspace = as_page
    parsed, make = validated(config), elsewhere.create_run

    def goes(*given, **named):
        (folder / "node2.refuses").touch()
        return make(*given, **named)

    monkeypatch.setattr(elsewhere, "create_run", goes)
    with pytest.raises(UserError) as caught:
        elsewhere.launch_over("127.0.0.1,node2", parsed, workspace)
    run = Run(newest(workspace))
    assert caught.value.message.code == "node_unreached" == run.state().reason.code
    assert run.state().state == "failed" and queue.queue(workspace) == []
    monkeypatch.setattr(elsewhere, "create_run", make)
    with pytest.raises(UserError):
        elsewhere.launch_over("127.0.0.1,node2", parsed, workspace)
    assert newest(workspace) == run.path  # refused before there was one
