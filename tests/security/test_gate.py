"""The gate alone, before an app that says what reached it: hosts, origins, routes, files, proxies, cookies, logins."""

import json

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from workbench.engine.door import Door
from workbench.ui.gate import COOKIE, Gate, file_paths
from workbench.ui.logins import BY_ADDRESS, BY_NAME, Attempts

OWNER = "a" * 32


async def echo(request: Request):
    seen = {
        "path": request.url.path,
        "host": request.headers.get("host"),
        "scheme": request.url.scheme,
        "client": request.client.host,
        "forwarded": {k: v for k, v in request.headers.items() if "forward" in k},
        "body": (await request.body()).decode(),
    }
    # as Gradio answers: any origin is let in with credentials
    return JSONResponse(
        seen,
        headers={"access-control-allow-origin": "https://evil.example", "access-control-allow-credentials": "true"},
    )


async def login(request: Request):
    form = await request.form()
    if form["password"] != "right":
        return JSONResponse({"detail": "Incorrect credentials."}, 400)
    answer = JSONResponse({"success": True})
    answer.set_cookie("access-token-x", "t", httponly=True, samesite="none", secure=True)
    answer.set_cookie("access-token-unsecure-x", "t")
    return answer


async def upload(request: Request):
    return JSONResponse(["/w/uploads/.incoming/1/a.jsonl"])


def through(
    door: Door | None = None, client=("127.0.0.1", 5), base="http://127.0.0.1:7860", logged_in=None
) -> TestClient:
    app = Starlette(
        routes=[
            Route("/login", login, methods=["POST"]),
            Route("/gradio_api/upload", upload, methods=["POST"]),
            Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]),
        ]
    )
    return TestClient(Gate(app, door, logged_in), base_url=base, client=client)


# --- names


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        ("127.0.0.1:7860", True), ("localhost", True), ("LOCALHOST:80", True), ("localhost.", True), ("[::1]:7860", True), ("box.lan", True),
        ("a.example.com", True), ("evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
        ("example.com", False), ("evilexample.com", False), ("", False), ("box.lan@evil.example", False), ("127.0.0.1:7860:1", False),
        ("192.168.1.7", False), ("2130706433", False), ("0x7f.1", False), ("box.lan/x", False), ("box.lan evil", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/startup-events", "/v1/models", "/assets/x.js", "/login"])
def test_only_names_of_this_server(host, let_in, path):
    answer = through(Door(("box.lan", "*.example.com"))).get(path, headers={"host": host})
    assert answer.status_code == (200 if let_in else 403)
    if not let_in:
        assert "--allowed-host" in answer.text and "127.0.0.1" in answer.text
        if path.startswith("/v1"):
            assert answer.json()["error"]["code"] == "forbidden_host"


def test_the_address_a_connection_came_in_at_is_known():
    """Bound to all addresses, an IP address as name cannot be rebound."""
    client = through(base="http://192.168.1.7:7860")  # Starlette's client makes that the server's address, too
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "192.168.1.8:7860"}).status_code == 403


# --- other sites

FOREIGN = [
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"}, {"origin": "http://localhost:7860"},
    {"origin": "https://127.0.0.1:7860"}, {"origin": "http://127.0.0.1:7860.evil.example"}, {"origin": "file://"},
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "none"},
    {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-site"}, {"origin": "http://["},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    "path",
    ["/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/upload", "/login", "/v1/chat/completions"],
)
def test_pages_of_other_sites_change_nothing(headers, path):
    answer = through().post(path, headers=headers | {"cookie": f"{COOKIE}={OWNER}"}, content=b"{}")
    assert answer.status_code == 403 and "another site" in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:7860"},
        {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"},
        {"origin": "https://127.0.0.1:7860", "sec-fetch-site": "same-origin"},
    ],
)
def test_the_own_page_and_programs_do(headers):
    assert through().post("/gradio_api/run/predict", headers=headers, content=b"{}").status_code == 200
    assert through().post("/v1/completions", headers=headers, content=b"{}").status_code == 200


def test_other_sites_may_link_here_and_no_more():
    client, cross = through(), {"sec-fetch-site": "cross-site"}
    linked = cross | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=linked).status_code == 200
    assert client.get("/", headers=linked | {"sec-fetch-dest": "iframe"}).status_code == 403
    assert (
        client.get(
            "/gradio_api/file=x.jsonl", headers=cross | {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}
        ).status_code
        == 403
    )
    assert (
        client.get("/config", headers=cross | {"sec-fetch-mode": "cors", "origin": "https://evil.example"}).status_code
        == 403
    )
    assert client.get("/logout", headers=linked).status_code == 403  # nor log anybody out
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/gradio_api/run/predict", headers=preflight)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/file=/x", "/v1/models", "/nowhere"])
def test_headers_of_every_answer(path):
    answer = through().get(path)
    assert (
        "frame-ancestors 'self'" in answer.headers["content-security-policy"]
        or "sandbox" in answer.headers["content-security-policy"]
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "server"]


# --- routes

HIDDEN = [
    "/gradio_api/proxy=http://169.254.169.254/", "/gradio_api/file=http://169.254.169.254/x", "/gradio_api/file=https://evil.example/x",
    "/gradio_api/file= http://evil.example/x", "/gradio_api/deep_link", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/call/x",
    "/gradio_api/api/predict", "/gradio_api/vibe-code", "/gradio_api/process_recording", "/gradio_api/component_server", "/monitoring",
    "/gradio_api/dev/reload", "/gradio_api/stream/x", "/gradio_api/custom_component/1/2/3/4", "/gradio_api/runs", "/docs", "/openapi.json",
    "/gradio_api/run/other", "/gradio_api/file/etc/passwd", "//etc/passwd", "/gradio_api/token",
]  # fmt: skip


@pytest.mark.parametrize("path", HIDDEN)
def test_routes_that_the_page_does_not_need_are_not_there(path):
    client = through()
    assert client.get(path).status_code == 404 and client.post(path, content=b"{}").status_code == 404
    assert client.put("/").status_code == 405 and client.delete("/config").status_code == 405


# --- files in events


def named(path, **more) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


FILES = [
    named("/etc/passwd"), {"path": "/etc/passwd", "url": None}, {"path": "/etc/passwd", "orig_name": "x"}, [[named("/etc/passwd")]],
    {"a": {"b": [1, named("http://169.254.169.254/")]}}, {"files": [named("/dev/zero")]}, {"meta": {"_type": "gradio.FileData"}, "path": 3},
    {"meta": {"_type": "gradio.FileData"}, "url": "/etc/passwd"},
]  # fmt: skip


@pytest.mark.parametrize("value", FILES)
@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/queue/join"])
def test_an_event_names_no_file_that_was_not_uploaded(value, path):
    client = through()
    for body in ({"data": [value]}, {"data": ["x"], "event_data": value}, {"data": [], "session_hash": value}):
        answer = client.post(path, json=body)
        assert answer.status_code == 403 and "not uploaded" in answer.text


def test_a_file_is_named_by_who_uploaded_it():
    client, mine, other = through(), {"cookie": f"{COOKIE}={OWNER}"}, {"cookie": f"{COOKIE}={'b' * 32}"}
    assert client.post("/gradio_api/upload", content=b"x").status_code == 403  # no page was opened
    (path,) = client.post("/gradio_api/upload", content=b"x", headers=mine).json()
    body = {"data": [named(path)]}
    assert client.post("/gradio_api/run/predict", json=body, headers=mine).status_code == 200
    assert client.post("/gradio_api/run/predict", json=body, headers=other).status_code == 403
    assert client.post("/gradio_api/run/predict", json=body).status_code == 403
    beside = {"data": [named(path.replace("a.jsonl", "../../b.jsonl"))]}
    assert client.post("/gradio_api/run/predict", json=beside, headers=mine).status_code == 403


def test_what_is_no_event():
    client = through()
    for body in (
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"{" * 10_000,
        b'{"a":' * 10_000,
        b'{"data": [' + b"[" * 5000 + b"]" * 5000 + b"]}",
    ):
        assert client.post("/gradio_api/run/predict", content=body).status_code == 400
    assert client.post("/gradio_api/run/predict", content=b'{"data": ["' + b"x" * (4 << 20) + b'"]}').status_code == 413
    assert list(file_paths({"data": [{"path": "just text"}, {"meta": 1}, "…"]})) == []


# --- proxies

FORWARDED = {
    "x-forwarded-for": "203.0.113.9, 10.0.0.2",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "box.example",
}


def test_what_a_proxy_says_counts_only_from_named_ones():
    door = Door(("box.example",), ("10.0.0.0/8", "::1"))
    answer = through(door, client=("10.0.0.1", 1)).get("/", headers=FORWARDED)
    seen = answer.json()
    assert (seen["host"], seen["scheme"], seen["client"]) == ("box.example", "https", "203.0.113.9")
    assert "Secure" in answer.headers["set-cookie"]
    for client in (("127.0.0.1", 1), ("11.0.0.1", 1), ("testclient", 1)):
        answer = through(door, client=client).get("/", headers=FORWARDED)
        seen = answer.json()
        assert (
            seen["scheme"] == "http"
            and seen["client"] == client[0]
            and not seen["forwarded"]
            and "Secure" not in answer.headers["set-cookie"]
        )
        assert seen["host"] == "127.0.0.1:7860"
    assert (
        through(door, client=("10.0.0.1", 1))
        .get("/", headers=FORWARDED | {"x-forwarded-host": "evil.example"})
        .status_code
        == 403
    )
    post = through(door, client=("10.0.0.1", 1)).post("/v1/x", headers=FORWARDED | {"origin": "https://box.example"})
    assert post.status_code == 200
    plain = through(door, client=("10.0.0.1", 1)).post("/v1/x", headers=FORWARDED | {"origin": "http://box.example"})
    assert plain.status_code == 403  # another service of that host


def test_a_prefix_that_the_proxy_leaves_on():
    client = through(Door(root_path="/workbench"))
    assert (
        client.get("/workbench/config").status_code == 200
        and client.get("/workbench/gradio_api/info").status_code == 404
    )
    assert client.post("/workbench/gradio_api/run/predict", json={"data": [named("/etc/passwd")]}).status_code == 403


def test_a_door_that_is_no_address():
    with pytest.raises(ValueError, match="nonsense"):
        Door(proxies=("nonsense",))


# --- cookies and logins


def test_cookies_are_strict_and_secure_behind_tls_only():
    right = {"username": "a", "password": "right"}
    for door, client, secure in (
        (None, ("127.0.0.1", 1), False),
        (Door(("box.example",), ("10.0.0.1",)), ("10.0.0.1", 1), True),
    ):
        answer = through(door, client).post("/login", data=right, headers=FORWARDED if secure else {})
        for cookie in answer.headers.get_list("set-cookie"):
            parts = [part.strip() for part in cookie.split(";")]
            assert "HttpOnly" in parts and "SameSite=Strict" in parts and ("Secure" in parts) is secure
            assert not [part for part in parts if part.lower() == "samesite=none"]


def test_wrong_passwords_are_slowed_by_address():
    client, wrong = through(), {"username": "a", "password": "wrong"}
    answers = [client.post("/login", data=wrong) for _ in range(50)]
    looked_at = [a for a in answers if a.status_code == 400]
    assert len(looked_at) == BY_ADDRESS[0] and all(a.status_code == 429 for a in answers[BY_ADDRESS[0] :])
    assert "Try again in" in answers[-1].json()["detail"] and int(answers[-1].headers["retry-after"]) >= 1
    # also the right one, or guessing would go on; another address is not held up
    assert client.post("/login", data=wrong | {"password": "right"}).status_code == 429
    other = TestClient(client.app, base_url="http://127.0.0.1:7860", client=("10.1.1.1", 1))
    assert other.post("/login", data={"username": "a", "password": "right"}).status_code == 200


def test_attempts_come_back_and_names_count_over_all_addresses():
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for number in range(BY_ADDRESS[0]):
        assert attempts.wait("a", "n") == 0, number
        attempts.failed("a", "n")
    assert 0 < attempts.wait("a", "n") <= BY_ADDRESS[1] and attempts.wait("b", "n") == 0
    now[0] += BY_ADDRESS[1]
    assert attempts.wait("a", "n") == 0
    for number in range(100):
        attempts.failed(f"address {number}", "root")
    assert attempts.wait("a new one", "root") > BY_NAME[1]
    attempts.failed("c", "m")
    attempts.succeeded("c", "m")
    assert attempts._failures.get(("address", "c")) is None
    for number in range(30_000):
        attempts.failed(str(number), str(number))
    assert len(attempts._failures) <= 10_000


def test_a_login_form_that_is_none():
    client = through()
    assert client.post("/login", content=b"x" * (65 << 10)).status_code == 413
    assert json.dumps(client.get("/").json())  # it goes on


# --- what a second look found


def test_an_event_of_very_many_parts_is_not_parsed():
    """16 MiB of `[],` took seconds of the whole page, and a gigabyte."""
    answer = through().post("/gradio_api/queue/join", content=b'{"data":[' + b"[]," * 30_000 + b"1]}")
    assert answer.status_code == 413 and "parts" in answer.text


def test_what_else_is_sent_is_small():
    client = through()
    for path in ("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/reset/"):
        assert client.post(path, content=b"{}").status_code == 200
        assert client.post(path, content=b"x" * (65 << 10)).status_code == 413


def test_nothing_is_read_of_who_is_not_logged_in():
    inside = lambda cookies: cookies.get("token") == "right"  # noqa: E731
    client = through(logged_in=inside)
    for path in (
        "/gradio_api/queue/join",
        "/gradio_api/run/predict",
        "/gradio_api/upload",
        "/gradio_api/cancel",
        "/gradio_api/reset",
    ):
        assert client.post(path, content=b"{" * 1000).status_code == 401
    for path in (
        "/gradio_api/file=/x",
        "/gradio_api/heartbeat/abc",
        "/gradio_api/queue/data",
        "/gradio_api/upload_progress",
    ):
        assert (
            client.get(path).status_code == 401
            and client.get(path, headers={"cookie": "a=b; token=right"}).status_code == 200
        )
    for path in (
        "/",
        "/assets/x.js",
        "/theme.css",
        "/gradio_api/startup-events",
        "/config",
        "/v1/models",
    ):  # which ask themselves, or show the login
        assert client.get(path).status_code == 200
    assert client.post("/gradio_api/cancel", content=b"{}", headers={"cookie": "token=right"}).status_code == 200


def test_an_image_of_another_page_logs_nobody_out():
    """On plain http beyond loopback browsers send no Sec-Fetch-Site."""
    client = through(base="http://192.168.1.7:7860")
    assert client.get("/logout", headers={"referer": "http://evil.example/x"}).status_code == 403
    assert client.get("/logout", headers={"referer": "http://192.168.1.7:7860/"}).status_code == 200


def test_one_user_pushes_no_other_ones_files_out():
    from workbench.ui.gate import Uploads

    uploads = Uploads()
    uploads.add("ann", ["/a"])
    for number in range(10):
        uploads.add("mallory", [f"/{number}/{i}" for i in range(1000)])
    assert uploads.has("ann", "/a") and not uploads.has("mallory", "/a") and not uploads.has("", "/a")
    assert sum(map(len, uploads._paths.values())) <= 201


def test_a_name_with_spaces_before_it_is_the_same_name():
    client = through()
    client.post("/login", data={"username": " " * 300 + "ann", "password": "wrong"})
    assert ("name", "ann") in client.app.attempts._failures
