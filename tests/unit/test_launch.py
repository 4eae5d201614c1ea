"""Processes of a run that are started, watched and ended as one; here shell scripts stand for trainers."""

import os
import subprocess
import time

import pytest

from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import create_run
from workbench.train import devices, launch
from workbench.train.launch import Processes, environments, process_count

CONFIG = {"model_name_or_path": "m", "dataset": "d"}


def started(*scripts: str) -> Processes:
    """Processes that run these scripts, which know their number as $RANK."""
    processes = Processes()
    command = lambda own, group: subprocess.Popen(  # noqa: E731
        ["sh", "-c", scripts[int(own.get("RANK", 0))]], env=os.environ | own, process_group=group
    )
    processes.start(command, environments(len(scripts)))
    return processes


@pytest.mark.parametrize(
    ("values", "given", "count"),
    [
        ({"devices": "0,1"}, "0,1", 2),
        ({"devices": "all"}, "0,1,2,3", 4),
        ({"devices": "auto"}, "0", 1),
        ({"devices": "0,1", "device_map": "auto"}, "0,1", 1),
        ({"devices": "cpu"}, "cpu", 1),
        ({"devices": "cpu,cpu"}, "cpu", 2),
        ({"devices": "all"}, "cpu", 1),
    ],
)
def test_how_many_processes(values, given, count):
    assert process_count(validated(CONFIG | values), given) == count


@pytest.mark.parametrize("value", ["0,0", "0,cpu", "auto,1", "all,0", "cpu,auto", "x"])
def test_devices_that_do_not_go_together(value):
    with pytest.raises(UserError, match="devices: "):
        validated(CONFIG | {"devices": value})


def test_all_devices_are_wanted_at_once():
    assert devices.wanted_slots({"devices": "all"}, ["0", "1", "2"]) == (["0", "1", "2"], 3)
    assert devices.wanted_slots({"devices": "all"}, ["cpu"]) == (["cpu"], 1)


def test_variables_are_those_of_torchrun(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environments(1) == [{}]
    first, second = environments(2, first=2, size=4, address="host", port=29500)
    assert second == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500",
        "OMP_NUM_THREADS": "3",
    }  # fmt: skip
    assert first == second | {"RANK": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize("values", [{"use_badam": True}, {"use_galore": True, "galore_layerwise": True}])
def test_an_optimizer_that_acts_within_the_backward_pass_trains_alone(values):
    values = CONFIG | values | {"finetuning_type": "full", "gradient_accumulation_steps": 1}
    validated(values | {"devices": "0"})
    validated(values | {"devices": "0,1", "device_map": "auto"})
    with pytest.raises(UserError, match="Train on one device"):
        validated(values | {"devices": "0,1"})


def test_all_are_done():
    assert started("sleep 0.3", "exit 0", "exit 0").wait() == (0, 0)


def test_a_first_one_that_ends_at_once_says_why():
    """Its process group, which the others join, is gone then."""
    processes = Processes()

    def command(own, group):
        process = subprocess.Popen(["sh", "-c", "exit 4"], process_group=group)
        process.wait()
        return process

    processes.start(command, environments(2))
    assert processes.wait() == (0, 4) and len(processes.all) == 1


def test_the_first_that_fails_decides_and_nobody_is_left(monkeypatch):
    monkeypatch.setattr(launch, "FAILED_SECONDS", 0.2)
    processes = started("sleep 600", "exit 3", "sleep 600 & wait")
    assert processes.wait() == (1, 3)
    assert not processes.running
    with pytest.raises(ProcessLookupError):  # not even the child of a child
        for _ in range(200):
            os.killpg(processes.first.pid, 0)
            time.sleep(0.02)


def test_what_the_others_say_after_the_first_failure_changes_nothing():
    assert started("sleep 0.5; exit 1", "exit 2").wait() == (1, 2)


def test_one_that_never_ends_after_the_first_is_done_is_killed(monkeypatch):
    """What the first has saved is whole then: the run is no failure."""
    monkeypatch.setattr(launch, "DONE_SECONDS", 0.2)
    processes = started("sleep 0.3", "sleep 600")
    number, code = processes.wait()
    assert not processes.running and (number, code) == (0, 0)
    assert processes.all[1].returncode == -9


def test_a_reason_is_kept_for_the_supervisor(workspace):
    run = create_run(workspace, validated(CONFIG))
    assert launch.read_failure(run, 1) == ""
    launch.write_failure(run, 1, Message("gpu_memory"))
    assert launch.read_failure(run, 1) == Message("gpu_memory")
    launch.failure_file(run, 2).write_text("[" * 100_000)
    assert launch.read_failure(run, 2) == ""
    launch.forget_failures(run)
    assert not list(run.path.glob(".failed*"))
