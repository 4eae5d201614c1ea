"""The Runs tab in a browser: table, queue, one run's page, comparison, clone, several tabs at once."""

import json
import os
import re
import time

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SLOWLY, Page, open_part
from workbench.config.run_config import validated
from workbench.runs.run import create_run, write_manifest
from workbench.runs.state import own_process
from workbench.storage.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]

CONFIG = {"model_name_or_path": "SmolLM2-135M-Instruct", "dataset": "abilities", "quantization_bit": 4}


def make(place: Workspace, name: str, state: str, losses: list[float], **options):
    """A run as it lies on the disk, without its processes."""
    run = create_run(place, validated(CONFIG | options | {"run_name": name}))
    rows = [
        {
            "current_steps": i + 1,
            "total_steps": 40,
            "loss": loss,
            "lr": 1e-4,
            "epoch": (i + 1) / 10,
            "total_tokens": 64 * (i + 1),
            "elapsed_seconds": 2.0 * (i + 1),
            "throughput": 32.0,
            "elapsed_time": "0:00:40",
            "peak_memory": 1.5,
        }
        for i, loss in enumerate(losses)
    ]
    rows += [{"current_steps": step, "total_steps": 40, "eval_loss": losses[step - 1] + 0.5} for step in (10, 20)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.log.write_text("2026-11-01 10:00:00 first line\n2026-11-01 10:00:01 a <b>needle</b> here\n")
    for step in (10, 20):
        (run.path / f"checkpoint-{step}").mkdir()
        for file in ("adapter_model.safetensors", "adapter_config.json", "trainer_state.json"):
            (run.path / f"checkpoint-{step}" / file).write_text("{}")
        write_manifest(run.path / f"checkpoint-{step}")
    samples = [{"current_steps": s, "prompt": "Who?", "answer": f"<img src=x onerror=alert({s})>"} for s in (0, 10)]
    (run.path / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    run.update(state=state, step=len(losses), total_steps=40, ended=1.0)
    return run


@pytest.fixture
def place(tmp_path) -> Workspace:
    return Workspace(tmp_path / "w").create()


@pytest.fixture
def runs(place):
    falling = [3.0 * 0.95**i for i in range(20)]
    return [
        make(place, "alpha", "finished", falling, learning_rate=1e-4),
        make(place, "beta", "failed", [x + 1 for x in falling], learning_rate=2e-4),
    ]


@pytest.fixture
def page(place, runs):
    started = Page(place.root)
    yield started
    started.end()


@pytest.fixture
def opened(opened):
    """The page with the Runs tab in front."""
    open_part(opened, "Runs")
    expect(opened.locator("#runs-count")).to_contain_text("2 of 2 runs")
    return opened


def part(tab, name: str) -> None:
    open_part(tab.locator("#run-parts"), name)


def choose(tab, run) -> None:
    tab.locator(f"#runs-table [data-run='{run.id}']").click()
    expect(tab.locator("#runs-status b").first).to_have_text(run.id)


def test_filter_choose_and_look_at_a_run(opened, runs):
    alpha = runs[0]
    opened.fill("#runs-search input, #runs-search textarea", "beta")
    expect(opened.locator("#runs-count")).to_contain_text("1 of 1 runs")
    opened.fill("#runs-search input, #runs-search textarea", "nothing has this")
    expect(opened.locator("#runs-count")).to_contain_text("No run matches")
    opened.fill("#runs-search input, #runs-search textarea", "")
    expect(opened.locator("#runs-count")).to_contain_text("2 of 2 runs")
    choose(opened, alpha)
    expect(opened.locator("#runs-charts .annotation").first).to_be_attached(timeout=30_000)
    part(opened, "Log")
    expect(opened.locator("#full-log")).to_contain_text("first line")  # what is opened has come to rest
    opened.fill("#log-search input, #log-search textarea", "NEEDLE")
    expect(opened.locator("#full-log")).to_have_text(re.compile(r"^2026-11-01 10:00:01 a <b>needle</b> here$"))
    opened.fill("#log-search input, #log-search textarea", "no such words")
    expect(opened.locator("#full-log")).to_have_text("No line of the log has “no such words”.")
    part(opened, "Checkpoints")
    expect(opened.locator("#runs-checkpoints")).to_contain_text("checkpoint-20 ★ best")
    part(opened, "Config")
    expect(opened.locator("#runs-config")).to_contain_text("learning_rate: 0.0001")
    part(opened, "Samples")
    expect(opened.locator("#runs-samples")).to_contain_text("<img src=x onerror=alert(10)>")
    assert opened.locator("#runs-samples img").count() == 0
    with opened.expect_download() as download:
        opened.click("#runs-zip")
    assert download.value.suggested_filename == f"{alpha.id}.zip"


def test_a_run_and_a_search_have_an_address(opened, page, runs):
    alpha = runs[0]
    choose(opened, alpha)
    opened.fill("#runs-search input, #runs-search textarea", "alpha")
    expect(opened.locator("#runs-count")).to_contain_text("1 of 1 runs")
    opened.wait_for_url(f"**/?*run={alpha.id}*")
    opened.wait_for_url("**/?*words=alpha*")
    opened.goto(opened.url)
    expect(opened.locator("#runs-status b").first).to_have_text(alpha.id, timeout=30_000)
    expect(opened.locator("#runs-count")).to_contain_text("1 of 1 runs")
    open_part(opened, "Train")
    opened.wait_for_url(re.compile(r"^[^?]*/?$"))


def test_a_row_is_chosen_though_the_table_is_sent_anew_under_the_press(opened, runs):
    """The table follows what runs do: its rows may be replaced between press and release of the mouse."""
    for run in (*runs, runs[0]):
        opened.locator(f"#runs-table [data-run='{run.id}'] td").nth(1).hover()
        opened.mouse.down()
        opened.evaluate("""() => { const row = document.querySelector('#runs-table [data-run]').closest('table');
            row.outerHTML = row.outerHTML; }""")
        opened.mouse.up()
        expect(opened.locator("#runs-status b").first).to_have_text(run.id)
    # pressed on one row and released on another: neither
    opened.locator(f"#runs-table [data-run='{runs[1].id}'] td").nth(1).hover()
    opened.mouse.down()
    opened.locator(f"#runs-table [data-run='{runs[0].id}'] td").nth(1).hover()
    opened.mouse.up()
    opened.locator("#runs-count").click()
    expect(opened.locator("#runs-status b").first).to_have_text(runs[0].id)
    # a click of a screen reader has no pointer
    opened.locator(f"#runs-table [data-run='{runs[1].id}']").evaluate("(row) => row.click()")
    expect(opened.locator("#runs-status b").first).to_have_text(runs[1].id)


def test_of_two_clicks_the_second_counts_though_the_first_is_not_answered(opened, runs):
    opened.evaluate(SLOWLY, 400)
    first, second = (run.id for run in runs)
    for one, other in ((second, first), (first, second)):
        opened.locator(f"#runs-table [data-run='{one}']").click()
        opened.wait_for_timeout(150)
        opened.locator(f"#runs-table [data-run='{other}']").click()
        expect(opened.locator("#runs-status b").first).to_have_text(other)
        expect(opened.locator(f"#runs-table [data-run='{other}']")).to_have_attribute("aria-selected", "true")
        expect(opened.locator("#runs-selected input")).to_have_value(re.compile(other))
        assert f"run={other}" in opened.url


def test_compare_two_runs(opened, runs):
    part(opened, "Compare")
    for run in runs:
        choose(opened, run)
        opened.click("#compare-add")
    expect(opened.locator("#compare-table")).to_contain_text("learning_rate")
    expect(opened.locator("#compare-table")).not_to_contain_text("dataset")
    expect(opened.locator("#compare-chart .scatterlayer .trace")).to_have_count(4, timeout=30_000)
    opened.locator("#compare-axis").get_by_label("tokens", exact=True).check()
    expect(opened.locator("#compare-chart .xtitle")).to_have_text("tokens")


def test_rename_clone_delete(opened, place, runs):
    alpha, beta = runs
    choose(opened, beta)
    part(opened, "Note")
    opened.wait_for_timeout(700)  # what is opened sets its fields once more
    opened.fill("#runs-title input, #runs-title textarea", "too fast <i>")
    opened.click("#runs-save")
    expect(opened.locator("#runs-table")).to_contain_text("too fast <i>")
    opened.click("#runs-clone")
    expect(opened.locator("#run-yaml")).to_contain_text("learning_rate: 0.0002")
    opened.fill("#opt-lora_rank input, #opt-lora_rank textarea", "32")
    expect(opened.locator("#option-changes")).to_contain_text(f"Differs from {beta.id}: lora_rank 8 → 32")
    open_part(opened, "Runs")
    questions = []
    opened.once("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
    opened.click("#runs-delete")
    opened.wait_for_timeout(500)
    assert questions == [f"Delete the run {beta.id} and all its files?"]
    assert beta.path.is_dir()
    opened.once("dialog", lambda dialog: dialog.accept())
    opened.click("#runs-delete")
    expect(opened.locator("#runs-message")).to_contain_text(f"{beta.id} is deleted")
    expect(opened.locator("#runs-count")).to_contain_text("1 of 1 runs")
    assert not beta.path.exists() and alpha.path.is_dir()


def test_the_queue_is_shown_reordered_and_left(opened, place, runs):
    going = create_run(place, validated(CONFIG | {"run_name": "going"}))
    going.update(state="running", devices="cpu", ended=None, **own_process())
    first, second = (create_run(place, validated(CONFIG | {"run_name": n})) for n in ("one", "two"))
    expect(opened.locator("#runs-count")).to_contain_text("5 of 5 runs")
    choose(opened, second)
    expect(opened.locator("#runs-status")).to_contain_text(f"Number 2 in the queue. Waits for {going.id} to end")
    opened.click("#runs-earlier")
    expect(opened.locator("#runs-message")).to_contain_text(f"{second.id} is number 1 of 2 in the queue")
    opened.click("#runs-stop")
    expect(opened.locator("#runs-message")).to_contain_text("taken out of the queue")
    expect(opened.locator("#runs-status .wb-badge")).to_have_text("stopped")
    choose(opened, going)
    expect(opened.locator(f"#runs-table [data-run='{going.id}']")).to_have_attribute("aria-selected", "true")
    expect(opened.locator("#runs-delete")).to_be_disabled()
    expect(opened.locator("#runs-resume")).to_be_disabled()
    assert first.state().state == "queued"


def test_a_run_of_another_host_is_shown_stopped_and_lost_in_the_end(opened, place, runs):
    run = make(place, "away", "running", [2.0] * 20)
    run.update(ended=None, pid=4, pid_started=1.0, boot="another", host="node7", devices="cpu")

    def silent_for(seconds: float) -> None:
        (run.path / ".heartbeat").touch()
        for name in (".heartbeat", "state.json"):
            os.utime(run.path / name, (time.time() - seconds,) * 2)

    expect(opened.locator("#runs-count")).to_contain_text("3 of 3 runs")
    choose(opened, run)
    status, badge = opened.locator("#runs-status"), opened.locator("#runs-status .wb-badge")
    expect(status).to_contain_text("on node7")
    expect(badge).to_have_text("running")
    silent_for(45)
    expect(status).to_contain_text("No sign of life from node7 for 40 s.")
    expect(opened.locator("#runs-delete")).to_be_disabled()
    opened.click("#runs-stop")
    expect(opened.locator("#runs-message")).to_contain_text("node7 is asked to stop")
    assert (run.path / ".stop-request").stat().st_size == 1
    expect(badge).to_have_text("stopping")
    silent_for(130)
    expect(badge).to_have_text("lost")
    expect(status).to_contain_text("node7 has given no sign of life of it for more than 120 s")
    expect(opened.locator("#runs-resume")).to_be_enabled()


def test_chat_with_a_checkpoint_brings_its_settings(opened, runs):
    choose(opened, runs[0])
    opened.click("#runs-chat")
    expect(opened.locator("#chat-adapter input")).to_have_value(f"{runs[0].id}/checkpoint-20")
    expect(opened.locator("#chat-quantization input[type=radio]").nth(2)).to_be_checked()


def test_five_tabs_on_one_run(chromium, page, place, runs):
    """All see the same run live, and each keeps its own zoom and language."""
    run = runs[0]
    run.update(state="running", ended=None, **own_process())
    contexts = [chromium.new_context(locale=locale) for locale in ("en-US", "zh-CN", "en-US", "zh-CN", "en-US")]
    tabs = [context.new_page() for context in contexts]
    errors = []
    for tab in tabs:
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 500 else None)
        tab.goto(page.url)
    for tab in tabs:
        expect(tab.locator("#run-status b").first).to_have_text(run.id, timeout=60_000)
    for step in (30, 35):
        with open(run.metrics, "a") as log:
            log.write(json.dumps({"current_steps": step, "total_steps": 40, "loss": 0.5}) + "\n")
        run.update(step=step)
        for tab in tabs:
            expect(tab.locator("#run-status")).to_contain_text(f"{step} / 40", timeout=30_000)
    run.update(state="finished", ended=2.0)
    for tab, word in zip(tabs, ("finished", "已完成") * 3, strict=False):
        expect(tab.locator("#run-status .wb-badge")).to_have_text(word, timeout=30_000)
        expect(tab.locator(".wb-toast").first).to_contain_text(run.id)  # every tab is told
    assert errors == []
    for context in contexts:
        context.close()


def test_a_group_is_named_filtered_linked_and_compared(opened, page, runs):
    alpha, beta = runs
    choose(opened, alpha)
    part(opened, "Note")
    opened.fill("#runs-in-group input, #runs-in-group textarea", "rates")
    opened.keyboard.press("Tab")
    opened.click("#runs-save")
    expect(opened.locator("#runs-message")).to_contain_text("Saved")
    expect(opened.locator(f"#runs-table [data-run='{alpha.id}'] .wb-of-group")).to_have_text("rates")
    opened.locator("#runs-group input").click()
    opened.get_by_role("option", name="rates").click()
    expect(opened.locator("#runs-count")).to_contain_text("1 of 1 runs")
    expect(opened).to_have_url(re.compile("group=rates"))
    opened.goto(opened.url)  # the address alone says it
    expect(opened.locator("#runs-group input")).to_have_value("rates")
    expect(opened.locator("#runs-count")).to_contain_text("1 of 1 runs")
    opened.locator("#runs-group input").click()
    opened.get_by_role("option", name="All runs").click()
    expect(opened.locator("#runs-count")).to_contain_text("2 of 2 runs")
    beta.set_notes(group="rates")
    opened.locator("#runs-sort input").click()
    opened.get_by_role("option", name="group").click()
    expect(opened.locator("#runs-table .wb-group")).to_have_text(["rates"])
    part(opened, "Compare")
    opened.click("#compare-add-group")
    expect(opened.locator("#compare-table")).to_contain_text("learning_rate")
