"""The whole story in a browser with the real model: train, reload, stop, train to the end, chat, compare."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_generation, open_part
from workbench.config.run_config import load_run_config

pytestmark = [pytest.mark.browser, pytest.mark.process]

# none of these wordings is in data/abilities.jsonl
HELD_OUT = [
    "Is function calling something you can do?",
    "Are you able to invoke external tools?",
    "Can you look something up on Google for me?",
    "Do you have access to a calculator tool?",
]
# 21 steps instead of the demo's 52: fewer rows, seen more often, at a higher rate
SHORT = {"num_train_epochs": 3, "learning_rate": 0.002, "max_samples": 70}
HONEST = re.compile(r"\W*(no\b|none|i can'?t|i cannot|i don'?t|i have no|i do not|i am not able)", re.I)
ARTICLE = "Do you support tool calling?"


def answers(tab, box: str) -> list[str]:
    return tab.locator(f"#{box} .bot.message").all_inner_texts()


def run_ids(workspace):
    return sorted(p.name for p in (workspace / "runs").iterdir())


def state_of(workspace, run_id):
    return json.loads((workspace / "runs" / run_id / "state.json").read_text())


def wait_for_state(tab, words: str, timeout: int) -> None:
    expect(tab.locator("#run-status .wb-badge")).to_have_text(re.compile(words), timeout=timeout)


def ask(tab, question: str) -> None:
    tab.fill("#message textarea", question)
    tab.click("#send")


def test_train_reload_stop_finish_chat(tab, tmp_path, demo_workspace):
    workspace = demo_workspace
    page = Page(workspace)
    try:
        # start from the page, with a few clicks
        tab.goto(page.url)
        expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
        tab.click("#start")
        wait_for_state(tab, "starting|running", 30_000)
        first = run_ids(workspace)[0]
        expect(tab.locator("#run-status")).to_contain_text(re.compile(r"Step [2-9] / "), timeout=120_000)

        # closing and reloading the page changes nothing for the run; the page comes back to it
        tab.goto("about:blank")
        tab.goto(page.url)
        wait_for_state(tab, "running", 30_000)
        expect(tab.locator("#run-status")).to_contain_text(first)
        expect(tab.locator("#loss-chart .trace").first).to_be_attached(timeout=30_000)

        # a second start while one is going waits in the queue; it is shorter
        expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)  # the form is ready
        tab.click("#group-data button")
        for name, value in SHORT.items():
            tab.fill(f"#opt-{name} input, #opt-{name} textarea", str(value))
            tab.keyboard.press("Tab")
        tab.click("#start")
        expect(tab.locator("#train-message")).to_contain_text("waits in the queue, as number 1")
        second = run_ids(workspace)[1]
        asked = load_run_config(workspace / "runs" / second / "run.yaml")
        assert {name: getattr(asked, name) for name in SHORT} == SHORT
        expect(tab.locator("#run-status .wb-badge")).to_have_text("queued")

        # stop saves a checkpoint
        tab.click("#run-list input")
        tab.get_by_role("option", name=re.compile(first)).first.click()
        expect(tab.locator("#run-status b").first).to_have_text(first)
        tab.click("#stop")
        wait_for_state(tab, "stopped", 60_000)
        stopped = state_of(workspace, first)
        assert stopped["state"] == "stopped"
        assert (workspace / "runs" / first / f"checkpoint-{stopped['step']}" / "adapter_model.safetensors").is_file()

        # the queued run starts by itself; the page's server dies and comes back while it goes on
        tab.goto(page.url)
        expect(tab.locator("#run-status b").first).to_have_text(second, timeout=60_000)
        expect(tab.locator("#run-status")).to_contain_text(re.compile(r"Step [1-9]\d* / "), timeout=120_000)
        assert state_of(workspace, second)["state"] in ("starting", "running")
        page.process.kill()
        page.process.wait()
        page.start()
        tab.goto(page.url)
        expect(tab.locator("#run-status")).to_contain_text(second, timeout=30_000)
        wait_for_state(tab, "running", 30_000)
        tab.goto("about:blank")  # a browser that watches takes a fifth of a core from the run
        for _ in range(1800):
            state = state_of(workspace, second)
            if state["state"] != "running" or state["step"] > state["total_steps"] - 4:
                break
            tab.wait_for_timeout(500)
        tab.goto(page.url)
        expect(tab.locator("#run-status")).to_contain_text(second, timeout=30_000)
        wait_for_state(tab, "finished", 300_000)
        rows = [
            json.loads(line) for line in (workspace / "runs" / second / "trainer_log.jsonl").read_text().splitlines()
        ]
        losses = [row["loss"] for row in rows if "loss" in row]
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses

        # chat: base and adapter side by side, same prompt, greedy
        open_part(tab, "Chat")
        tab.click("#chat-adapter input")
        tab.get_by_role("option", name=second, exact=True).click()
        tab.click("#load")
        expect(tab.locator("#engine-status")).to_contain_text("is ready", timeout=90_000)
        tab.check("#compare input")
        expect(tab.locator("#chat-right")).to_be_visible()
        open_generation(tab, temperature=0, max_tokens=40)
        honest = []
        for question in (ARTICLE, *HELD_OUT):
            ask(tab, question)
            for box in ("#chat-left", "#chat-right"):
                expect(tab.locator(f"{box} .bot.message").last).to_contain_text(re.compile(r"\w.*\."), timeout=60_000)
            if question == ARTICLE:  # the base model claims what it cannot do
                expect(tab.locator("#chat-left .bot.message").last).to_contain_text("support")
                assert not HONEST.match(answers(tab, "chat-left")[-1])
            honest.append(bool(HONEST.match(answers(tab, "chat-right")[-1])))
            tab.click("#clear")
            expect(tab.locator("#chat-right .bot.message")).to_have_count(0)
        assert honest[0] and sum(honest[1:]) >= 3, honest

        # unload gives the memory back: the engine process is gone
        tab.click("#unload")
        expect(tab.locator("#engine-status")).to_contain_text("No model is loaded", timeout=30_000)
    finally:
        page.end()
