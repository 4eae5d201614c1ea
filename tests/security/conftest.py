"""A real page, and clients that behave like browsers."""

import httpx
import pytest

from tests.browser.conftest import Page, started_chromium, tab  # noqa: F401
from workbench.storage.workspace import DEMO_MODEL, Workspace


class Client(httpx.Client):
    """A browser that has opened the page: it has its cookie, and sends its own origin."""

    def __init__(self, url: str, **more):
        super().__init__(base_url=url, headers={"origin": url, "sec-fetch-site": "same-origin"}, timeout=60, **more)

    def __enter__(self):
        super().__enter__()
        self.get("/")
        return self

    def event(self, index: int, data: list, **more) -> httpx.Response:
        body = {"data": data, "fn_index": index, "session_hash": "attacker", **more}
        return self.post("/gradio_api/run/predict", json=body)

    def upload(self, name: str, content: bytes) -> str:
        """The path of an uploaded file."""
        (path,) = self.post("/gradio_api/upload", files={"files": (name, content)}).json()
        return path


@pytest.fixture(scope="module")
def chromium():
    """Ended with the module, as other tests here use `asyncio.run`."""
    with started_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory, demo_model):
    """On a workspace with the demo model: the first look at a row would have to convert it."""
    workspace = Workspace(tmp_path_factory.mktemp("w")).create()
    (workspace.models / DEMO_MODEL).symlink_to(demo_model)
    page = Page(workspace.root)
    yield page
    page.end()


@pytest.fixture
def client(page):
    with Client(page.url) as client:
        yield client
