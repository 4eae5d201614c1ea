"""Where a run trains, chosen in a browser: a job of Slurm, and several hosts. Both are programs of the same names."""

import os

import pytest
from playwright.sync_api import expect

from tests import fake_slurm, fake_ssh
from tests.browser.conftest import Page, open_part
from tests.process.test_lifecycle import wait_for
from workbench.runs.run import list_runs
from workbench.storage.workspace import DEMO_MODEL, Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture
def page(tmp_path, monkeypatch, demo_model):
    space = Workspace(tmp_path / "w").create()
    (space.models / DEMO_MODEL).symlink_to(demo_model)
    slurm, ssh = tmp_path / "slurm", tmp_path / "hosts"
    for name, value in (fake_slurm.install(slurm) | {"WORKBENCH_HOST": "login", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    for name, value in fake_ssh.install(ssh).items():
        monkeypatch.setenv(name, value)
    (slurm / "hold").touch()
    (ssh / "node2.refuses").touch()
    started = Page(space.root)
    started.space, started.ssh, started.slurm = space, ssh, slurm
    yield started
    for run in list_runs(space):
        wait_for(lambda run=run: run.stored_state().ended or not run.stored_state().pid, 60)
    started.end()


def shot(part, name: str) -> None:
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        part.screenshot(path=f"{folder}/{name}.png")


def demo(opened) -> None:
    """The smallest run there is."""
    expect(opened.locator("#preset input")).to_have_value("smollm2-demo")  # chosen by itself where there is no GPU
    opened.fill("#opt-num_train_epochs input, #opt-num_train_epochs textarea", "0.02")
    expect(opened.locator("#run-yaml")).to_contain_text("num_train_epochs: 0.02")
    expect(opened.locator("#train-message")).to_contain_text("valid", timeout=30_000)


def test_a_run_is_given_to_slurm_and_another_to_two_hosts(opened, page):
    demo(opened)
    opened.click("#where button.label-wrap")
    expect(opened.locator("#where-partition")).to_be_hidden()
    opened.get_by_label("as a job of Slurm").check()
    opened.fill("#where-partition textarea, #where-partition input", "gpu")
    opened.fill("#where-lines textarea", "--output=/tmp/x")
    shot(opened, "where-slurm")
    opened.click("#start")
    expect(opened.locator("#train-message")).to_contain_text("The page does not give '--output=/tmp/x' to sbatch.")
    assert list_runs(page.space) == []
    opened.fill("#where-lines textarea", "--mem=8G")
    opened.click("#start")
    expect(opened.locator("#train-message")).to_contain_text("Slurm has it as job 101.")
    waiting = list_runs(page.space)[0]
    asked = fake_slurm.job_of(page.slurm, 101)["options"]
    assert (asked["partition"], asked["mem"], asked["gres"]) == ("gpu", "8G", "gpu:1")
    shot(opened, "where-submitted")

    opened.get_by_label("over several hosts").check()
    expect(opened.locator("#where-partition")).to_be_hidden()
    opened.fill("#where-hosts textarea, #where-hosts input", "127.0.0.1,node2")
    opened.click("#start")
    expect(opened.locator("#train-message")).to_contain_text("node2 cannot be reached: ssh", timeout=60_000)
    shot(opened, "where-hosts")
    assert list_runs(page.space) == [waiting]
    (page.ssh / "node2.refuses").unlink()
    opened.click("#start")
    expect(opened.locator("#train-message")).to_contain_text("It trains on 127.0.0.1,node2.", timeout=60_000)
    run = next(run for run in list_runs(page.space) if run != waiting)
    wait_for(lambda: run.stored_state().ended, 120)
    assert (run.stored_state().state, run.stored_state().device) == ("finished", "2 × CPU"), run.log.read_text()

    open_part(opened, "Runs")
    table = opened.locator("#runs-table tbody")
    expect(table).to_contain_text(run.id[:15])
    expect(table).to_contain_text(waiting.id[:15])
    shot(opened, "where-runs")

    steps = run.stored_state().step
    table.locator(f"[data-run='{run.id}']").click()
    opened.fill("#runs-epochs input, #runs-epochs textarea", "0.15")
    opened.click("#runs-resume")
    said = f"{run.id} goes on over 127.0.0.1:1,node2:1 from checkpoint-{steps}."
    expect(opened.locator("#runs-message")).to_contain_text(said, timeout=60_000)
    shot(opened, "where-resumed")
    wait_for(lambda: run.stored_state().ended, 120)
    assert (run.stored_state().state, run.stored_state().device) == ("finished", "2 × CPU"), run.log.read_text()
    assert run.stored_state().step > steps
