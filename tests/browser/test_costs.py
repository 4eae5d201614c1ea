"""Memory and time in a browser: the bar follows the form, a change is applied by a click, presets for the machine, Chat's
bar."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from workbench.storage.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    started = Page(Workspace(tmp_path_factory.mktemp("costs")).create().root)
    yield started
    started.end()


def test_the_bar_follows_the_form_and_a_change_is_applied_by_a_click(opened):
    bars = opened.locator("#train-cost-chart .bars path")
    expect(opened.locator("#train-cost")).to_contain_text("It fits here")
    expect(bars).not_to_have_count(0)
    opened.click("#presets-here button.label-wrap")
    table = opened.locator("#presets-table")
    expect(table.locator("tr").nth(1)).to_contain_text("recommended")
    table.locator("tr", has_text="qwen3-8b-qlora").get_by_role("button").click()
    rank = opened.locator("#opt-lora_rank input, #opt-lora_rank textarea")
    expect(rank).to_have_value("16")
    words = opened.locator("#train-cost")
    expect(words).to_contain_text("lora_rank=8")
    words.locator(".wb-chip", has_text="lora_rank=8").get_by_role("button").click()
    expect(rank).to_have_value("8")
    expect(words).not_to_contain_text("lora_rank=8")
    words.get_by_text("How this comes about").click()
    expect(words).to_contain_text("steps")
    expect(opened.locator("#train-cost-chart .legend")).to_contain_text("weights")


def test_chat_has_its_own_bar(tab, page):
    tab.goto(page.url)
    open_part(tab, "Chat")
    expect(tab.locator("#chat-cost")).to_contain_text("It fits here")
    expect(tab.locator("#chat-cost-chart .legend")).to_contain_text("KV cache")
