"""The Train tab's fold for where a run trains: Slurm and hosts, which are programs of the same names here."""

import os
from types import SimpleNamespace

import pytest

from tests import fake_slurm, fake_ssh
from workbench.data.worker_client import DataWorker
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.runs.run import list_runs
from workbench.storage.users import User
from workbench.storage.workspace import Workspace
from workbench.train import queue, slurm
from workbench.ui import people
from workbench.ui.page import Page
from workbench.ui.tabs.train.where_panel import Where

ENGLISH, CHINESE = (
    SimpleNamespace(
        cookies={}, headers={"accept-language": lang}, client=SimpleNamespace(host="h"), session_hash="s"
    )
    for lang in ("en", "zh-CN")
)  # fmt: skip
GPU = ("slurm", "", "gpu", "1-00:00:00", "me", 2, 1, 8, "--constraint=h100&nvlink\n\n --mem=8G ")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page of somebody who may be hostile; model and data are not looked at."""
    workspace = Workspace(tmp_path / "w", confined=True).create()
    monkeypatch.setattr(DataWorker, "ask", lambda *_, **__: None)
    return Page(workspace, Engine(workspace))


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The folder of Slurm's jobs, which wait."""
    folder = tmp_path / "slurm"
    for name, value in fake_slurm.install(folder).items():
        monkeypatch.setenv(name, value)
    (folder / "hold").touch()
    return folder


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    folder = tmp_path / "hosts"
    for name, value in fake_ssh.install(folder).items():
        monkeypatch.setenv(name, value)
    return folder


def begin(page, *where, lang=ENGLISH, group="", **values):
    contents = page.train.form.fill({"model_name_or_path": "m", "dataset": "d", **values})
    return page.train.begin(lang, page.train.first, group, *contents, *where)


def test_a_run_is_submitted_and_taken_out_again(page, jobs):
    message, listed, _ = begin(page, *GPU, group="tries", lora_rank=5)
    run = list_runs(page.workspace)[0]
    assert "wb-note ok" in message and f"{run.id}: Slurm has it as job 101." in message and listed.value == run.id
    state = run.state()
    assert (state.state, state.slurm, state.reason.code) == ("queued", "101", "slurm_waits")
    asked = fake_slurm.job_of(jobs, 101)["options"]
    assert (asked["partition"], asked["time"], asked["account"], asked["gres"]) == ("gpu", "1-00:00:00", "me", "gpu:2")
    assert (asked["constraint"], asked["mem"], asked["cpus-per-task"]) == ("h100&nvlink", "8G", "8")
    assert run.notes() == {"group": "tries"} and run.config_values()["lora_rank"] == 5
    assert queue.queue(page.workspace) == []  # this machine's own does not take it
    assert "taken out of Slurm" in str(queue.stop(run, page.workspace))
    assert fake_slurm.job_of(jobs, 101)["state"].startswith("CANCELLED")


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ({"partition": "gpu\n#SBATCH --output=/etc/x"}, "slurm_value"),
        ({"partition": "gpu --wrap=id"}, "slurm_value"),
        ({"account": "$(id)"}, "slurm_value"),
        ({"time": "1:00;id"}, "slurm_value"),
        ({"gpus": 1.5}, "slurm_value"),
        ({"gpus": "4"}, "slurm_value"),
        ({"gpus": None}, "slurm_value"),
        ({"gpus": float("nan")}, "slurm_value"),
        ({"nodes": 0}, "slurm_value"),
        ({"nodes": 10**9}, "slurm_value"),
        ({"cpus": -1}, "slurm_value"),
        ({"lines": "--output=/home/me/.bashrc"}, "slurm_option"),
        ({"lines": "--mem=8G\n--export=ALL,LD_PRELOAD=/tmp/x.so"}, "slurm_option"),
        ({"lines": "--chdir=/"}, "slurm_option"),
        ({"lines": "--wrap=id"}, "slurm_option"),
        ({"lines": "--container=/x"}, "slurm_option"),
        ({"lines": "-o/tmp/x"}, "slurm_option"),
        ({"lines": "--mem=8G --output=/tmp/x"}, "slurm_option"),
        ({"lines": "--comment='a b'"}, "slurm_option"),
        ({"lines": "--comment=a\x00b"}, "slurm_option"),
        ({"lines": "--comment=%j"}, "slurm_option"),
        ({"lines": "rm -rf /"}, "slurm_option"),
        ({"lines": "--mem=1\n" * 99}, "slurm_value"),
        ({"partition": ["gpu"]}, "slurm_value"),
        ({"lines": {"a": 1}}, "slurm_option"),
    ],
)
def test_what_comes_from_a_browser_is_looked_at_before_anything_is_made(page, jobs, where, code):
    given = Where.of("slurm", **{"gpus": 1, "nodes": 1, "cpus": 0} | where)
    config = page.train.form.config(page.train.form.fill({"model_name_or_path": "m", "dataset": "d"}))
    with pytest.raises(UserError) as caught:
        given.launch(config, page.workspace, lambda *_: None, {})
    assert caught.value.message.code == code
    assert not list_runs(page.workspace) and not list(jobs.glob("*.json"))


def test_slurms_refusal_and_its_absence_are_told_beside_start(page, jobs, monkeypatch):
    message, *_ = begin(page, "slurm", "", "nowhere", "", "", 1, 1, 0, "")
    assert "wb-note bad" in message and "Invalid partition name specified" in message
    assert list_runs(page.workspace)[0].state().state == "failed"  # as on the command line
    message, *_ = begin(page, "slurm", "", "gpu", "", "", 1, 2, 0, "", devices="0")
    assert "devices: 0 names devices of one host" in message
    monkeypatch.setenv("PATH", os.defpath)
    message, *_ = begin(page, *GPU, lang=CHINESE)
    assert "wb-note bad" in message and "此处没有 Slurm" in message and len(list_runs(page.workspace)) == 1


def test_paths_are_confined_there_too(page, jobs):
    message, *_ = begin(page, *GPU, output_dir="/etc/workbench")
    assert "wb-note bad" in message and not list_runs(page.workspace) and not list(jobs.glob("*.json"))


@pytest.mark.parametrize(
    "names", ["", "-oProxyCommand=id,b", "127.0.0.1,a b", "127.0.0.1,$(id)", "127.0.0.1,a;id", "127.0.0.1,me@-x", "a,a"]
)
def test_what_is_no_host_is_never_given_to_ssh(page, hosts, names):
    message, *_ = begin(page, "hosts", names)
    assert "wb-note bad" in message and "is no host" in message
    assert not list(hosts.glob("*.pid")) and not list_runs(page.workspace)


def test_hosts_that_do_not_answer_are_told_and_no_run_is_made(page, hosts):
    (hosts / "node2.refuses").touch()
    message, *_ = begin(page, "hosts", "127.0.0.1:1, node2")
    assert "node2 cannot be reached" in message and "No route to host" in message
    assert "is no address of this host" in begin(page, "hosts", "192.0.2.7,node2")[0]
    assert "不能与 --nodes 一起使用" in begin(page, "hosts", "127.0.0.1,node2", lang=CHINESE, device_map="auto")[0]
    assert not list_runs(page.workspace)


def test_other_hosts_take_the_role_admin(page, hosts, jobs):
    token = people._current.set(User("ann", "train", "hash"))
    try:
        message, *_ = begin(page, "hosts", "127.0.0.1,node2")
        assert "takes the role admin" in message and not list(hosts.glob("*.pid"))
        assert "Slurm has it as job 101" in begin(page, *GPU)[0]
        assert list_runs(page.workspace)[0].state().started_by == "ann"
    finally:
        people._current.reset(token)


def test_a_choice_that_is_none_is_this_machine(page, monkeypatch):
    monkeypatch.setattr(queue, "start_queued", lambda workspace: [])
    for kind in ("here", "", None, "cloud", 7):
        message, *_ = begin(page, kind)
        assert "wb-note bad" not in message, message
    assert len(queue.queue(page.workspace)) == 5


def test_the_fold_shows_what_belongs_to_the_choice(page):
    shown = {kind: [part["visible"] for part in page.train.where.shown(kind)] for kind in ("here", "hosts", "slurm")}
    assert shown == {"here": [False, False], "hosts": [True, False], "slurm": [False, True]}
    page.build()
    names = [part.elem_id for part in page.train.where.components]
    assert names[:2] == ["where-kind", "where-hosts"] and len(names) == 9


def test_the_batch_file_quotes_what_a_page_gave(page, jobs):
    begin(page, *GPU, run_name='$(id) `id` "a"')
    run = list_runs(page.workspace)[0]
    text = (run.path / slurm.FILE).read_text()
    assert "$(id)" not in text and "`" not in text
    assert fake_slurm.options_of(str(run.path / slurm.FILE))["signal"] == "B:TERM@120"
