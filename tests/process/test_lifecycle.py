"""Faults that really happen to real runs: kills, full disks, restarts of the page. docs/reliability.md has the
table."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.browser.conftest import Page
from tests.process.test_train import BASE, only_run, rows_of, state_of, workbench, write
from tests.tiny import make_tiny_data
from workbench.runs.run import Run, is_whole, step_of
from workbench.storage.workspace import Workspace

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process


@pytest.fixture
def config(tiny_model, tiny_data):
    return BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data)}


@pytest.fixture(scope="module")
def finished_once(tiny_model, tmp_path_factory) -> Path:
    """A finished run of six steps with three checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    data = {"model_name_or_path": str(tiny_model), "dataset_dir": str(make_tiny_data(folder / "data"))}
    place = Workspace(folder / "workspace").create()
    assert workbench(place, "train", write(folder, BASE | data | {"max_steps": 6, "save_steps": 2})).returncode == 0
    return only_run(place)


@pytest.fixture
def finished(finished_once, workspace) -> Path:
    """A copy of that run in a workspace of the test's own."""
    return Path(shutil.copytree(finished_once, workspace.runs / finished_once.name))


def begin(workspace, file, **environment) -> subprocess.Popen:
    command = [sys.executable, "-m", "workbench", "train", str(file), "--workspace", str(workspace.root)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )


def read_until(process, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"The run ended before it said '{words}'.")


def wait_for(condition, seconds: float = 120):
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("It did not happen.")


def trainer_of(process) -> psutil.Process:
    return wait_for(lambda: psutil.Process(process.pid).children())[0]


def steps_of(path) -> list[int]:
    return [row["current_steps"] for row in rows_of(path) if "loss" in row]


def losses_of(path) -> dict[int, float]:
    return {row["current_steps"]: row["loss"] for row in rows_of(path) if "loss" in row}


def ended(path, *states) -> bool:
    state = Run(path).state()
    return state.state in (states or ("finished",)) and state.ended is not None


def test_killed_in_a_step_and_resumed_equals_an_uninterrupted_run(workspace, config, tmp_path):
    values = config | {"max_steps": 40, "save_steps": 5, "lora_dropout": 0.1}
    file = write(tmp_path, values)
    assert workbench(workspace, "train", file).returncode == 0
    whole = only_run(workspace)

    process = begin(workspace, file)
    read_until(process, "step 7/")
    trainer_of(process).kill()
    process.stdout.read()
    assert process.wait(60) == 1
    (killed,) = set(workspace.runs.iterdir()) - {whole}
    assert state_of(killed)["state"] == "failed" and "SIGKILL" in state_of(killed)["reason"]
    last = step_of(Run(killed).checkpoints()[-1])
    assert last >= 5

    said = workbench(workspace, "resume", killed.name).stdout
    assert f"goes on from checkpoint-{last}" in said
    wait_for(lambda: ended(killed))
    assert steps_of(killed) == list(range(1, 41))
    ours, theirs = losses_of(killed), losses_of(whole)
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < 1e-5
    tokens = [row["total_tokens"] for row in rows_of(killed) if "loss" in row]
    seconds = [row["elapsed_seconds"] for row in rows_of(killed)]
    assert tokens == [row["total_tokens"] for row in rows_of(whole) if "loss" in row] and seconds == sorted(seconds)


def test_resume_from_an_earlier_checkpoint_and_more_steps(workspace, finished):
    path = finished
    before = losses_of(path)
    done = workbench(workspace, "resume", path.name, "--checkpoint", "2", "--set", "max_steps=8")
    assert "goes on from checkpoint-2" in done.stdout
    wait_for(lambda: ended(path))
    assert steps_of(path) == list(range(1, 9)) and losses_of(path)[2] == before[2]
    assert [step_of(p) for p in Run(path).checkpoints()] == [2, 4, 6, 8]
    (aside,) = (path / "superseded").iterdir()
    assert is_whole(aside / "checkpoint-6") and len((aside / "trainer_log.jsonl").read_text().splitlines()) == 6
    assert yaml.safe_load((path / "run-until-6.yaml").read_text())["max_steps"] == 6
    assert workbench(workspace, "resume", path.name, "--checkpoint", "3").returncode == 2


def test_killed_in_a_save_leaves_no_checkpoint_that_resume_would_load(workspace, config, tmp_path):
    process = begin(workspace, write(tmp_path, config | {"max_steps": 3000, "save_steps": 1, "save_total_limit": 2}))
    read_until(process, "step 2/")
    path, trainer = only_run(workspace), trainer_of(process)
    while not list(path.glob(".saving/checkpoint-*/*.safetensors")):  # the save has begun and is not done
        assert process.poll() is None
    trainer.kill()
    process.stdout.read()
    process.wait(60)
    there = Run(path).checkpoints()
    assert 1 <= len(there) <= 3 and all(is_whole(p) for p in path.glob("checkpoint-*"))
    last = step_of(there[-1])
    assert "goes on" in workbench(workspace, "resume", path.name, "--set", f"max_steps={last + 2}").stdout
    wait_for(lambda: ended(path))
    assert steps_of(path) == list(range(1, last + 3)) and not (path / ".saving").exists()


def test_a_damaged_checkpoint_is_passed_over(workspace, finished):
    path = finished
    (path / "checkpoint-6" / "optimizer.pt").unlink()
    with open(path / "trainer_log.jsonl", "a") as log:
        log.write('{"current_steps": 7, "lo')  # cut off in the middle of a line
    assert "goes on from checkpoint-4" in workbench(workspace, "resume", path.name).stdout
    wait_for(lambda: ended(path))
    assert steps_of(path) == [1, 2, 3, 4, 5, 6]


def test_stop_while_the_model_loads(workspace, config, tmp_path):
    process = begin(workspace, write(tmp_path, config))
    path = wait_for(lambda: next(workspace.runs.iterdir(), None))
    wait_for(lambda: Run(path).state().pid and Run(path).state().state == "starting")
    assert "stops" in workbench(workspace, "stop", path.name).stdout
    process.stdout.read()
    assert process.wait(60) == 0
    assert (state_of(path)["state"], state_of(path)["reason"]) == ("stopped", "Stopped before training began.")


@pytest.mark.parametrize("how", ["twice", "no answer"])
def test_a_trainer_that_hangs_is_killed(workspace, config, tmp_path, how):
    grace = {"WORKBENCH_STOP_GRACE": "1"} if how == "no answer" else {}
    process = begin(workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 4}), **grace)
    read_until(process, "step 6/")
    path, trainer = only_run(workspace), trainer_of(process)
    trainer.suspend()
    assert "Stop it again to kill it" in workbench(workspace, "stop", path.name).stdout
    if how == "twice":
        assert "is killed" in workbench(workspace, "stop", path.name).stdout
    process.stdout.read()
    assert process.wait(60) == 0 and not trainer.is_running()
    state = state_of(path)
    words = "Stop was pressed twice" if how == "twice" else "did not answer to Stop within 1 s"
    assert (
        state["state"] == "stopped"
        and words in state["reason"]
        and "its last checkpoint is checkpoint-" in state["reason"]
    )


def test_a_trainer_without_its_supervisor_can_be_killed(workspace, config, tmp_path):
    process = begin(workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 4}))
    read_until(process, "step 6/")
    path, trainer = only_run(workspace), trainer_of(process)
    trainer.suspend()  # it hangs, and its supervisor dies
    process.kill()
    process.wait(10)
    trainer.suspend()  # the kernel may have let it go on: its process group is an orphan now
    listed = json.loads(workbench(workspace, "runs", "--json").stdout)[0]
    assert listed["state"] in ("stopping", "running")  # it may have taken over before it hung again
    assert "Stop it again to kill it" in workbench(workspace, "stop", path.name).stdout
    assert "is killed" in workbench(workspace, "stop", path.name).stdout
    wait_for(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE)
    assert ended(path, "stopped") and "pressed twice" in state_of(path)["reason"]


def test_stop_keeps_its_checkpoint_beside_the_best_one_and_nothing_is_trained_beyond_the_end(
    workspace, config, tmp_path
):
    values = config | {
        "max_steps": 3000, "val_size": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1,
        "num_train_epochs": 1.0,
    }  # fmt: skip
    process = begin(workspace, write(tmp_path, values))
    read_until(process, "step 5/")
    path = only_run(workspace)
    workbench(workspace, "stop", path.name)
    process.stdout.read()
    assert process.wait(60) == 0
    last = state_of(path)["step"]
    assert state_of(path)["state"] == "stopped" and step_of(Run(path).checkpoints()[-1]) == last
    workbench(workspace, "resume", path.name, "--set", f"max_steps={last + 1}")
    wait_for(lambda: ended(path))
    workbench(workspace, "resume", path.name)  # at its last step already
    wait_for(lambda: ended(path) and "Nothing is left to train" in state_of(path)["reason"])
    assert steps_of(path) == list(range(1, last + 2))


def test_a_second_process_of_a_run_is_refused(workspace, config, tmp_path):
    process = begin(workspace, write(tmp_path, config | {"max_steps": 5000}))
    read_until(process, "step 2/")
    path = only_run(workspace)
    for arguments in (("train", path), ("resume", path.name)):
        again = workbench(workspace, *arguments)
        assert again.returncode == 2 and "is still going" in again.stderr
    (path / "state.json").write_text("{")  # even when the state says nothing
    again = workbench(workspace, "train", path)
    assert again.returncode == 2 and "is still going" in again.stderr
    process.terminate()
    process.stdout.read()
    process.wait(60)


def test_full_disk(config, tmp_path):
    """On a small file system of its own: the run says what is wrong, and goes on when there is room again."""
    place = tmp_path / "small-disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs rights that are missing here")
    try:
        workspace = Workspace(place / "workspace").create()
        process = begin(workspace, write(tmp_path, config | {"max_steps": 5000, "save_steps": 20}))
        read_until(process, "step 25/")
        ballast = place / "ballast"
        with pytest.raises(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        process.stdout.read()
        assert process.wait(60) == 1
        path = only_run(workspace)
        state = state_of(path)
        assert state["state"] == "failed" and "The disk is full" in state["reason"], state
        last = step_of(Run(path).checkpoints()[-1])
        assert last >= 20 and all(is_whole(p) for p in path.glob("checkpoint-*"))
        ballast.unlink()
        workbench(workspace, "resume", path.name, "--set", f"max_steps={last + 3}")
        wait_for(lambda: ended(path))
        assert steps_of(path) == list(range(1, last + 4))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_queue_without_a_page_two_started_in_the_same_second(workspace, config, tmp_path):
    file = write(tmp_path, config | {"max_steps": 3})
    command = [sys.executable, "-m", "workbench", "queue", "add", str(file), "--workspace", str(workspace.root)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = [process.communicate(timeout=60)[0].strip() for process in both]
    assert len(set(names)) == 2
    waiting = json.loads(workbench(workspace, "queue", "list", "--json").stdout)
    assert len(waiting) == 1
    paths = [workspace.runs / name for name in names]
    wait_for(lambda: all(ended(path) for path in paths))
    first, second = sorted((state_of(path) for path in paths), key=lambda state: state["started"])
    assert second["started"] >= first["ended"]


def test_the_page_killed_with_one_run_going_and_two_queued(workspace, config, tmp_path):
    page = Page(workspace.root)
    try:
        going = workbench(workspace, "queue", "add", write(tmp_path, config | {"max_steps": 5000})).stdout.strip()
        queued = [
            workbench(workspace, "queue", "add", write(tmp_path, config | {"max_steps": 2})).stdout.strip()
            for _ in range(2)
        ]
        wait_for(
            lambda: (
                len(rows_of(workspace.runs / going)) > 2
                if (workspace.runs / going / "trainer_log.jsonl").exists()
                else 0
            )
        )
        page.process.send_signal(signal.SIGKILL)
        page.process.wait(10)
        seen = len(rows_of(workspace.runs / going))
        wait_for(lambda: len(rows_of(workspace.runs / going)) > seen + 5)  # it goes on meanwhile
        page.start()
        listed = {run["id"]: run["state"] for run in json.loads(workbench(workspace, "runs", "--json").stdout)}
        assert listed[going] == "running" and [listed[name] for name in queued] == ["queued", "queued"]
        workbench(workspace, "stop", going)
        wait_for(lambda: all(ended(workspace.runs / name) for name in queued))
        assert ended(workspace.runs / going, "stopped")
        starts = [state_of(workspace.runs / name) for name in queued]
        assert starts[1]["started"] >= starts[0]["ended"]
    finally:
        page.end()


def test_a_second_page_says_so_and_may_look_on(workspace):
    page = Page(workspace.root)
    try:
        command = [sys.executable, "app.py", "--port", "0", "--workspace", str(workspace.root)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and f"Another page works on this workspace: {page.url}" in second.stderr
        watching = Page(workspace.root, "--read-only")
        watching.end()
    finally:
        page.end()
    Page(workspace.root).end()  # and the next one is the first again


def test_early_stopping_samples_and_webhook(workspace, config, tmp_path):
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    values = config | {
        "max_steps": 50, "val_size": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "early_stopping_steps": 3,
        "learning_rate": 1e-12, "sample_prompts": ["One, two?", "Three?"], "sample_max_new_tokens": 4,
        "webhook_url": f"http://127.0.0.1:{server.server_port}/end",
    }  # fmt: skip
    done = workbench(workspace, "train", write(tmp_path, values))
    server.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    path = only_run(workspace)
    state = state_of(path)
    assert state["state"] == "finished" and 6 <= state["step"] < 50
    assert got == [
        {"id": path.name, "state": "finished", "reason": state["reason"], "step": state["step"], "total_steps": 50}
    ]
    said = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in said} == {"One, two?", "Three?"}
    assert sorted({row["current_steps"] for row in said}) == list(range(0, state["step"] + 1, 2))
    shown = json.loads(workbench(workspace, "show", path.name, "--json").stdout)
    assert shown["state"] == "finished" and shown["last"]["loss"] and shown["checkpoints"]


def test_a_dataset_that_is_gone_and_a_missing_model_file(workspace, config, tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    done = workbench(workspace, "train", write(tmp_path, config | {"model_name_or_path": str(model)}))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    state = state_of(only_run(workspace))
    assert state["state"] == "failed" and str(model) in state["reason"]
