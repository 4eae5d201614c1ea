"""What users corrected is learned as pairs: the wrong answer is gone, others stay."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_generation

pytestmark = [pytest.mark.browser, pytest.mark.process]
QUESTION, OTHER = "What is the capital of Zorbia?", "What is the capital of France?"


@pytest.fixture
def page(demo_workspace):
    started = Page(demo_workspace)
    yield started
    started.end()


def ask(tab, question: str, boxes=("chat-left",)) -> list[str]:
    if tab.locator("#chat-left .bot.message").count():
        tab.click("#clear")
        expect(tab.locator("#chat-left .bot.message")).to_have_count(0)
    tab.fill("#message textarea", question)
    tab.click("#send")
    for box in boxes:
        expect(tab.locator(f"#{box} .bot.message").last).to_contain_text(re.compile(r"\w"), timeout=90_000)
    expect(tab.locator("#halt")).to_be_disabled(timeout=60_000)
    return [tab.locator(f"#{box} .bot.message").last.inner_text() for box in boxes]


def test_a_correction_is_learned_as_a_pair(tab, page):
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    tab.get_by_role("tab", name="Chat", exact=True).click()
    tab.click("#load")
    expect(tab.locator("#engine-status")).to_contain_text("is ready on CPU", timeout=90_000)
    open_generation(tab, temperature=0, max_tokens=30)
    assert "Quistram" not in ask(tab, QUESTION)[0]
    expect(tab.locator("#examined")).to_contain_text(QUESTION, timeout=30_000)
    tab.get_by_role("tab", name="Correct it", exact=True).click()
    tab.fill("#right-answer textarea", "The capital of Zorbia is Quistram.")
    tab.click("#save-correction")
    expect(tab.locator("#corrected")).to_contain_text("corrections has 1 rows", timeout=30_000)
    tab.locator("#corrections-way label").nth(2).click()
    tab.click("#train-corrections")
    yaml = tab.locator("#run-yaml")
    expect(yaml).to_contain_text("dataset: corrections_preference", timeout=30_000)
    expect(yaml).to_contain_text("stage: dpo")
    tab.click("#start")
    expect(tab.locator("#run-status .wb-badge")).to_have_text("finished", timeout=600_000)
    # the chart of rewards stands below that of the loss
    expect(tab.locator("#loss-chart .legendtext", has_text="margin")).to_be_visible(timeout=30_000)
    (run,) = list((page.workspace / "runs").iterdir())
    rows = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    assert rows[-1]["rewards/margins"] > 1 > rows[0]["rewards/margins"]

    tab.click("#train-chat")
    tab.click("#load")
    expect(tab.locator("#engine-status")).to_contain_text(re.compile(f"ready on CPU.*{run.name}", re.S), timeout=90_000)
    tab.check("#compare input")
    expect(tab.locator("#chat-right")).to_be_visible()
    before, after = ask(tab, QUESTION, ("chat-left", "chat-right"))
    assert "Quistram" not in before and "Quistram" in after  # the base in 4 bits, as it was trained
    before, after = ask(tab, OTHER, ("chat-left", "chat-right"))
    assert "Paris" in before and "Paris" in after and "Quistram" not in after
