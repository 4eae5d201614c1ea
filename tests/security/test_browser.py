"""Attacks from a browser: a foreign page that calls this one by another name, forms, frames; a workspace full of broken
files; markup in names."""

import contextlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHROMIUM, Page, open_part
from workbench.chat import conversations
from workbench.config.run_config import validated
from workbench.data.worker_client import JOB_MEMORY
from workbench.runs.run import Run, create_run
from workbench.storage.locks import locked
from workbench.storage.workspace import DEMO_MODEL, Workspace

pytestmark = pytest.mark.browser

ATTACKS = """<!doctype html><title>evil</title><body><script>
const target = %TARGET%, results = {};
async function attempt(name, run) { try { results[name] = String(await run()).slice(0, 200); } catch (error) { results[name] = 'blocked'; } }
(async () => {
  await attempt('read', async () => (await fetch(target + '/config', {credentials: 'include'})).text());
  await attempt('event', async () => (await fetch(target + '/gradio_api/run/predict', {method: 'POST', credentials: 'include',
    headers: {'Content-Type': 'text/plain'}, body: JSON.stringify({data: [], fn_index: 0, session_hash: 'x'})})).text());
  await attempt('upload', async () => { const form = new FormData(); form.append('files', new Blob(['{}']), 'evil.jsonl');
    return (await fetch(target + '/gradio_api/upload', {method: 'POST', credentials: 'include', body: form})).text(); });
  await attempt('blind', async () => { const form = new FormData(); form.append('files', new Blob(['{}']), 'blind.jsonl');
    return (await fetch(target + '/gradio_api/upload', {method: 'POST', mode: 'no-cors', credentials: 'include', body: form})).type; });
  await attempt('api', async () => (await fetch(target + '/v1/models')).text());
  await attempt('script', () => new Promise((resolve, reject) => { const s = document.createElement('script'); s.src = target + '/assets/x.js';
    s.onload = () => resolve('loaded'); s.onerror = () => reject(); document.body.append(s); }));
  window.results = results;
})();
</script><form id="form" method="post" enctype="multipart/form-data" action="%ACTION%"><input name="files" type="file"></form>
<iframe id="frame" src="%ACTION_ROOT%/"></iframe></body>"""


class Evil:
    """A foreign site on this machine, reached as `evil.test`."""

    def __init__(self):
        site = self
        self.html = ""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(site.html.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def aim(self, target: str) -> None:
        self.html = (
            ATTACKS.replace("%TARGET%", json.dumps(target))
            .replace("%ACTION_ROOT%", target)
            .replace("%ACTION%", target + "/gradio_api/upload")
        )


@pytest.fixture
def evil():
    site = Evil()
    yield site
    site.server.shutdown()


def test_a_foreign_page_can_do_nothing_here(chromium, page, evil):
    """Issue: cross-site forms could upload files; pages could be framed."""
    context = chromium.new_context()
    evil.aim(page.url)
    tab = context.new_page()
    tab.goto(page.url + "/")  # the visitor has the page open, and its cookie
    tab.goto(f"http://127.0.0.1:{evil.port}/")  # another service of the same host name: the cookie goes along
    tab.wait_for_function("window.results !== undefined", timeout=60_000)
    results = tab.evaluate("window.results")
    assert set(results) == {"read", "event", "upload", "blind", "api", "script"}
    assert {name for name, said in results.items() if said != "blocked"} <= {"blind"}
    assert not list((page.workspace / "uploads" / ".incoming").rglob("*.jsonl"))
    frame = tab.locator("#frame").element_handle().content_frame()
    assert "QLoRA" not in (frame.content() if frame else "")
    tab.locator("input[type=file]").set_input_files({"name": "form.jsonl", "mimeType": "text/plain", "buffer": b"{}"})
    with tab.expect_navigation():
        tab.evaluate("document.getElementById('form').submit()")
    assert "page of another site" in tab.content()
    assert not list((page.workspace / "uploads" / ".incoming").rglob("*.jsonl"))
    context.close()


def test_a_name_that_was_pointed_here_gets_nothing(page, tmp_path):
    """Issue: DNS rebinding. Two names of a foreign site that lead to this machine; run in a process of its own, since
    playwright runs once in each."""
    import subprocess
    import sys

    code = f"""
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path={CHROMIUM!r}, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--host-resolver-rules=MAP evil.test 127.0.0.1, MAP rebound.test 127.0.0.1"])
    tab = browser.new_page()
    port = {page.url.rsplit(":", 1)[1]!r}
    for name in ("evil.test", "rebound.test"):
        answer = tab.goto(f"http://{{name}}:{{port}}/")
        print(answer.status, tab.inner_text("body"))
        # as a page that was rebound would: the same origin by its name
        print(tab.evaluate("async () => (await fetch('/config')).status"), tab.evaluate("async () => (await fetch('/v1/models')).status"),
              tab.evaluate("async () => {{ const form = new FormData(); form.append('files', new Blob(['x']), 'a.jsonl'); "
                           "return (await fetch('/gradio_api/upload', {{method: 'POST', body: form}})).status }}"))
    print(tab.goto(f"http://localhost:{{port}}/").status)
    browser.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 5, done.stderr
    for first, second in ((lines[0], lines[1]), (lines[2], lines[3])):
        assert first.startswith("403") and "--allowed-host" in first and second == "403 403 403"
    assert lines[4] == "200"
    assert not list((page.workspace / "uploads" / ".incoming").rglob("*.jsonl"))


DEEP = "[" * 100_000
MARKUP = (
    '<a href="https://evil.example">click</a><img src=x onerror="window.owned=1">${window.owned=1}{{window.owned=1}}'
)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, demo_model):
    """A page on a workspace with one broken file of each kind, and a run and a conversation that are fine."""
    workspace = Workspace(tmp_path_factory.mktemp("b")).create()
    for name in ("state.json", "meta.json", "run.yaml", "trainer_log.jsonl", "samples.jsonl"):
        run = Run(workspace.runs / f"20260101-000000-broken-{name.split('.')[0].replace('_', '-')}")
        run.path.mkdir()
        (run.path / "run.yaml").write_text("model_name_or_path: m\ndataset: d\n")
        (run.path / "state.json").write_text(
            '{"state": "finished", "step": 3, "total_steps": 3, "created": 1, "ended": 2}'
        )
        (run.path / name).write_text(DEEP)
    good = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d", "run_name": "fine"}))
    good.metrics.write_text(
        '{"current_steps": 1, "total_steps": 2, "loss": 2.0}\n{"current_steps": 2, "total_steps": 2, "loss": 1.5}\n'
    )
    good.update(state="finished", step=2, total_steps=2, ended=1.0)
    good.set_notes(title=MARKUP[:80])
    conversations.save(
        workspace,
        conversations.Conversation("20260101-aaaaaa", columns=[[{"role": "user", "content": "Hello"}]], models=["m"]),
    )
    (workspace.conversations / "20260101-bbbbbb.json").write_text(DEEP)
    (workspace.conversations / "20260101-cccccc.json").write_text('{"id": "x", "columns": null}')
    for folder in (workspace.uploads, workspace.corrections):
        (folder / "dataset_info.json").write_text(DEEP)
    (workspace.corrections / "corrections.jsonl").write_text(DEEP)
    (workspace.models / DEMO_MODEL).symlink_to(demo_model)
    (workspace.models / "bad").mkdir()
    (workspace.models / "bad" / "config.json").write_text(DEEP)
    (workspace.root / "probes").mkdir()
    (workspace.root / "probes" / "bad.jsonl").write_text(DEEP)
    page = Page(workspace.root)
    yield page, good
    page.end()


def test_one_broken_file_of_each_kind_takes_no_view_down(tab, broken):
    """Issue: Train, Runs, monitor and Chat answered 500. The `tab` fixture fails on any 500."""
    page, good = broken
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    expect(tab.locator("#run-status")).to_contain_text(good.id)
    open_part(tab, "Runs")
    table = tab.locator("#runs-table")
    for name in ("state", "meta", "run", "trainer-log", "samples"):
        expect(table).to_contain_text(f"broken-{name}")
    tab.locator("#runs-selected input").fill("20260101-000000-broken-state")
    tab.locator("#runs-selected input").press("Enter")
    expect(tab.locator("#runs-status")).to_contain_text("state.json cannot be read: it is nested more than 100 deep")
    tab.locator("#runs-selected input").fill("20260101-000000-broken-run")
    tab.locator("#runs-selected input").press("Enter")
    expect(tab.locator("#runs-status")).to_contain_text("run.yaml cannot be read")
    open_part(tab, "Data")
    expect(tab.locator("#data-set")).to_be_visible()
    tab.locator("#data-set input").click()
    expect(tab.locator("ul[role=listbox] li").filter(has_text="abilities").first).to_be_visible()
    open_part(tab, "Chat")
    tab.click("#history button")
    tab.locator("#history-list input").click()
    options = tab.locator("ul[role=listbox] li")
    expect(options.filter(has_text="Hello")).to_have_count(1)
    expect(options.filter(has_text="⚠ 20260101-bbbbbb")).to_have_count(1)
    options.filter(has_text="⚠ 20260101-bbbbbb").click()
    expect(tab.locator("#history-note")).to_contain_text("cannot be read: it is nested")
    open_part(tab, "Probes")
    expect(tab.locator("#probe-run")).to_be_visible()


def test_a_title_is_text_everywhere(tab, broken):
    """Issue: a title with `<a href>` became a link in the legend."""
    page, good = broken
    good.set_notes(title=MARKUP[:80])
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    open_part(tab, "Runs")
    tab.locator("#runs-selected input").fill(good.id)
    tab.locator("#runs-selected input").press("Enter")
    expect(tab.locator("#runs-status")).to_contain_text(good.id)
    tab.get_by_role("tab", name="Compare", exact=False).first.click()
    tab.click("#compare-add")
    other = Run(page.workspace / "runs" / "20260101-000000-broken-samples")
    other.metrics.write_text('{"current_steps": 1, "total_steps": 2, "loss": 2.0}\n')
    tab.locator("#compare-runs input").fill(other.id)
    tab.locator("#compare-runs input").press("Enter")
    expect(tab.locator("#compare-chart .legendtext").first).to_contain_text('<a href="https://ev…', timeout=20_000)
    links = (
        "[...document.querySelectorAll('a')].map(a => a.getAttribute('href') ||"
        " a.getAttributeNS('http://www.w3.org/1999/xlink', 'href') || '')"
    )
    assert not [link for link in tab.evaluate(links) if "evil" in link]
    assert tab.evaluate("window.owned") is None


def job_of(page) -> "psutil.Process | None":
    """The data worker's job that is going."""
    for child in psutil.Process(page.process.pid).children():
        with contextlib.suppress(psutil.Error):
            words = child.cmdline()
            if "workbench.data.worker" in words and str(JOB_MEMORY) in words:
                return child
    return None


def gone(process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    return True


def until(tab, true):
    """What `true()` gives, once it is true. Fails when it never is."""
    deadline = time.monotonic() + 60
    while not (found := true()):
        assert time.monotonic() < deadline
        tab.wait_for_timeout(50)
    return found


def stopped(tab, page, button: str, words: str) -> None:
    """Stop the change that has begun. It waits for the lock, which the test holds: its work is half done for sure."""
    half_done = lambda: list((page.workspace / "uploads").glob(".new-*"))  # noqa: E731
    until(tab, half_done)
    process = until(tab, lambda: job_of(page))
    tab.click(button)
    expect(tab.locator(words)).to_contain_text("Stopped")
    until(tab, lambda: gone(process) and not half_done())


def test_long_changes_can_be_stopped(tab, page):
    """Upload, change of a row, copy: each process is ended by its Stop, and nothing half-done is left."""
    rows = '{"instruction": "a", "output": "b"}\n' * 3
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    open_part(tab, "Data")
    field = tab.locator("#data-drop input[type=file]")
    field.set_input_files({"name": "first.jsonl", "mimeType": "text/plain", "buffer": rows.encode()})
    expect(tab.locator("#data-uploaded")).to_contain_text("first is there", timeout=60_000)
    expect(tab.locator("#data-upload-stop")).to_be_hidden()
    with locked(page.workspace / "uploads" / ".lock"):
        field.set_input_files({"name": "second.jsonl", "mimeType": "text/plain", "buffer": rows.encode()})
        stopped(tab, page, "#data-upload-stop", "#data-uploaded")
        assert not (page.workspace / "uploads" / "second.jsonl").exists()
        expect(tab.locator("#data-rows .wb-row").first).to_be_visible(timeout=60_000)
        tab.click("#data-edit button")
        tab.click("#data-fetch")
        expect(tab.locator("#data-source textarea")).to_have_value(re.compile("instruction"))
        tab.locator("#data-source textarea").fill('{"instruction": "new", "output": "b"}')
        tab.click("#data-save")
        stopped(tab, page, "#data-edit-stop", "#data-edited")
        assert (page.workspace / "uploads" / "first.jsonl").read_text() == rows
        open_part(tab, "Split, copy, layout")
        tab.click("#data-copy")
        stopped(tab, page, "#data-files-stop", "#data-filed")
        assert not list((page.workspace / "uploads").glob("*-copy*"))
