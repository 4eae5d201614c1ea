"""The queue: which device goes to whom, order, what a stopped or corrupt run does to it."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.runs.job import new_directory
from workbench.runs.run import create_run
from workbench.runs.state import own_process, process_alive, process_of
from workbench.storage.workspace import Workspace
from workbench.train import devices, queue
from workbench.train.devices import assign, wanted_slots

CONFIG = {"model_name_or_path": "a/b", "dataset": "d"}


@pytest.fixture
def started(monkeypatch):
    """Runs that the queue would have started; they count as running in this process."""
    found = []

    def spawn(run, workspace, devices):
        run.update(state="running", devices=devices, **own_process())
        found.append(run.id)

    monkeypatch.setattr(queue, "_spawn", spawn)
    return found


def test_slots_that_a_run_takes():
    assert wanted_slots({}, ["cpu"]) == (["cpu"], 1)
    assert wanted_slots({"devices": "0,1"}, ["cpu"]) == (["cpu"], 1)
    assert wanted_slots({}, ["0", "1"]) == (["0", "1"], 1)
    assert wanted_slots({"devices": "1"}, ["0", "1"]) == (["1"], 1)
    assert wanted_slots({"devices": "cpu"}, ["0", "1"]) == (["cpu"], 1)
    assert wanted_slots({"device_map": "auto"}, ["0", "1"]) == (["0", "1"], 2)


def test_assign_in_order_and_nobody_overtakes_a_run_that_waits_for_several():
    one, both = (["0", "1"], 1), (["0", "1"], 2)
    assert assign([one, one, one], set()) == [["0"], ["1"], []]
    assert assign([one], {"0"}) == [["1"]]
    assert assign([both, one], {"0"}) == [[], []]
    assert assign([both, one], set()) == [["0", "1"], []]
    assert assign([(["1"], 1), (["0"], 1)], {"1"}) == [[], ["0"]]
    assert assign([both, (["cpu"], 1)], {"1"}) == [[], ["cpu"]]


def test_gpus_are_slots(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert devices.slots() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.slots() == ["cpu"]


def test_queue_order_moves_and_cancels(workspace, started):
    first, second, third = (create_run(workspace, validated(CONFIG | {"run_name": n})) for n in "abc")
    assert queue.queue(workspace) == [first, second, third]
    assert "number 1 of 3" in queue.move(third, workspace, -2)
    assert queue.queue(workspace) == [third, first, second]
    queue.move(third, workspace, 1)
    assert queue.queue(workspace) == [first, third, second]
    assert "taken out" in queue.stop(third, workspace) and third.state().state == "stopped"
    assert queue.start_queued(workspace) == [first] and started == [first.id]
    assert queue.start_queued(workspace) == []  # its device is busy
    with pytest.raises(UserError, match="not in the queue"):
        queue.move(first, workspace, 1)
    first.update(state="finished")
    assert queue.start_queued(workspace) == []  # it has not left yet
    first.update(ended=time.time())
    assert queue.start_queued(workspace) == [second]


def test_a_run_that_somebody_starts_by_hand_is_left_to_them(workspace, started):
    run = create_run(workspace, validated(CONFIG))
    lock = run.lock()
    assert queue.start_queued(workspace) == []
    os.close(lock)
    assert queue.start_queued(workspace) == [run]


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    devices.check_devices(validated(CONFIG | {"devices": "1"}))
    devices.check_devices(validated(CONFIG | {"devices": "cpu"}))
    with pytest.raises(UserError, match=r"devices: 3 is not there\. This machine has: 0, 1"):
        devices.check_devices(validated(CONFIG | {"devices": "0,3"}))


def test_a_corrupt_state_does_not_stop_the_queue(workspace, started):
    bad, good = create_run(workspace, validated(CONFIG)), create_run(workspace, validated(CONFIG))
    (bad.path / "state.json").write_text("{")
    assert queue.start_queued(workspace) == [good]


def test_a_read_only_page_changes_nothing(workspace):
    run = create_run(workspace, validated(CONFIG))
    other = Workspace(workspace.root, read_only=True)
    for action in (queue.stop, queue.resume, queue.delete, lambda r, w: queue.move(r, w, 1)):
        with pytest.raises(UserError, match="read-only"):
            action(run, other)
    assert run.state().state == "queued"


def test_a_process_is_the_same_one_whatever_the_clock_says(monkeypatch):
    """Times of start are counted from boot: a clock set back by an hour loses no run."""
    mine = own_process()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: now() - 3600)
    assert process_alive(mine["pid"], mine["pid_started"], mine["boot"])
    assert not process_alive(mine["pid"], mine["pid_started"] + 1, mine["boot"])
    assert not process_alive(mine["pid"], mine["pid_started"], "another boot")


def test_resume_wants_a_whole_checkpoint_and_an_ended_run(workspace, started):
    run = create_run(workspace, validated(CONFIG))
    with pytest.raises(UserError, match="still going"):
        queue.resume(run, workspace)
    run.update(state="failed", ended=time.time())
    with pytest.raises(UserError, match=r"no whole checkpoint '7'\. It has: none"):
        queue.resume(run, workspace, checkpoint="7")
    with pytest.raises(UserError, match="Unknown option 'lora_rnk'"):
        queue.resume(run, workspace, overrides={"lora_rnk": 1})
    lock = run.lock()
    with pytest.raises(UserError, match="still going"):
        queue.resume(run, workspace)
    os.close(lock)
    assert "from the beginning" in queue.resume(run, workspace) and started == [run.id]


def test_a_run_that_is_asked_to_stop_is_stopping_at_once_and_killed_only_when_that_is_meant(workspace, started):
    run = create_run(workspace, validated(CONFIG))
    code = "import signal, time; signal.signal(15, lambda *_: None); print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        owner = own_process() | {"pid": process.pid, "pid_started": process_of(process.pid)}
        run.update(state="running", devices="cpu", **owner)
        assert "Stop it again to kill it" in queue.stop(run, workspace, kill=False)
        assert run.stored_state().state == "running" and run.state().state == "stopping"
        assert "kill" not in queue.stop(run, workspace, kill=False)
        assert "is killed" in queue.stop(run, workspace)
    finally:
        process.kill()
        process.wait()


def test_a_queued_run_says_what_it_waits_for(workspace, started):
    going, first, second = (create_run(workspace, validated(CONFIG | {"run_name": n})) for n in "abc")
    assert queue.waits_for(first, workspace) == (2, [])
    going.update(state="running", devices="cpu", **own_process())
    assert queue.waits_for(going, workspace) == (0, [])
    assert queue.waits_for(first, workspace) == (1, [going.id])
    assert queue.waits_for(second, workspace) == (2, [going.id])


def job_of(workspace, **state):
    """A job for predictions, whose process is this one."""
    directory = new_directory(workspace.jobs, "predict-it")
    directory.update(state="running", **own_process(), **state)
    return directory


def test_a_job_takes_a_device_and_runs_wait_for_it(workspace, started, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    going = job_of(workspace, devices="cpu", position=time.time())
    run = create_run(workspace, validated(CONFIG))
    assert queue.start_queued(workspace) == [] and queue.waits_for(run, workspace) == (1, [going.id])
    assert devices.busy_slots(workspace) == {"cpu"}
    going.update(state="finished")
    assert devices.busy_slots(workspace) == set()
    assert [one.id for one in queue.start_queued(workspace)] == [run.id] == started


def test_a_job_waits_in_its_turn_and_nobody_overtakes_it(workspace, started, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    wish = (["0", "1"], 1)
    before = create_run(workspace, validated(CONFIG | {"devices": "0,1"}))
    now = time.time()
    waits = job_of(workspace, position=now)
    behind = create_run(workspace, validated(CONFIG | {"run_name": "later"}))
    assert queue.job_waits_for(wish, workspace, now) == ([], [before.id])
    assert queue.start_queued(workspace) == [before] and started == [before.id]  # not the one behind the job
    assert queue.job_waits_for(wish, workspace, now) == ([], [before.id])
    before.update(state="finished", pid=None)
    assert queue.job_waits_for(wish, workspace, now) == (["0"], [])
    assert queue.job_waits_for((["1"], 1), workspace, now) == (["1"], [])
    waits.update(devices="0")
    assert queue.start_queued(workspace) == [behind] and behind.state().devices == "1"
    assert queue.job_waits_for(wish, workspace, time.time()) == ([], [behind.id, waits.id])


def test_a_job_that_died_holds_nothing(workspace, started, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    directory = job_of(workspace, devices="cpu", position=1.0)
    directory.update(pid=process.pid)
    process.wait()
    assert devices.busy_slots(workspace) == set() and queue.job_waits_for((["cpu"], 1), workspace, 2.0) == (["cpu"], [])


def test_a_job_says_what_it_waits_for_and_takes_what_is_free(workspace, started, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    going = create_run(workspace, validated(CONFIG))
    going.update(state="running", devices="cpu", **own_process())
    directory, seen = job_of(workspace), []

    def look(seconds):
        seen.append(directory.stored_state().phase)
        if len(seen) == 3:
            going.update(state="finished", pid=None)

    monkeypatch.setattr(queue.time, "sleep", look)
    assert queue.take_slots(directory, "auto", workspace) == "cpu"
    assert seen == [f"waits for {going.id}"] * 3
    state = directory.stored_state()
    assert (state.devices, state.phase) == ("cpu", "")
