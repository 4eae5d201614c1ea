"""A sweep in a browser: counted and queued in the Train tab, compared and stopped in the Runs tab."""

import os
import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from tests.browser.test_runs import make
from workbench.storage.workspace import Workspace
from workbench.train.sweep import of_group

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture
def page(tmp_path):
    space = Workspace(tmp_path / "w").create()
    for number, rate in enumerate((1e-4, 2e-4, 5e-4)):
        run = make(
            space, f"sweep-{number}", "finished", [3.0 - 0.1 * number * i for i in range(20)], learning_rate=rate
        )
        run.set_notes(group="rates", title=f"learning_rate={rate:g}", sweep="learning_rate")
    started = Page(space.root)
    started.space = space
    yield started
    started.end()


def shot(part, name: str) -> None:
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        part.screenshot(path=f"{folder}/{name}.png")


def test_a_group_is_compared_and_stopped(opened, page):
    best = of_group(page.space, "rates")[2]
    opened.goto(f"{page.url}?run={best.id}")
    open_part(opened, "Group")
    expect(opened.locator("#group-head")).to_contain_text("rates: 3 runs, 0 not ended, best first")
    rows = opened.locator("#group-table tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("learning_rate=0.0005")
    expect(opened.locator("#group-chart .parcoords").first).to_be_visible()
    expect(opened.locator("#group-chart")).to_contain_text("learning_rate")
    shot(opened.locator("#run-parts"), "group")
    rows.last.click()
    expect(opened.locator("#runs-selected input")).to_have_value(re.compile(of_group(page.space, "rates")[0].id))
    opened.on("dialog", lambda dialog: dialog.accept())
    opened.click("#group-stop")
    expect(opened.locator("#group-note")).to_contain_text("rates: 0 taken out of the queue, 0 stopped")


def test_a_sweep_is_counted_before_it_is_queued(opened, page):
    opened.click("#sweep button")
    opened.fill("#sweep-lines textarea", "learning_rate = 1e-4, 2e-4\nlora_rank = 8, 16")
    opened.click("#sweep-count")
    expect(opened.locator("#sweep-note")).to_contain_text("4 runs, one after the other for")
    expect(opened.locator("#sweep-note")).to_contain_text("learning_rate=0.0002, lora_rank=16")
    shot(opened.locator("#sweep"), "sweep")
    opened.fill("#sweep-lines textarea", "lora_target = no_such_layer")
    opened.click("#sweep-queue")
    expect(opened.locator("#sweep-note")).to_contain_text("With lora_target=no_such_layer:")
    assert len(list(page.space.runs.iterdir())) == 3
