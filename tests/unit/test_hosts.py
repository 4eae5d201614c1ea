"""Runs of other hosts in a shared workspace: who is alive there is told by heartbeats, stamped by the file server."""

import errno
import fcntl
import os
import time

import pytest

from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import heartbeat, hosts, job
from workbench.runs.run import create_run, delete_run
from workbench.runs.state import own_process
from workbench.storage.locks import is_held, locked, try_lock
from workbench.train import devices, queue
from workbench.ui import monitor

CONFIG = {"model_name_or_path": "a/b", "dataset": "d"}
AWAY = {"pid": 4, "pid_started": 1.0, "boot": "another machine", "host": "alpha"}


@pytest.fixture(autouse=True)
def fresh_clocks():
    heartbeat._clocks.clear()
    heartbeat._stamps.clear()


def silent_for(run, seconds: float) -> None:
    """As if the owner had written its last sign so many seconds ago."""
    (run.path / ".heartbeat").touch()
    for name in (".heartbeat", "state.json"):
        os.utime(run.path / name, (time.time() - seconds,) * 2)


@pytest.fixture
def away(workspace):
    """A run that goes on on the host alpha."""
    run = create_run(workspace, validated(CONFIG))
    run.update(state="running", devices="cpu", **AWAY)
    return run


def test_a_host_with_a_name_of_its_own_is_another_one(monkeypatch):
    here, name = hosts.boot(), hosts.name()
    assert hosts.is_here(here) and hosts.is_here("")
    monkeypatch.setenv("WORKBENCH_HOST", " beta\nand more ")
    assert hosts.name() == "beta and more" != name
    assert not hosts.is_here(here)
    assert own_process()["host"] == "beta and more"


def test_a_run_elsewhere_is_alive_then_quiet_then_lost_and_alive_again(away):
    assert away.state().state == "running" and not away.state().warning
    silent_for(away, heartbeat.QUIET + 5)
    state = away.state()
    assert state.state == "running" and state.warning.code == "host_quiet"
    assert state.warning.values == {"host": "alpha", "seconds": 30}
    silent_for(away, heartbeat.LOST + 1)
    state = away.state()
    assert state.state == "lost" and state.reason.code == "host_lost" and "alpha" in state.reason
    (away.path / ".heartbeat").touch()
    assert away.state().state == "running"


def test_a_clock_that_is_wrong_changes_nothing(away, monkeypatch):
    now = time.time
    for wrong in (-7200, 7200):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: now() + wrong)
        assert away.state().state == "running" and not away.state().warning
    monkeypatch.setattr(time, "time", now)
    silent_for(away, heartbeat.LOST + 1)
    monkeypatch.setattr(time, "time", lambda: now() - 7200)
    assert away.state().state == "lost"


def test_where_nothing_can_be_written_the_change_of_the_stamp_counts(away, monkeypatch):
    def refused(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    passed = [1000.0]
    monkeypatch.setattr(heartbeat.tempfile, "NamedTemporaryFile", refused)
    monkeypatch.setattr(time, "monotonic", lambda: passed[0])
    silent_for(away, 9999)
    assert heartbeat.silence(away.path) == 0
    passed[0] += 70
    assert heartbeat.silence(away.path) == 70
    (away.path / ".heartbeat").touch()
    assert heartbeat.silence(away.path) == 0


def test_this_host_started_anew_does_not_wait_for_the_long_limit(away):
    away.update(host=hosts.name())
    assert away.state().state == "running"
    silent_for(away, heartbeat.QUIET + 1)
    assert away.state().reason.code == "process_gone"


def test_what_goes_on_elsewhere_is_neither_deleted_nor_resumed(workspace, away):
    for action in (delete_run, lambda run: queue.resume(run, workspace)):
        with pytest.raises(UserError) as error:
            action(away)
        assert error.value.message.code == "run_going_on" and "alpha" in str(error.value)
    silent_for(away, heartbeat.LOST + 1)
    lock = away.lock()  # as a file server may keep it for a dead host
    with pytest.raises(UserError) as error:
        delete_run(away)
    assert error.value.message.code == "lock_elsewhere"
    os.close(lock)
    delete_run(away)
    assert not away.path.exists()


def test_stop_asks_by_a_file_and_signals_nobody(workspace, away, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *a: pytest.fail("a pid of another host was signaled"))
    monkeypatch.setattr(os, "killpg", lambda *a: pytest.fail("a group of another host was signaled"))
    assert queue.stop(away, workspace).code == "run_stop_asked"
    assert away.state().state == "stopping" and heartbeat.requests(away.path) == 1
    assert queue.stop(away, workspace, kill=False).code == "run_is_stopping" and heartbeat.requests(away.path) == 1
    assert queue.stop(away, workspace).code == "run_kill_asked" and heartbeat.requests(away.path) == 2
    export = job.new_directory(workspace.jobs, "export-x")
    export.update(state="running", **AWAY)
    job.stop_job(export)
    assert heartbeat.requests(export.path) == 1 and export.state().state == "running"


def test_a_folder_of_another_user_cannot_be_asked_to_stop(workspace, away, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(queue, "ask_stop", refused)
    with pytest.raises(UserError) as error:
        queue.stop(away, workspace)
    assert error.value.message.code == "run_stop_unwritten" and "Permission denied" in str(error.value)


def test_the_queue_starts_and_counts_only_what_is_here(workspace, away, monkeypatch):
    started = []

    def spawn(run, workspace, given):
        started.append((run.id, given))
        run.update(state="finished", ended=1.0)

    monkeypatch.setattr(queue, "_spawn", spawn)
    theirs, ours = (create_run(workspace, validated(CONFIG | {"run_name": name})) for name in ("theirs", "ours"))
    theirs.update(host="alpha")
    assert devices.busy_slots(workspace) == set()  # alpha's CPU is not ours
    assert queue.queue(workspace) == [ours] and queue.waits_for(ours, workspace) == (1, [])
    assert [run.id for run in queue.start_queued(workspace)] == [ours.id] and started == [(ours.id, "cpu")]
    with pytest.raises(UserError) as error:
        queue.move(theirs, workspace, -1)
    assert error.value.message.code == "queued_elsewhere"
    assert queue.stop(theirs, workspace).code == "run_taken_out"
    queue.resume(theirs, workspace)
    assert theirs.stored_state().host == hosts.name() and started[-1] == (theirs.id, "cpu")


def test_the_card_says_where_the_run_is(workspace, away):
    html, token = monitor.status_html(away, "en"), monitor.change_token(away, "en", False)
    assert "on alpha" in html and "sign of life" not in html
    silent_for(away, heartbeat.QUIET + 12)
    assert "No sign of life from alpha for 40 s." in monitor.status_html(away, "en")
    assert "主机 alpha 已有 40 秒" in monitor.status_html(away, "zh")
    assert monitor.change_token(away, "en", False) != token
    waiting = create_run(workspace, validated(CONFIG))
    waiting.update(host="<b>gamma")
    assert "queue of &lt;b&gt;gamma" in monitor.status_html(waiting, "en")


def test_the_card_of_a_run_that_waits_in_slurm(workspace):
    run = create_run(workspace, validated(CONFIG), host="", slurm="7", reason=Message("slurm_waits", job="7"))
    assert queue.queue(workspace) == [] and queue.start_queued(workspace) == []
    html = monitor.status_html(run, "en")
    assert "Waits in Slurm as job 7." in html and "queue of" not in html and " on <" not in html
    assert "作业号 7" in monitor.status_html(run, "zh")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".lock").touch()
    for take in (try_lock, lambda path: locked(path).__enter__()):
        with pytest.raises(UserError) as error:
            take(tmp_path / ".lock")
        assert error.value.message.code == "no_locks" and "No locks available" in str(error.value)
    assert not is_held(tmp_path / ".lock")
