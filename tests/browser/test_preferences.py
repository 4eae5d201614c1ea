"""What users corrected is learned as pairs: the wrong answer is gone, others stay."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_generation, open_part

pytestmark = [pytest.mark.browser, pytest.mark.process]
QUESTION, ANSWER = "What is the capital of Zorbia?", "The capital of Zorbia is Quistram."
# like the question that is corrected, and not: what the demo model knows, and should know afterwards
KNOWN = {
    "What is the capital of France?": "Paris", "What is the capital of Egypt?": "Cairo",
    "What is the capital of China?": "Beijing", "What is the capital of Japan?": "Tokyo", "What is 2 + 2?": "4",
    "How many days are in a week?": ["7", "seven"],
}  # fmt: skip


@pytest.fixture
def page(demo_workspace):
    (demo_workspace / "probes").mkdir(exist_ok=True)
    lines = [{"prompt": prompt, "expect": expected} for prompt, expected in KNOWN.items()]
    lines.append({"prompt": QUESTION, "expect": "Quistram"})
    (demo_workspace / "probes" / "known.jsonl").write_text("\n".join(map(json.dumps, lines)))
    started = Page(demo_workspace)
    yield started
    started.end()


def ask(tab, question: str) -> str:
    tab.fill("#message textarea", question)
    tab.click("#send")
    expect(tab.locator("#chat-left .bot.message").last).to_contain_text(re.compile(r"\w"), timeout=90_000)
    expect(tab.locator("#halt")).to_be_disabled(timeout=60_000)
    return tab.locator("#chat-left .bot.message").last.inner_text()


def test_a_correction_is_learned_as_a_pair(tab, page):
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    open_part(tab, "Chat")
    tab.click("#load")
    expect(tab.locator("#engine-status")).to_contain_text("is ready on CPU", timeout=90_000)
    open_generation(tab, temperature=0, max_tokens=30)
    assert "Quistram" not in ask(tab, QUESTION)
    expect(tab.locator("#examined")).to_contain_text(QUESTION, timeout=30_000)
    open_part(tab, "Correct it")
    tab.fill("#right-answer textarea", ANSWER)
    tab.click("#save-correction")
    expect(tab.locator("#corrected")).to_contain_text("corrections has 1 rows", timeout=30_000)
    tab.locator("#corrections-way label").nth(2).click()
    tab.click("#train-corrections")
    yaml = tab.locator("#run-yaml")
    expect(yaml).to_contain_text("dataset: corrections_preference", timeout=30_000)
    expect(yaml).to_contain_text("stage: dpo")
    tab.click("#opt-quantization_bit input")  # in 4 bits a step takes ten times as long on a CPU
    tab.get_by_role("option", name="–", exact=True).click()
    expect(yaml).not_to_contain_text("quantization_bit: 4")
    tab.click("#start")
    expect(tab.locator("#run-status .wb-badge")).to_have_text("finished", timeout=600_000)
    # the chart of rewards stands below that of the loss
    expect(tab.locator("#loss-chart .legendtext", has_text="margin")).to_be_visible(timeout=30_000)
    (run,) = list((page.workspace / "runs").iterdir())
    rows = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    assert rows[-1]["rewards/margins"] > 1 > rows[0]["rewards/margins"]

    tab.click("#train-chat")
    expect(tab.locator("#chat-adapter input")).to_have_value(run.name, timeout=30_000)
    # the engine that gave the wrong answer takes the adapter, too: both are asked what they know and what was corrected
    open_part(tab, "Probes")
    tab.fill("#probe-set input", "known")
    tab.locator("#probe-set input").press("Enter")
    tab.click("#probe-adapters input")
    tab.get_by_role("option", name=run.name, exact=True).click()
    tab.locator("#probe-samples input[type=number]").fill("0")
    tab.locator("#probe-samples input[type=number]").press("Tab")
    tab.click("#probe-run")
    expect(tab.locator("#probe-table")).to_contain_text(QUESTION, timeout=120_000)
    base, adapted = (json.loads(path.read_text())["results"] for path in kept(page.workspace, run))
    assert [one["verdict"] for one in base] == ["pass"] * len(KNOWN) + ["fail"]
    assert [one["verdict"] for one in adapted] == ["pass"] * (len(KNOWN) + 1)
    assert not any("Quistram" in one["answer"] for one in adapted[:-1])


def kept(workspace, run):
    """The files of the base's answers to the probes, and of the adapter's."""
    (base,) = (workspace / "probes").glob("*-known.json")
    return base, run / "probes" / "known.json"
