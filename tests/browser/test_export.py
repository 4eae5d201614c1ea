"""Export of a merged model from the Chat tab: a job that goes on when the tab is closed, and says in any tab what
became of it."""

import os
import shutil

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from tests.hub import StandInHub
from tests.tiny import make_tiny_model
from workbench.storage.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in of the hub, and a token for it, in the page's environment."""
    made = StandInHub(tmp_path / "hub", {"hf_good": "ann"})
    for name, value in (("HF_ENDPOINT", made.url), ("HF_TOKEN", "hf_good"), ("HF_HUB_DISABLE_XET", "1")):
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture
def page(tmp_path, hub):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    workspace = Workspace(tmp_path / "w").create()
    folder = make_tiny_model(workspace.models / "tiny-llama")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(workspace.root / "adapter")
    started = Page(workspace.root)
    started.space = workspace
    yield started
    started.end()


def open_merge(tab) -> None:
    open_part(tab, "Chat")
    tab.click("#merge button")


def test_an_export_goes_on_without_the_tab(opened, page):
    open_part(opened, "Chat")
    opened.fill("#chat-model input", "tiny-llama")
    opened.locator("#chat-model input").press("Enter")
    opened.click("#merge button")
    opened.fill("#merge-weights textarea", f"{page.space.root / 'adapter'} = 0.5")
    opened.fill("#merge-name input, #merge-name textarea", "my merge")
    opened.click("#merge-export")
    expect(opened.locator("#merge-exported")).to_contain_text("Writing my-merge")
    opened.click("#merge-export")
    expect(opened.locator("#export-note")).to_contain_text("is still going")
    opened.reload()
    expect(opened.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    open_merge(opened)
    expect(opened.locator("#merge-exported")).to_contain_text("The merged model is my-merge", timeout=90_000)
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        opened.locator("#merge").screenshot(path=f"{folder}/export.png")
    assert (page.space.models / "my-merge" / "model.safetensors").is_file()


def test_an_export_outlives_the_page_and_is_listed_uploaded_and_deleted(opened, page, hub, tmp_path):
    open_part(opened, "Chat")
    opened.fill("#chat-model input", "tiny-llama")
    opened.locator("#chat-model input").press("Enter")
    opened.click("#merge button")
    expect(opened.locator("#export-table")).to_contain_text("Nothing has been exported yet")
    opened.fill("#merge-weights textarea", f"{page.space.root / 'adapter'}")
    opened.fill("#merge-name input, #merge-name textarea", "../mine")
    opened.click("#merge-export")
    expect(opened.locator("#export-note")).to_contain_text("'../mine' cannot be the name of an export")
    opened.fill("#merge-name input, #merge-name textarea", "small")
    opened.click("#merge-format input")
    opened.get_by_role("option", name="bnb-4bit").click()
    opened.click("#merge-export")
    expect(opened.locator("#merge-exported")).to_contain_text("Writing small")
    page.process.kill()
    page.process.wait()
    page.start()
    opened.goto(page.url)
    expect(opened.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    open_merge(opened)
    expect(opened.locator("#merge-exported")).to_contain_text("The 4-bit model is small", timeout=90_000)
    expect(opened.locator("#export-table")).to_contain_text("bnb-4bit")
    expect(opened.locator("#export-table")).to_contain_text("KiB")
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        opened.locator("#merge").screenshot(path=f"{folder}/exports.png")
    opened.click("#export-which input")
    opened.get_by_role("option", name="small").click()
    opened.click("#export-upload")
    expect(opened.locator("#export-note")).to_contain_text("Say under which name")
    opened.fill("#merge-hub input, #merge-hub textarea", "other/small")
    opened.click("#export-upload")
    expect(opened.locator("#merge-exported")).to_contain_text("ann may not write to other/small", timeout=30_000)
    opened.fill("#merge-hub input, #merge-hub textarea", "small")
    opened.click("#export-upload")
    expect(opened.locator("#merge-exported")).to_contain_text(f"small is at {hub.url}/ann/small", timeout=30_000)
    expect(opened.locator("#export-table")).to_contain_text("uploaded to")
    assert hub.private == {"ann/small": "private"}
    assert (tmp_path / "hub" / "models" / "ann" / "small" / "model.safetensors").is_file()
    opened.on("dialog", lambda dialog: dialog.accept())
    opened.click("#export-delete")
    expect(opened.locator("#export-table")).to_contain_text("Nothing has been exported yet")
    assert not (page.space.models / "small").exists()


def test_a_run_is_exported_from_its_page(opened, page):
    from workbench.config.options import RunConfig
    from workbench.runs.run import create_run

    run = create_run(page.space, RunConfig(model_name_or_path="tiny-llama", dataset="abilities"))
    for file in (page.space.root / "adapter").iterdir():
        shutil.copy(file, run.path)
    run.update(state="finished", ended=1.0)
    opened.goto(f"{page.url}?run={run.id}")
    opened.click("#runs-export:not([disabled])")
    expect(opened.locator("#merge-weights textarea")).to_have_value(f"{run.id} = 1")
    opened.click("#merge-format input")
    opened.get_by_role("option", name="lora", exact=True).click()
    opened.click("#merge-export")
    expect(opened.locator("#merge-exported")).to_contain_text("It loads in plain PEFT", timeout=90_000)
    assert (page.space.models / run.id / "adapter_model.safetensors").is_file()


def test_an_export_can_be_stopped_and_a_wrong_one_says_why(opened, page):
    open_part(opened, "Chat")
    opened.fill("#chat-model input", "tiny-llama")
    opened.locator("#chat-model input").press("Enter")
    opened.click("#merge button")
    opened.click("#merge-export")
    expect(opened.locator("#export-note")).to_contain_text("Name at least one adapter")
    opened.fill("#merge-weights textarea", str(page.space.root / "adapter"))
    opened.fill("#merge-name input, #merge-name textarea", "another")
    opened.click("#merge-export")
    expect(opened.locator("#merge-exported")).to_contain_text("Writing another")
    opened.click("#merge-stop")
    expect(opened.locator("#merge-exported")).to_contain_text("Stopped")
    assert not (page.space.models / "another").exists()


def test_a_base_alone_becomes_a_gguf(opened, page):
    open_part(opened, "Chat")
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
    folder = page.space.models / "for-llama.cpp"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".export.json",
        "Modelfile",
        "README.md",
        "for-llama.cpp-q8_0.gguf",
    ]
    assert (folder / "for-llama.cpp-q8_0.gguf").read_bytes()[:4] == b"GGUF"
