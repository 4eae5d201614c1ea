"""A page process on a free port, and Chromium to look at it."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
)

expect.set_options(timeout=20_000)  # how long is waited at most: other tests' processes may still be ending


class Page:
    """A page process; `url` answers when `start` returns."""

    def __init__(self, workspace: Path, *arguments: str):
        self.workspace, self.arguments = workspace, arguments
        self.process = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "app.py", "--port", "0", "--workspace", str(self.workspace), *self.arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = self.process.stdout.readline()
        while line and "http://" not in line:
            line = self.process.stdout.readline()
        self.url = line.split()[2]
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.url + "/", timeout=5).read()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"The page did not start: {line}")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(15)


@contextlib.contextmanager
def started_chromium():
    """A headless Chromium. While it runs, its event loop is the thread's: `asyncio.run` cannot be used."""
    from playwright.sync_api import sync_playwright

    if not Path(CHROMIUM).exists():
        pytest.fail(
            "Browser tests need Chromium: apt-get install chromium fonts-noto-cjk, or set CHROMIUM to its path."
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chromium():
    with started_chromium() as browser:
        yield browser


@pytest.fixture
def tab(chromium):
    """A browser tab in English; a script error or a failing handler fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000}, locale="en-US")
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 500 else None)
    page.set_default_timeout(30_000)
    yield page
    context.close()
    assert not errors, errors


@pytest.fixture
def opened(tab, page):
    """The tab with the page of the module's fixture `page`, its form ready."""
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    return tab


# From now on each answer of the page process is some milliseconds late.
SLOWLY = """(late) => {
    const real = window.fetch;
    window.fetch = async (...asked) => {
        const answer = await real(...asked);
        await new Promise((done) => setTimeout(done, late));
        return answer;
    };
}"""


def open_part(tab, name: str) -> None:
    """Open a tab whose fields are filled next. Gradio shows the fields of a tab that was never open, and sets them to
    their first values in a later frame."""
    tab.get_by_role("tab", name=name, exact=True).click()
    tab.evaluate("""() => new Promise((done) => {
        const frames = (left) => left ? requestAnimationFrame(() => frames(left - 1)) : done();
        requestIdleCallback(() => frames(3));
    })""")


def open_generation(tab, **values) -> None:
    """Open the generation settings and set numbers there: `open_generation(tab, temperature=0)`."""
    tab.click("#generation button")
    tab.wait_for_timeout(500)  # the panel slides open and sets its fields once more
    for name, value in values.items():
        field = tab.locator(f"#{name.replace('_', '-')} input[type=number]")
        field.fill(str(value))
        field.press("Tab")
        expect(field).to_have_value(str(value))
