"""From a Word document to a dataset: upload, look, ask another server for pairs, look at each, keep some."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from workbench.storage.workspace import DEMO_MODEL, Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


class Server(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server whose model finds two pairs in every passage; in the second, none."""

    asked: list[str] = []

    def do_GET(self):
        self._say({"object": "list", "data": [{"id": "stub", "object": "model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        passage = body["messages"][0]["content"].rpartition("Text:\n")[2]
        Server.asked.append(passage)
        begin = passage.split(".")[0]
        found = [{"question": f"What of <b>{begin}</b>?", "answer": f"{begin}, {n}"} for n in (1, 2)]
        text = "I cannot." if len(Server.asked) == 2 else json.dumps(found)
        message = {"role": "assistant", "content": text}
        self._say({"id": "x", "object": "chat.completion", "created": 1, "model": "stub", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})  # fmt: skip

    def _say(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory, demo_model):
    workspace = Workspace(tmp_path_factory.mktemp("documents")).create()
    (workspace.models / DEMO_MODEL).symlink_to(demo_model)
    page = Page(workspace.root)
    yield page
    page.end()


def test_pairs_of_a_document_are_looked_at_before_they_are_kept(opened, page, server, tmp_path):
    made = docx.Document()
    for number in range(3):
        made.add_paragraph(f"Chapter {number}. " + "Some words. " * 15)
    made.save(tmp_path / "book.docx")
    open_part(opened, "Chat")
    opened.click("#other-server button")
    opened.check("#external input")
    opened.fill("#server-url input, #server-url textarea", server)
    opened.click("#find-models")
    expect(opened.locator("#server-found")).to_contain_text("stub")
    open_part(opened, "Data")
    opened.set_input_files("#data-drop input[type=file]", str(tmp_path / "book.docx"))
    expect(opened.locator("#data-rows .wb-row")).to_have_count(3)
    open_part(opened, "From a document")
    expect(opened.locator("#pairs-keep")).to_be_disabled()
    length = opened.locator("#pairs-length input")
    length.fill("200")
    length.press("Tab")
    opened.click("#pairs-ask")
    expect(opened.locator("#pairs-asked")).to_contain_text("4 pairs from 3 passages. For 1 of them")
    question, answer = opened.locator("#pairs-question textarea"), opened.locator("#pairs-answer textarea")
    expect(question).to_have_value("What of <b>Chapter 0</b>?")
    expect(opened.locator("#pairs-counted")).to_contain_text("4 to look at, 0 kept, 0 left out")
    assert not (page.workspace / "uploads" / "book-qa.jsonl").exists()  # nothing is kept by itself
    question.fill("What is chapter 0?")
    opened.click("#pairs-keep")
    expect(opened.locator("#pairs-message")).to_contain_text("Kept in book-qa, which has 1 rows now.")
    expect(answer).to_have_value("Chapter 0, 2")
    opened.click("#pairs-leave")
    expect(opened.locator("#pairs-counted")).to_contain_text("2 to look at, 1 kept, 1 left out")
    expect(opened.locator("#pairs-passage")).to_contain_text("Chapter 2.")
    opened.click("#pairs-keep")
    expect(opened.locator("#pairs-message")).to_contain_text("2 rows")
    opened.click("#pairs-leave")
    expect(question).to_have_value("")
    expect(opened.locator("#pairs-keep")).to_be_disabled()
    rows = [json.loads(line)["messages"] for line in (page.workspace / "uploads" / "book-qa.jsonl").open()]
    assert [row[0]["content"] for row in rows] == ["What is chapter 0?", "What of <b>Chapter 2</b>?"]
    assert len(Server.asked) == 3
