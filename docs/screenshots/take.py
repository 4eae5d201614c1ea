"""Make the screenshots of the docs: `python docs/screenshots/take.py [--workspace FOLDER]`.

The workspace should hold a finished demo run (the newest run is shown); without one, the demo is trained first.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import expect, sync_playwright  # noqa: E402

from tests.browser.conftest import CHROMIUM, Page, open_generation  # noqa: E402
from workbench.runs.run import list_runs  # noqa: E402
from workbench.storage.workspace import Workspace  # noqa: E402

HERE = Path(__file__).parent


def train_tab(tab, name: str) -> None:
    tab.wait_for_selector("#loss-chart .trace", timeout=60_000)
    tab.wait_for_timeout(1500)
    tab.screenshot(path=HERE / f"{name}.png", full_page=True)


def data_tab(tab, name: str) -> None:
    tab.get_by_role("tab").nth(1).click()
    expect(tab.locator("#data-rows .wb-row")).to_have_count(5, timeout=60_000)
    tab.wait_for_timeout(1500)
    tab.screenshot(path=HERE / f"{name}.png", full_page=True)


def runs_tab(tab, name: str) -> None:
    tab.get_by_role("tab").nth(2).click()
    tab.wait_for_selector("#runs-charts .trace", timeout=60_000)
    tab.wait_for_timeout(1500)
    tab.screenshot(path=HERE / f"{name}.png", full_page=True)


def model_tab(tab, name: str) -> None:
    tab.click("#tab-model-button")
    tab.wait_for_selector("#model-treemap .slice, #model-treemap .treemaplayer", timeout=60_000)
    tab.wait_for_timeout(1500)
    tab.screenshot(path=HERE / f"{name}.png")


def chat_tab(tab) -> None:
    """The base model's answer to the article's question, token by token, and the contradiction probe."""
    tab.get_by_role("tab", name="Chat", exact=True).click()
    tab.click("#load")
    expect(tab.locator("#engine-status")).to_contain_text("is ready on", timeout=120_000)
    open_generation(tab, temperature=0, max_tokens=40)
    tab.fill("#message textarea", "Do you support tool calling?")
    tab.click("#send")
    expect(tab.locator("#confidence .wb-tokens .tk").first).to_be_visible(timeout=120_000)
    tab.screenshot(path=HERE / "confidence-en.png", full_page=True)
    tab.get_by_role("tab", name="Contradiction probe", exact=True).click()
    tab.click("#contradiction-run")
    expect(tab.locator("#contradiction tr")).to_have_count(9, timeout=300_000)  # eight wordings and the head
    tab.screenshot(path=HERE / "contradiction-en.png", full_page=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", default="workspace")
    workspace = Workspace(parser.parse_args().workspace).create()
    if not any(run.has_adapter for run in list_runs(workspace)):
        command = [sys.executable, "-m", "workbench", "train", "smollm2-demo", "--workspace", str(workspace.root)]
        subprocess.run(command, cwd=ROOT, check=True)
    page = Page(workspace.root)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width, locale, dark, words in ((1280, "en-US", False, "en"), (1920, "zh-CN", True, "zh-dark")):
            context = browser.new_context(viewport={"width": width, "height": 900}, locale=locale)
            tab = context.new_page()
            tab.goto(page.url)
            tab.wait_for_selector("#start", timeout=30_000)
            if dark:
                tab.click("#theme")
            train_tab(tab, f"train-{words}")
            data_tab(tab, f"data-{words}")
            runs_tab(tab, f"runs-{words}")
            model_tab(tab, f"model-{words}")
            if words == "en":
                chat_tab(tab)
            context.close()
        browser.close()
    page.end()


if __name__ == "__main__":
    main()
