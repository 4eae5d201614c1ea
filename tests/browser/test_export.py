"""Export of a merged model from the Chat tab: a job that goes on when the tab is closed, and says in any tab what
became of it."""

import os

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page
from tests.tiny import make_tiny_model
from workbench.storage.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture
def page(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    workspace = Workspace(tmp_path / "w").create()
    folder = make_tiny_model(workspace.models / "tiny-llama")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(workspace.root / "adapter")
    started = Page(workspace.root)
    started.workspace = workspace
    yield started
    started.end()


def open_merge(tab) -> None:
    tab.get_by_role("tab", name="Chat", exact=True).click()
    tab.click("#merge button")


def test_an_export_goes_on_without_the_tab(opened, page):
    opened.get_by_role("tab", name="Chat", exact=True).click()
    opened.fill("#chat-model input", "tiny-llama")
    opened.locator("#chat-model input").press("Enter")
    opened.click("#merge button")
    opened.fill("#merge-weights textarea", f"{page.workspace.root / 'adapter'} = 0.5")
    opened.fill("#merge-name input, #merge-name textarea", "my merge")
    opened.click("#merge-export")
    expect(opened.locator("#merge-exported")).to_contain_text("Writing my-merge")
    opened.click("#merge-export")
    expect(opened.locator("#merge-note")).to_contain_text("is still going")
    opened.reload()
    expect(opened.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    open_merge(opened)
    expect(opened.locator("#merge-exported")).to_contain_text("The merged model is my-merge", timeout=90_000)
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        opened.locator("#merge").screenshot(path=f"{folder}/export.png")
    assert (page.workspace.models / "my-merge" / "model.safetensors").is_file()


def test_an_export_can_be_stopped_and_a_wrong_one_says_why(opened, page):
    opened.get_by_role("tab", name="Chat", exact=True).click()
    opened.fill("#chat-model input", "tiny-llama")
    opened.locator("#chat-model input").press("Enter")
    opened.click("#merge button")
    opened.click("#merge-export")
    expect(opened.locator("#merge-note")).to_contain_text("Name at least one adapter")
    opened.fill("#merge-weights textarea", str(page.workspace.root / "adapter"))
    opened.fill("#merge-name input, #merge-name textarea", "another")
    opened.click("#merge-export")
    expect(opened.locator("#merge-exported")).to_contain_text("Writing another")
    opened.click("#merge-stop")
    expect(opened.locator("#merge-exported")).to_contain_text("Stopped")
    assert not (page.workspace.models / "another").exists()


def test_a_base_alone_becomes_a_gguf(opened, page):
    opened.get_by_role("tab", name="Chat", exact=True).click()
    opened.fill("#chat-model input", "tiny-llama")
    opened.locator("#chat-model input").press("Enter")
    opened.click("#merge button")
    opened.fill("#merge-name input, #merge-name textarea", "for llama.cpp")
    opened.click("#merge-format input")
    opened.get_by_role("option", name="gguf-q8_0").click()
    opened.click("#merge-export")
    expect(opened.locator("#merge-exported")).to_contain_text("The GGUF file is", timeout=90_000)
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        opened.locator("#merge").screenshot(path=f"{folder}/export-gguf.png")
    folder = page.workspace.models / "for-llama.cpp"
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "README.md", "for-llama.cpp-q8_0.gguf"]
    assert (folder / "for-llama.cpp-q8_0.gguf").read_bytes()[:4] == b"GGUF"
