"""The engine's HTTP side: OpenAI's `/v1` over the scheduler. `python -m workbench serve` ends here."""

import asyncio
import json
import secrets
import time
import uuid

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from workbench.engine.decoding import Job, Sampling, Scheduler
from workbench.engine.protocol import (
    DEFAULT_NEW_TOKENS,
    MAX_MESSAGE_CHARACTERS,
    MAX_STOPS,
    AdapterRequest,
    ChatRequest,
)
from workbench.errors import UserError


class ApiError(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ):
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def build_app(scheduler: Scheduler, base_name: str, api_key: str = "") -> FastAPI:
    """The API over a scheduler. `base_name` is the base model's name in `/v1/models`; adapters come beside it."""
    app = FastAPI(title="QLoRA Workbench engine", docs_url=None, redoc_url=None)
    decoder = scheduler.decoder

    def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if api_key and not secrets.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(
                401,
                "The API key is missing or wrong. Send it as: Authorization: Bearer KEY.",
                code="invalid_api_key",
            )

    guarded = [Depends(authorise)]

    @app.exception_handler(ApiError)
    async def api_error(request, error: ApiError):
        return JSONResponse(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request, error: RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body" and not isinstance(part, int)) or "body"
        return JSONResponse(ApiError(400, f"{where}: {first['msg']}.", param=where).body, 400)

    @app.exception_handler(HTTPException)
    async def http_error(request, error: HTTPException):
        return JSONResponse(
            ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.").body,
            error.status_code,
        )

    @app.get("/health")
    async def health():
        return {"status": "ok", "adapters": decoder.adapters}

    @app.get("/v1/models", dependencies=guarded)
    async def models():
        names = [base_name, *decoder.adapters]
        return {
            "object": "list",
            "data": [{"id": n, "object": "model", "created": 0, "owned_by": "workbench"} for n in names],
        }

    @app.post("/adapters", dependencies=guarded)
    async def add_adapter(body: AdapterRequest):
        try:
            await asyncio.to_thread(scheduler.call, lambda: decoder.add_adapter(body.name, body.path))
        except UserError as error:
            raise ApiError(400, str(error), param="path") from None
        return {"adapters": decoder.adapters}

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(body: ChatRequest, request: Request):
        if body.model != base_name and body.model not in decoder.adapters:
            raise ApiError(
                404, f"There is no model '{body.model}'. Loaded: {', '.join([base_name, *decoder.adapters])}.",
                code="model_not_found", param="model")  # fmt: skip
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        if len(stops) > MAX_STOPS:
            raise ApiError(400, f"stop: at most {MAX_STOPS} texts.", param="stop")
        messages = [m.plain() for m in body.messages]
        if sum(len(m["content"]) for m in messages) > MAX_MESSAGE_CHARACTERS:
            raise ApiError(400, f"messages: together at most {MAX_MESSAGE_CHARACTERS:,} characters.", param="messages")
        sampling = Sampling(
            max_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_NEW_TOKENS, temperature=body.temperature,
            top_p=body.top_p, top_k=body.top_k, repetition_penalty=body.repetition_penalty, stop=stops, seed=body.seed)  # fmt: skip
        job = scheduler.submit(Job(None if body.model == base_name else body.model, messages, sampling))
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            first = await _next(job)  # errors of the prompt still get their own status code
            return StreamingResponse(_stream(job, head, first, usage), media_type="text/event-stream")
        return await _whole(job, head, request)

    return app


async def _next(job: Job):
    """The next token, or None at the end; an error of the decoder as ApiError."""
    event = await asyncio.to_thread(job.events.get)
    if isinstance(event, UserError):
        raise ApiError(400, str(event), code="context_length_exceeded" if "context holds" in str(event) else None)
    if isinstance(event, Exception):
        raise ApiError(500, f"{type(event).__name__}: {event}", kind="server_error")
    return event


def _usage(job: Job) -> dict:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "total_tokens": job.prompt_tokens + job.completion_tokens,
    }


async def _whole(job: Job, head: dict, request: Request) -> JSONResponse:
    text, finish = [], "stop"
    try:
        while (token := await _next(job)) is not None:
            text.append(token.text)
            finish = token.finish or finish
            if await request.is_disconnected():
                break
    finally:
        job.cancel()
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(text)},
        "finish_reason": finish,
        "logprobs": None,
    }
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(job)})


async def _stream(job: Job, head: dict, token, with_usage: bool):
    head = {**head, "object": "chat.completion.chunk"}

    def event(delta: dict, finish: str | None = None, **extra) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return f"data: {json.dumps({**head, 'choices': choices, **extra}, ensure_ascii=False)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        while token is not None:
            if token.text:
                yield event({"content": token.text})
            if token.finish:
                yield event({}, token.finish)
            token = await _next(job)
        if with_usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(job)})}\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body)}\n\n"
    finally:
        job.cancel()
