"""The one gate before everything that the page's port serves: page, events, files, `/v1`.

It is the outermost layer of the server, so that nothing behind it (Gradio's own routes included) has to be trusted with
it:

- **Host** must be a name of this server. A foreign name that points here is DNS rebinding.
- **Origin, Sec-Fetch-Site**: what changes something comes from this page, or from no page at all (curl, the openai
  client). Pages of other sites may link here, and nothing else.
- **Routes**: of Gradio's only those that the page needs (`_ROUTES`).
- **Events**: a file named in one must have been uploaded by the same browser (`Uploads`).
- **Logins** are slowed (`logins.Attempts`), cookies are `HttpOnly` and `SameSite=Strict`, and `Secure` behind TLS.
- **Answers** carry the headers below; no CORS header leaves.

`X-Forwarded-*` counts only from proxies that were named; from others it is taken out.
"""

import math
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from workbench.engine.door import Door, host_name, same_origin
from workbench.messages.message import Message
from workbench.storage.users import User
from workbench.ui.logins import Attempts

MAX_EVENT = 4 << 20  # bytes of an event's inputs
MAX_PARTS = 20_000  # lists and objects in them
MAX_SMALL = 64 << 10  # bytes of a login form, and of what else is sent
COOKIE = "workbench_session"  # which browser uploaded what; says nothing of who is logged in

_SAFE = ("GET", "HEAD")
# what shows the page and its login, and what only the page asks for
_SHOWN = (
    r"/|/config/?|/(assets|static|svelte)/.+|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?|/login/?|/logout"
    r"|/gradio_api/(startup-events|login_check/?|theme\.css)"
)
_ASKED = (
    r"/gradio_api/(queue/(join|data)|run/predict/?|heartbeat/[\w-]+|upload|upload_progress|file=.+|cancel|reset/?|user/?"
    r")"
)
_OPEN, _ROUTES = re.compile(_SHOWN), re.compile(f"{_SHOWN}|{_ASKED}")
_EVENT = re.compile(r"/gradio_api/(queue/join|run/predict/?)")
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src"
        " 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self' data: blob:;"
        " worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self';"
        " frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_FILE_POLICY = "default-src 'none'; sandbox"  # of files that somebody uploaded
_FORWARDED = (
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
)


class Uploads:
    """Which browser (by `COOKIE`) uploaded which files; the oldest are forgotten."""

    EACH, OWNERS = 200, 2000

    def __init__(self):
        self._paths: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()  # by cookie

    def add(self, owner: str, paths: list[str]) -> None:
        own = self._paths.setdefault(owner, OrderedDict())
        own.update(dict.fromkeys(paths))
        while len(own) > self.EACH:
            own.popitem(last=False)
        self._paths.move_to_end(owner)
        while len(self._paths) > self.OWNERS:
            self._paths.popitem(last=False)

    def has(self, owner: str, path: str) -> bool:
        return bool(owner) and path in self._paths.get(owner, ())


class Gate:
    """ASGI middleware; see the module."""

    def __init__(self, app, door: Door | None = None, logged_in: Callable[[dict[str, str]], User | None] | None = None):
        """`logged_in`: the user whose cookies these are; nothing of others is read. None: everybody is one."""
        self.app, self.door, self.logged_in = app, door or Door(), logged_in
        self.uploads, self.attempts = Uploads(), Attempts()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        scope = self._forwarded(scope)
        headers, path = Headers(scope=scope), self._path(scope)
        secure, owner = scope["scheme"] == "https", _cookie(headers)
        fresh = "" if owner else secrets.token_urlsafe(24)

        async def out(message):
            if message["type"] == "http.response.start":
                given = MutableHeaders(raw=message["headers"])
                _dress(given, path, secure)
                if fresh and path == "/":
                    given.append(
                        "set-cookie", f"{COOKIE}={fresh}; Path=/; HttpOnly; SameSite=Strict{'; Secure' * secure}"
                    )
            await send(message)

        # also where nobody has to be one: a login that has ended is not passed on to Gradio
        user = self.logged_in(_cookies(headers)) if self.logged_in else None
        if refused := self._refusal(scope, headers, path):
            await refused(scope, receive, out)
        elif self.logged_in and not user and not path.startswith("/v1") and not _OPEN.fullmatch(path):
            await JSONResponse({"detail": "Not authenticated"}, 401)(scope, receive, out)
        elif scope["method"] == "POST" and _EVENT.fullmatch(path):
            await self._event(scope, receive, out, owner)
        elif scope["method"] == "POST" and path.rstrip("/") == "/gradio_api/upload":
            if user and not user.may("train"):
                await PlainTextResponse(Message("role_may_not", role=user.role, needed="train"), 403)(
                    scope, receive, out
                )
            else:
                await self._upload(scope, receive, out, owner)
        elif scope["method"] == "POST" and path.rstrip("/") == "/login":
            await self._login(scope, receive, out)
        elif scope["method"] == "POST" and not path.startswith("/v1"):
            await self._small(scope, receive, out)
        else:
            await self.app(scope, receive, out)

    # --- who asks

    def _forwarded(self, scope) -> dict:
        """The request as the user made it: what a named proxy says of it counts, what others say is taken out."""
        peer = (scope.get("client") or ("", 0))[0]
        headers = Headers(scope=scope)
        kept = [(key, value) for key, value in scope["headers"] if key not in _FORWARDED]
        scope = {**scope, "headers": kept}
        if not self.door.trusts(peer):
            return scope
        hops = [hop.strip() for hop in headers.get("x-forwarded-for", "").split(",") if hop.strip()]
        while len(hops) > 1 and self.door.trusts(hops[-1]):
            hops.pop()
        if hops:
            scope["client"] = (hops[-1][:64], 0)
        if headers.get("x-forwarded-proto", "").split(",")[-1].strip().lower() == "https":
            scope["scheme"] = "https"
        if host := headers.get("x-forwarded-host", "").split(",")[-1].strip():
            kept[:] = [(key, value) for key, value in kept if key != b"host"] + [(b"host", host.encode("latin-1"))]
        if scope["scheme"] == "https":  # Gradio makes its addresses from this
            kept.append((b"x-forwarded-proto", b"https"))
        return scope

    def _path(self, scope) -> str:
        path, root = scope["path"], self.door.root_path.rstrip("/")
        return path[len(root) :] or "/" if root and path.startswith(f"{root}/") else path

    def _refusal(self, scope, headers: Headers, path: str) -> Response | None:
        """Why a request is not let in, or None."""
        api = path == "/v1" or path.startswith("/v1/")

        def no(status: int, message: str, code: str) -> Response:
            if api:
                return JSONResponse(
                    {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}},
                    status,
                )
            return PlainTextResponse(message, status)

        host = headers.get("host", "")
        name = host_name(host)
        reached = (scope.get("server") or ("", 0))[0]
        if not name or not self.door.knows(name, reached):
            known = ", ".join(("127.0.0.1", "localhost", *self.door.hosts))
            return no(
                403,
                f"This server does not answer to the name {name[:100] or 'that was sent'!r}. It is known as: {known}. "
                "Start it with --allowed-host NAME to add one.",
                "forbidden_host",
            )
        site, origin, method = headers.get("sec-fetch-site", ""), headers.get("origin"), scope["method"]
        if path == "/logout" and not site:  # a browser that does not say so still names the page that an image is on
            origin = origin or headers.get("referer") or origin
        mine = origin is None or same_origin(origin, scope["scheme"], host, by_browser=site == "same-origin")
        foreign = site not in ("", "same-origin", "none")
        if method in _SAFE and path != "/logout":
            # another site may link to a page; it may not load, frame or read anything from here
            linked = (
                headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
            )
            if not mine or (foreign and not linked):
                return no(403, "Pages of other sites may link to this server, but not use it.", "forbidden_origin")
        elif not mine or foreign or (site == "none" and method not in _SAFE):
            return no(
                403,
                "This request comes from a page of another site. Behind a proxy with TLS, name the proxy with"
                " --trusted-proxy ADDRESS.",
                "forbidden_origin",
            )
        if api:
            return None
        if method not in (*_SAFE, "POST"):
            return no(405, f"{method} is not used here.", "method_not_allowed")
        if not _ROUTES.fullmatch(path) or re.match(r"/gradio_api/file=\s*[a-zA-Z][\w+.-]*:/", path):
            return no(404, "There is nothing here.", "not_found")
        return None

    # --- what is asked

    async def _event(self, scope, receive, send, owner: str) -> None:
        """An event of the page: its inputs must be JSON, of bounded size, and name only files of this browser."""
        body = await _body(receive, MAX_EVENT)
        if body is None:
            await PlainTextResponse(f"The inputs are larger than {MAX_EVENT >> 20} MiB.", 413)(scope, receive, send)
            return
        if body.count(b"[") + body.count(b"{") > MAX_PARTS:
            await PlainTextResponse(f"The inputs have more than {MAX_PARTS:,} parts.", 413)(scope, receive, send)
            return
        try:
            values = orjson.loads(body)  # which refuses what is nested more than 1024 deep
            if not isinstance(values, dict):
                raise ValueError
        except ValueError:
            await PlainTextResponse("An event is a JSON object.", 400)(scope, receive, send)
            return
        if any(not self.uploads.has(owner, path) for path in file_paths(values)):
            await PlainTextResponse("A file that this browser has not uploaded cannot be named.", 403)(
                scope, receive, send
            )
            return
        del values
        await self.app(scope, _again(body, receive), send)

    async def _small(self, scope, receive, send) -> None:
        """What else is sent, such as the name of an event that is cancelled."""
        body = await _body(receive, MAX_SMALL)
        if body is None:
            await PlainTextResponse(f"The request is larger than {MAX_SMALL >> 10} KiB.", 413)(scope, receive, send)
            return
        await self.app(scope, _again(body, receive), send)

    async def _upload(self, scope, receive, send, owner: str) -> None:
        """Remember whose the uploaded files are."""
        if not owner:
            await PlainTextResponse("Open the page before you upload.", 403)(scope, receive, send)
            return
        answer, status = bytearray(), 0

        async def note(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status == 200 and len(answer) < MAX_EVENT:
                answer.extend(message.get("body", b""))
                if not message.get("more_body"):  # before the browser has it, and can name the files
                    self.uploads.add(owner, [path for path in orjson.loads(bytes(answer)) if isinstance(path, str)])
            await send(message)

        await self.app(scope, receive, note)

    async def _login(self, scope, receive, send) -> None:
        """Let an attempt through, unless too many from this address or for this name have failed lately."""
        body = await _body(receive, MAX_SMALL)
        if body is None:
            await PlainTextResponse("The form is too large.", 413)(scope, receive, send)
            return
        try:
            async with Request(scope, _again(body, receive)).form(max_files=1, max_fields=10) as form:
                name = str(form.get("username", "")).strip()[:200]
        except Exception:  # not a form
            name = ""
        address = (scope.get("client") or ("", 0))[0]
        if wait := self.attempts.wait(address, name):
            seconds = math.ceil(wait)
            sentence = f"Too many wrong passwords. Try again in {seconds} s."
            await JSONResponse({"detail": sentence}, 429, {"retry-after": str(seconds)})(scope, receive, send)
            return
        self.attempts.failed(address, name)  # until it is known to be right, so that attempts at the same moment count

        async def note(message):
            if message["type"] == "http.response.start" and message["status"] < 400:
                self.attempts.succeeded(address, name)
            await send(message)

        await self.app(scope, _again(body, receive), note)


def file_paths(values) -> Iterator[str]:
    """The paths of all files in an event's inputs: of every object that could be taken for one of Gradio's files."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            if isinstance(value.get("path"), str) and ("meta" in value or "url" in value or "orig_name" in value):
                yield value["path"]
            elif _is_file(value):
                yield str(value.get("path"))


def _is_file(value: dict) -> bool:
    meta = value.get("meta")
    return isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"


def _cookies(headers: Headers) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return {name: value for name, _, value in pairs}


def _cookie(headers: Headers) -> str:
    """The browser's cookie of this server, or nothing."""
    value = _cookies(headers).get(COOKIE, "")
    return value if re.fullmatch(r"[\w-]{20,64}", value) else ""


def _dress(headers: MutableHeaders, path: str, secure: bool) -> None:
    """An answer's headers as they may leave."""
    for name in [name for name in headers if name.startswith("access-control-") or name == "server"]:
        del headers[name]
    for name, value in _HEADERS.items():
        headers[name] = value
    if path.startswith("/gradio_api/file=") and not path.endswith(".js"):
        headers["content-security-policy"] = _FILE_POLICY
    cookies = headers.getlist("set-cookie")
    if cookies:
        del headers["set-cookie"]
        for cookie in cookies:
            headers.append("set-cookie", _strict(cookie, secure))


def _strict(cookie: str, secure: bool) -> str:
    kept = [part.strip() for part in cookie.split(";")]
    kept = [part for part in kept if part.partition("=")[0].lower() not in ("httponly", "secure", "samesite")]
    return "; ".join([*kept, "HttpOnly", "SameSite=Strict", *["Secure"] * secure])


async def _body(receive, limit: int) -> bytes | None:
    """A request's body, or None if it is larger than `limit` bytes or its client is gone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive):
    """A `receive` that gives a body that was read already, then what comes after it."""
    given = False

    async def again():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
