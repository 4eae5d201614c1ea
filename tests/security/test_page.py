"""A real page under attack: files through events, routes, logins, names, a proxy."""

import asyncio
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest

from tests.browser.conftest import Page
from tests.security.conftest import Client

pytestmark = pytest.mark.process

SECRET = "root:x:0:0"


def named(path: str, **more) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def cached(page: Page) -> set[Path]:
    """Files in the folder that Gradio serves from."""
    return {path for path in (page.workspace / "uploads" / ".incoming").rglob("*") if path.is_file()}


def test_every_event_refuses_files_in_every_input(page, client):
    """Issue: any file of the machine could be read through any text field."""
    config, before, tried = client.get("/config").json(), cached(page), 0
    files = [named(path) for path in ("/etc/passwd", "/dev/zero", "http://127.0.0.1:1/", "/proc/self/environ")]
    for event in config["dependencies"]:
        for place in range(len(event["inputs"])):
            data = [None] * len(event["inputs"])
            data[place] = files[tried % len(files)]
            answer = client.event(event["id"], data)
            assert answer.status_code == 403 and SECRET not in answer.text
            tried += 1
        assert client.event(event["id"], [None] * len(event["inputs"]), event_data=files[0]).status_code == 403
        queued = {"data": [files[0]], "fn_index": event["id"], "session_hash": "attacker"}
        assert client.post("/gradio_api/queue/join", json=queued).status_code == 403
    assert len(config["dependencies"]) > 51 and tried > 500 and cached(page) == before


def test_gradios_own_check_is_on(tmp_path):
    """Behind the gate, too: the same events on Gradio's app itself."""
    from starlette.testclient import TestClient

    from workbench.storage.workspace import Workspace
    from workbench.ui.page import build_server

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path / "gradio")
    try:
        gate, _ = build_server(
            Workspace(tmp_path / "w", confined=True).create(), auth=None, api_key="", lang=None, local=True
        )
        inner = TestClient(gate.app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
        config, refused = inner.get("/config").json(), 0
        kinds = {c["id"]: c["type"] for c in config["components"]}
        for event in config["dependencies"]:
            for place, component in enumerate(event["inputs"]):
                if kinds[component] not in ("textbox", "file", "dropdown"):
                    continue
                data = [None] * len(event["inputs"])
                data[place] = named("/etc/passwd")
                answer = inner.post(
                    "/gradio_api/run/predict", json={"data": data, "fn_index": event["id"], "session_hash": "a"}
                )
                assert answer.status_code >= 400 and SECRET not in answer.text, event["id"]
                refused += 1
                break
        assert refused > 20 and not [p for p in (tmp_path / "gradio").rglob("*") if p.is_file()]
    finally:
        del os.environ["GRADIO_TEMP_DIR"]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/proc/self/environ", "file:///etc/passwd", "/dev/zero",
     "uploads/.incoming/../../.page", "..%2f..%2fetc%2fpasswd", "/etc/passwd%00.js"],
)  # fmt: skip
def test_no_file_route_leads_out(page, path):
    for route in (
        "/gradio_api/file=",
        "/gradio_api/file/",
        "/file=",
        "/file/",
        "/static/",
        "/assets/",
        "/gradio_api/custom_component/",
        "/",
    ):
        request = urllib.request.Request(page.url + route + path)
        try:
            body = urllib.request.urlopen(request, timeout=20).read()
            assert route == "/" and SECRET.encode() not in body
        except urllib.error.HTTPError as error:
            assert 400 <= error.code < 500 and SECRET.encode() not in error.read()
        except urllib.error.URLError:
            pass  # no address at all
    own = Path(__file__).resolve()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{page.url}/gradio_api/file={own}", timeout=20)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{page.url}/gradio_api/file={page.workspace / '.page'}", timeout=20)


def test_an_upload_is_its_browsers_own(page, client):
    path = client.upload("mine.jsonl", b'{"instruction": "a", "output": "b"}\n')
    config = client.get("/config").json()
    drop = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "data-drop")
    event = next(
        d for d in config["dependencies"] if d["inputs"] and d["inputs"][0] == drop and d["queue"] is not False
    )
    data = [None] * len(event["inputs"])
    data[0] = named(path)
    with Client(page.url) as other:
        assert other.cookies["workbench_session"] != client.cookies["workbench_session"]
        assert other.event(event["id"], data).status_code == 403
    assert client.event(event["id"], data).status_code != 403
    # a model folder that was only uploaded cannot be loaded
    assert Path(path).parent.is_relative_to(page.workspace / "uploads" / ".incoming")


def test_foreign_names_and_pages_get_nothing(page):
    """Issue: DNS rebinding; cross-site forms; frames."""
    with httpx.Client(base_url=page.url) as plain:
        for path in ("/", "/config", "/gradio_api/startup-events", "/theme.css", "/v1/models"):
            assert plain.get(path, headers={"host": "evil.example"}).status_code == 403
            assert plain.get(path, headers={"host": f"evil.example:{plain.base_url.port}"}).status_code == 403
        form = {"files": ("a.jsonl", b"{}")}
        assert (
            plain.post("/gradio_api/upload", files=form, headers={"origin": "https://evil.example"}).status_code == 403
        )
        assert (
            plain.post("/gradio_api/run/predict", json={}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        )
        answer = plain.get("/", headers={"origin": "http://localhost:9"})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        assert "frame-ancestors 'self'" in plain.get("/").headers["content-security-policy"]


def test_code_that_comes_with_models_needs_the_servers_word(page, client):
    config = client.get("/config").json()
    boxes = [
        c
        for c in config["components"]
        if c["props"].get("elem_id") in ("opt-trust_remote_code", "chat-trust_remote_code")
    ]
    assert len(boxes) == 2 and not any(box["props"]["interactive"] for box in boxes)
    load = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "load")
    event = next(d for d in config["dependencies"] if [load, "click"] in [list(t) for t in d["targets"]])
    ids = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
    values = {c["id"]: c["props"].get("value") for c in config["components"]}
    data = [True if ids[i] == "chat-trust_remote_code" else values[i] for i in event["inputs"]]
    assert "--allow-remote-code" in client.event(event["id"], data).text


# --- logins


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    page = Page.__new__(Page)
    page.workspace, page.arguments = tmp_path_factory.mktemp("g"), ("--auth", "ann:right")
    page.start()
    yield page
    page.end()


def log_in(client: httpx.Client, password: str = "right") -> httpx.Response:
    return client.post("/login", data={"username": "ann", "password": password})


def test_a_login_is_the_pages_own(guarded):
    """Issue: another service on the same host name could use the visitor's login."""
    with Client(guarded.url) as ann:
        assert ann.get("/config").status_code == 401
        answer = log_in(ann)
        assert answer.status_code == 200
        for cookie in answer.headers.get_list("set-cookie"):
            assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "SameSite=none" not in cookie
        assert ann.get("/config").status_code == 200
        port = ann.base_url.port + 1
        for origin in (
            f"http://127.0.0.1:{port}",
            f"http://localhost:{ann.base_url.port}",
            "https://evil.example",
            "null",
        ):
            answer = ann.get("/config", headers={"origin": origin})
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
            assert ann.post("/gradio_api/run/predict", json={}, headers={"origin": origin}).status_code == 403
        assert ann.get("/config", headers={"sec-fetch-site": "same-site"}).status_code == 403


def test_a_session_ends_with_logout_and_with_the_server(guarded):
    with Client(guarded.url) as ann:
        assert log_in(ann).status_code == 200
        kept = dict(ann.cookies)
        assert ann.get("/config").status_code == 200
        assert ann.get("/logout", headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert ann.get("/logout").status_code == 302
        assert ann.get("/config").status_code == 401
    with Client(guarded.url, cookies=kept) as thief:  # the token itself is gone, not only the browser's copy
        assert thief.get("/config").status_code == 401
    with Client(guarded.url) as ann:
        assert log_in(ann).status_code == 200 and ann.get("/config").status_code == 200
        kept = dict(ann.cookies)
    guarded.end()
    guarded.start()
    with Client(guarded.url, cookies=kept) as ann:
        assert ann.get("/config").status_code == 401


def test_guessing_is_slowed(guarded):
    with Client(guarded.url) as thief:
        codes = [log_in(thief, f"guess {number}").status_code for number in range(50)]
    assert codes.count(400) <= 6 and codes[-1] == 429


# --- a proxy


class Proxy:
    """A reverse proxy as nginx is set up for a prefix: it takes the prefix off and says who asked."""

    def __init__(self, target: str, prefix: str, public: str):
        self.target, self.prefix, self.public = target, prefix, public

    async def __call__(self, scope, receive, send):
        path = scope["path"].removeprefix(self.prefix) or "/"
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [(k.decode(), v.decode()) for k, v in scope["headers"] if k not in (b"host", b"content-length")]
        headers += [
            ("x-forwarded-host", self.public),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-for", "203.0.113.9"),
        ]
        query = "?" + scope["query_string"].decode() if scope["query_string"] else ""
        async with httpx.AsyncClient(base_url=self.target) as client:
            answer = await client.request(scope["method"], path + query, content=body, headers=headers)
        kept = [
            (k.encode(), v.encode())
            for k, v in answer.headers.multi_items()
            if k not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        await send({"type": "http.response.body", "body": answer.content})


def asked(proxy: Proxy, method: str, path: str, **more) -> httpx.Response:
    async def ask():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=proxy), base_url=f"https://{proxy.public}"
        ) as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def test_behind_a_named_proxy_with_a_prefix(tmp_path):
    page = Page(
        tmp_path / "w",
        "--allowed-host",
        "box.example",
        "--trusted-proxy",
        "127.0.0.1",
        "--root-path",
        "/workbench",
        "--auth",
        "ann:right",
    )
    try:
        proxy = Proxy(page.url, "/workbench", "box.example")
        mine = {"origin": "https://box.example", "sec-fetch-site": "same-origin"}
        home = asked(proxy, "GET", "/workbench/", headers=mine)
        assert (
            home.status_code == 200
            and "https://box.example/workbench" in home.text
            and "Secure" in home.headers["set-cookie"]
        )
        script = re.search(r'src="\.?/?(assets/[^"]+\.js)"', home.text) or re.search(
            r"(assets/index-[\w-]+\.js)", home.text
        )
        assert asked(proxy, "GET", f"/workbench/{script[1]}", headers=mine).status_code == 200
        form = {"username": "ann", "password": "right"}
        answer = asked(proxy, "POST", "/workbench/login", data=form, headers=mine)
        assert answer.status_code == 200 and all("Secure" in c for c in answer.headers.get_list("set-cookie"))
        # the charts' script is asked for under the prefix, too
        inside = mine | {"cookie": "; ".join(cookie.split(";")[0] for cookie in answer.headers.get_list("set-cookie"))}
        head = asked(proxy, "GET", "/workbench/config", headers=inside).json()["head"]
        address = re.search(r"src = '([^']*plotly[^']*)'", head)[1]
        assert (
            not address.startswith("/")
            and asked(proxy, "GET", f"/workbench/{address}", headers=inside).status_code == 200
        )
        assert (
            asked(proxy, "POST", "/workbench/login", data=form, headers={"origin": "http://box.example"}).status_code
            == 403
        )
        # somebody who reaches the port directly cannot say that he is a proxy for another name
        other = Proxy(page.url, "/workbench", "evil.example")
        assert asked(other, "GET", "/workbench/").status_code == 403
    finally:
        page.end()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--allowed-host", "box.example"), "--auth"), (("--trusted-proxy", "10.0.0.1"), "--auth"), (("--host", "0.0.0.0"), "--auth"),
        (("--trusted-proxy", "nonsense", "--no-auth"), "should be an address"), (("--root-path", "x"), "begin with a slash"),
    ],
)  # fmt: skip
def test_what_the_command_line_refuses(arguments, words, capsys, tmp_path):
    import app

    assert app.main(["--port", "0", "--workspace", str(tmp_path / "w"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_bound_to_all_addresses_as_in_a_container(tmp_path):
    """A published port of a container: the name is the host's, the address the container's."""
    page = Page(tmp_path / "w", "--host", "0.0.0.0", "--no-auth", "--allowed-host", "gpu-box")
    try:
        port = page.url.rsplit(":", 1)[1]
        with httpx.Client(base_url=page.url) as client:
            assert client.get("/", headers={"host": f"localhost:{port}"}).status_code == 200
            assert client.get("/", headers={"host": "gpu-box:8080"}).status_code == 200
            assert client.get("/", headers={"host": "192.168.1.9:8080"}).status_code == 403
            assert client.get("/v1/models").json()["error"]["code"] == "api_key_required"
    finally:
        page.end()


def test_a_page_that_ends_leaves_no_process(tmp_path):
    """Also while somebody is connected."""
    page = Page(tmp_path / "w")
    with httpx.Client(base_url=page.url) as client, client.stream("GET", "/gradio_api/heartbeat/abc"):
        began = time.monotonic()
        page.end()
    assert page.process.returncode is not None and began
