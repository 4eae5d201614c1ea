"""`/v1` on the page's port: passes OpenAI requests on to the engine."""

import secrets

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from workbench.engines import Engine
from workbench.errors import UserError

MAX_BODY = 8 << 20  # bytes


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    return JSONResponse(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}, status
    )


def add_api(app: FastAPI, engine: Engine, api_key: str, *, needs_key: bool) -> None:
    """Mount `/v1/…` on `app`. With `needs_key` and no key set, every request is refused."""
    client = httpx.AsyncClient(timeout=httpx.Timeout(10, read=None))

    @app.api_route("/v1/{path:path}", methods=["GET", "POST"])
    async def v1(path: str, request: Request):
        if needs_key and not api_key:
            return _error(
                403,
                "The API is closed: start the page with --api-key to use it from other machines.",
                "api_key_required",
            )
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if api_key and not secrets.compare_digest(given.encode(), api_key.encode()):
            return _error(
                401,
                "The API key is missing or wrong. Send it as: Authorization: Bearer KEY.",
                "invalid_api_key",
            )
        body = await request.body()
        if len(body) > MAX_BODY:
            return _error(413, f"The request is larger than {MAX_BODY >> 20} MiB.")
        try:
            forward = client.build_request(
                request.method, f"{engine.url}/v1/{path}", content=body, params=request.query_params,
                headers={"content-type": request.headers.get("content-type", "application/json"), "authorization": f"Bearer {engine.key}"})  # fmt: skip
            answer = await client.send(forward, stream=True)
        except UserError as error:
            return _error(503, str(error), "model_not_loaded")
        except httpx.HTTPError:
            return _error(502, "The engine did not answer. Load the model again in the Chat tab.", "engine_unavailable")

        async def relay():
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await answer.aclose()

        headers = {"content-type": answer.headers.get("content-type", "application/json")}
        return StreamingResponse(relay(), answer.status_code, headers)
