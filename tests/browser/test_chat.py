"""Chat, look closer, correct, train on the correction, compare: one loop of clicks with the real model. And what goes
wrong."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ROOT, Page, open_generation, open_part
from tests.other_engine import StandIn

pytestmark = [pytest.mark.browser, pytest.mark.process]
QUESTION = "What is the capital of Zorbia?"


@pytest.fixture
def page(demo_workspace):
    started = Page(demo_workspace)
    yield started
    started.end()


@pytest.fixture
def chat(tab, page):
    """The Chat tab with the demo model loaded, greedy, short answers."""
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    open_part(tab, "Chat")
    tab.click("#load")
    expect(tab.locator("#engine-status")).to_contain_text("is ready on CPU", timeout=90_000)
    open_generation(tab, temperature=0, max_tokens=40)
    return tab


def ask(tab, question: str) -> None:
    tab.fill("#message textarea", question)
    tab.click("#send")
    expect(tab.locator("#examined")).to_contain_text(question[:60], timeout=90_000)
    expect(tab.locator("#confidence .wb-tokens .tk")).not_to_have_count(0, timeout=30_000)


def part(tab, name: str) -> None:
    open_part(tab, name)


def test_look_closer_correct_train_compare(chat, page):
    ask(chat, QUESTION)
    answer = chat.locator("#chat-left .bot.message").last.inner_text()

    # every token colored; the tokens are the answer; a tap shows what else the model had in mind
    tokens = chat.locator("#confidence .wb-tokens .tk")
    assert re.sub(r"\W", "", "".join(tokens.all_inner_texts())) == re.sub(r"\W", "", answer)
    expect(chat.locator("#confidence-summary")).to_contain_text("weakest span")
    tokens.nth(2).hover()
    card = chat.locator("#confidence .wb-pop")
    expect(card.locator("button")).to_have_count(5)
    expect(card).to_contain_text(re.compile(r"probability .* rank .* entropy"))

    # another token there: the answer goes on from it, the old one is kept beside it
    tokens.first.click()
    card.locator("button").nth(1).click()
    expect(chat.locator("#branches label")).to_have_count(2, timeout=60_000)
    expect(chat.locator("#chat-left .bot.message").last).not_to_have_text(answer)
    chat.locator("#branches label").first.click()
    expect(chat.locator("#chat-left .bot.message").last).to_have_text(answer)

    # consistency
    part(chat, "Consistency")
    chat.click("#check")
    expect(chat.locator("#consistency-summary")).to_contain_text(
        re.compile(r"Support by 5 more samples: \d+%"), timeout=120_000
    )
    expect(chat.locator("#consistency ol li")).to_have_count(5)

    # wrong: the right answer joins the corrections
    part(chat, "Correct it")
    chat.fill("#right-answer textarea", "The capital of Zorbia is Quistram.")
    chat.click("#save-correction")
    expect(chat.locator("#corrected")).to_contain_text("corrections has 1 rows", timeout=30_000)
    chat.click("#train-corrections")
    expect(chat.locator("#run-yaml")).to_contain_text("dataset: corrections", timeout=30_000)
    expect(chat.locator("#import-report, #tab-train")).not_to_have_count(0)
    chat.click("#start")
    expect(chat.locator("#run-status .wb-badge")).to_have_text("finished", timeout=600_000)
    (run,) = [p.name for p in (page.workspace / "runs").iterdir()]

    # compare, and see what the adapter changed
    open_part(chat, "Chat")
    chat.click("#chat-adapter input")
    chat.get_by_role("option", name=run, exact=True).click()
    chat.click("#load")
    # not only 'Loading adapter …', which names it, too
    expect(chat.locator("#engine-status")).to_contain_text(re.compile(f"ready on CPU.*{run}", re.S), timeout=90_000)
    chat.check("#compare input")
    expect(chat.locator("#chat-right")).to_be_visible()
    chat.click("#clear")
    expect(chat.locator("#chat-left .bot.message")).to_have_count(0)
    chat.fill("#message textarea", QUESTION)
    chat.click("#send")
    expect(chat.locator("#chat-right .bot.message").last).to_contain_text("Quistram", timeout=90_000)
    expect(chat.locator("#chat-left .bot.message").last).not_to_contain_text("Quistram")
    expect(chat.locator("#best label")).to_have_count(2, timeout=60_000)  # both have come to their end
    chat.locator("#chat-right .bot.message").last.click()
    expect(chat.locator("#examined")).to_contain_text(run, timeout=30_000)
    part(chat, "What the adapter changed")
    chat.click("#difference-run")
    expect(chat.locator("#difference-summary")).to_contain_text("tokens became much more likely", timeout=60_000)
    expect(chat.locator("#difference .wb-tokens .p3, #difference .wb-tokens .p2").first).to_be_visible()

    # a vote becomes a pair
    chat.locator("#best label").nth(1).click()
    chat.click("#vote")
    expect(chat.locator("#chat-problem")).to_contain_text("1 votes", timeout=30_000)
    pairs = (page.workspace / "corrections" / "corrections_preference.jsonl").read_text().splitlines()
    assert "Quistram" in json.loads(pairs[-1])["chosen"]["content"]

    # the conversation survives a restart of the page
    page.end()
    page.start()
    chat.goto(page.url)
    open_part(chat, "Chat")
    port_changed = chat.locator("#chat-right .bot.message")  # another port is another origin: open it from the list
    if not port_changed.count():
        chat.click("#history button")
        chat.click("#history-list input")
        chat.get_by_role("option", name=re.compile("Zorbia")).first.click()
    expect(chat.locator("#chat-right .bot.message").last).to_contain_text("Quistram", timeout=30_000)


def test_contradictions_reload_and_an_engine_that_dies(chat, page):
    part(chat, "Contradiction probe")
    chat.fill(
        "#wordings textarea",
        "Do you support tool calling?\nAre you able to use external tools such as a calculator?\n!You cannot call"
        " tools, right?",
    )
    chat.click("#contradiction-run")
    expect(chat.locator("#contradiction tr")).to_have_count(4, timeout=120_000)
    expect(chat.locator("#contradiction-summary")).to_contain_text(re.compile("contradict|No contradiction"))

    part(chat, "Token confidence")
    ask(chat, "Say hello.")
    answer = chat.locator("#chat-left .bot.message").last.inner_text()
    chat.reload()
    open_part(chat, "Chat")
    expect(chat.locator("#chat-left .bot.message").last).to_have_text(answer, timeout=30_000)
    expect(chat.locator("#confidence .wb-tokens .tk")).not_to_have_count(0, timeout=30_000)

    # the engine is killed in the middle of an answer: the page says so, and loading again goes on
    open_generation(chat, max_tokens=2000, temperature=1)
    chat.fill("#message textarea", "Tell me a very long story.")
    chat.click("#send")
    expect(chat.locator("#chat-left .bot.message").last).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=60_000)
    state = sorted((page.workspace / "engines").glob("*/state.json"))[-1]
    os.kill(json.loads(state.read_text())["pid"], signal.SIGKILL)
    expect(chat.locator("#chat-problem")).to_contain_text("Load", timeout=30_000)
    expect(chat.locator("#engine-status")).to_contain_text("has ended. Load it again", timeout=30_000)
    chat.click("#load")
    expect(chat.locator("#engine-status")).to_contain_text("is ready on CPU", timeout=90_000)


def test_another_server_answers_with_its_confidence(tab, tiny_model, tmp_path):
    command = [
        sys.executable,
        "-m",
        "workbench",
        "serve",
        str(tiny_model),
        "--port",
        "0",
        "--api-key",
        "k",
        "--workspace",
        str(tmp_path),
    ]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    line = ""
    while "is ready" not in line:
        line = server.stdout.readline()
        assert line
    page = Page(tmp_path / "page")
    try:
        tab.goto(page.url)
        open_part(tab, "Chat")
        tab.click("#other-server button")
        tab.check("#external input")
        tab.fill("#server-url input, #server-url textarea", line.rsplit(" ", 1)[1].strip())
        tab.fill("#server-key input", "wrong")
        tab.click("#find-models")
        expect(tab.locator("#server-found")).to_contain_text("API key", timeout=30_000)
        tab.fill("#server-key input", "k")
        tab.click("#find-models")
        expect(tab.locator("#server-found")).to_contain_text("tiny-llama", timeout=30_000)
        open_generation(tab, max_tokens=8)
        ask(tab, "Hello?")
        expect(tab.locator("#examined")).to_contain_text("tiny-llama")
    finally:
        page.end()
        server.terminate()
        server.wait(15)


def test_another_engine_is_looked_at_closely(tab, page, demo_model):
    """A vLLM server (a stand-in) that runs elsewhere: the same tab with all of its looks."""
    with StandIn("vllm", demo_model, key="sesame", served="served", context=2048).running() as url:
        tab.goto(page.url)
        open_part(tab, "Chat")
        tab.click("#chat-other-engine button")
        tab.fill("#chat-engine_url input, #chat-engine_url textarea", url)
        tab.click("#load")
        expect(tab.locator("#engine-status")).to_contain_text("refuses the key", timeout=90_000)
        tab.fill("#chat-engine-key input", "sesame")
        tab.click("#load")
        expect(tab.locator("#engine-status")).to_contain_text(f"is ready on vLLM, {url}", timeout=90_000)
        open_generation(tab, temperature=0, max_tokens=12)
        ask(tab, QUESTION)
        answer = tab.locator("#chat-left .bot.message").last.inner_text()
        tokens = tab.locator("#confidence .wb-tokens .tk")
        assert re.sub(r"\W", "", "".join(tokens.all_inner_texts())) == re.sub(r"\W", "", answer)
        tokens.nth(2).hover()
        card = tab.locator("#confidence .wb-pop")
        expect(card).to_contain_text(re.compile(r"probability .* rank 1.* entropy –"))  # which nobody knows here
        tokens.first.click()
        card.locator("button").nth(1).click()
        expect(tab.locator("#branches label")).to_have_count(2, timeout=60_000)
        part(tab, "Consistency")
        tab.click("#check")
        expect(tab.locator("#consistency-summary")).to_contain_text("Support by 5 more samples", timeout=120_000)
