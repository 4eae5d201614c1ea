"""`/v1` on the page's port: passes OpenAI requests on to the engine."""

import asyncio
import secrets
from urllib.parse import quote

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from workbench.engine.process import SILENT, Engine
from workbench.errors import UserError
from workbench.messages.message import Message

MAX_BODY = 8 << 20  # bytes
_READ = ("models", "models/{name:path}", "responses/{name}")
ROUTES = {
    "GET": _READ,
    "HEAD": _READ[:2],
    "DELETE": _READ[2:],
    "POST": ("chat/completions", "completions", "responses", "embeddings", "tokenize", "detokenize", "score"),
}
MAX_REQUESTS = 1000  # under way at a time


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    return JSONResponse(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}, status
    )


def add_api(app: FastAPI, engine: Engine, api_key: str, *, needs_key: bool) -> None:
    """Mount OpenAI's routes on `app` and pass them on to the engine. With `needs_key` and no key, all are refused.

    Foreign names and pages of other sites do not come so far (`gate.Gate`).
    """
    client = httpx.AsyncClient(timeout=httpx.Timeout(10, read=None), limits=httpx.Limits(max_connections=MAX_REQUESTS))

    def refusal(request: Request) -> JSONResponse | None:
        if api_key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if secrets.compare_digest(given.encode(), api_key.encode()):
                return None
            return _error(
                401, "The API key is missing or wrong. Send it as: Authorization: Bearer KEY.", "invalid_api_key"
            )
        if needs_key:
            return _error(403, "The API is closed: start the page with --api-key to open it.", "api_key_required")
        return None

    async def forward(request: Request, path: str):
        if refused := refusal(request):
            return refused
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return _error(413, f"The request is larger than {MAX_BODY >> 20} MiB.")
        key = engine.key
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        try:
            sent = client.build_request(request.method, f"{engine.url}/v1/{path}", content=body, headers=headers)
            answer = await _unless_gone(request, client.send(sent, stream=True), engine)
        except UserError as error:
            return _error(503, str(error), "engine_unavailable" if engine.silent else "model_not_loaded")
        except httpx.HTTPError:
            if not engine.keeps(key):
                return _error(503, str(Message("engine_replaced")), "model_not_loaded")
            return _error(502, "The engine did not answer. Load the model again in the Chat tab.", "engine_unavailable")
        if answer is None:  # the client went away, and with the connection the engine's work for it
            return _error(499, "The client closed the connection.")

        async def relay():
            pieces = answer.aiter_raw()
            try:
                while (chunk := await _unless_gone(request, anext(pieces, None), engine)) is not None:
                    yield chunk
            except UserError as error:  # the engine has gone silent in the middle of the answer
                if kind.startswith("text/event-stream"):
                    yield b"data: " + _error(503, str(error), "engine_unavailable").body + b"\n\n"
            except httpx.HTTPError:
                return  # the engine ended in the middle of the answer: the client sees a cut-off stream
            finally:
                await answer.aclose()

        kind = answer.headers.get("content-type", "application/json")
        return StreamingResponse(relay(), answer.status_code, {"content-type": kind})

    def passed_on(method: str, path: str) -> None:
        async def route(request: Request):
            # quoted: a name with slashes and dots stays a name
            name = quote(request.path_params.get("name", ""), safe="")
            return await forward(request, path.partition("{")[0] + name)

        app.add_api_route(f"/v1/{path}", route, methods=[method], name=f"{method} {path}")

    for method, paths in ROUTES.items():
        for path in paths:
            passed_on(method, path)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    async def unknown(path: str, request: Request):
        return refusal(request) or _error(
            404,
            f"There is no {request.method} /v1/{path}. There are "
            + ", ".join(f"{method} /v1/{path}" for method in ("GET", "POST") for path in ROUTES[method])
            + ".",
        )


async def _unless_gone(request: Request, work, engine: Engine):
    """The result of `work`, or None when the client closes its connection first.

    Raises:
        UserError: the engine has gone silent meanwhile. Then, too, `work` is cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=0.25)
            if not task.done() and engine.silent:
                raise UserError(SILENT)
            if not task.done() and await request.is_disconnected():
                return None
        return task.result()
    finally:
        task.cancel()
