"""The engine's HTTP side: OpenAI's `/v1` over the scheduler. `python -m workbench serve` ends here."""

import asyncio
import secrets
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from workbench.engine.door import Door, host_name, same_origin
from workbench.engine.protocol import (
    DEFAULT_COMPLETION_TOKENS,
    DEFAULT_NEW_TOKENS,
    MAX_MESSAGE_CHARACTERS,
    AdapterRequest,
    ChatRequest,
    CompletionRequest,
    Generation,
    ScoreRequest,
)
from workbench.engine.responses import Chat, Plain, event, logprob_entry, usage, whole
from workbench.engine.scheduler import Call, Job, Sampling, Scheduler
from workbench.errors import UserError

MAX_BODY = 8 << 20  # bytes of a request
_WAITING = ThreadPoolExecutor(512, "waiting")  # one for each request in flight: none waits because others do


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


def build_app(
    scheduler: Scheduler, base_name: str, api_key: str = "", cors: list[str] | None = None, door: Door | None = None
) -> FastAPI:
    """The API over a scheduler. `base_name` is the base model's name in `/v1/models`; adapters come beside it.

    `cors`: origins whose pages may call it from a browser; none unless asked. `door`: the names it answers to; any without, for servers that a
    key protects.
    """
    app = FastAPI(title="QLoRA Workbench engine", docs_url=None, redoc_url=None)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=cors, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(_BodyLimit)
    if door:
        app.add_middleware(_Names, door=door, cors=tuple(cors or ()))
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

    @app.exception_handler(Exception)
    async def unexpected(request, error: Exception):
        return JSONResponse(ApiError(500, f"{type(error).__name__}: {error}", kind="server_error").body, 500)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request, error: RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body" and not isinstance(part, int)) or "body"
        message = first["msg"].removeprefix("Value error, ").encode(errors="replace").decode()
        return JSONResponse(ApiError(400, f"{where}: {message}.", param=where).body, 400)

    @app.exception_handler(HTTPException)
    async def http_error(request, error: HTTPException):
        return JSONResponse(
            ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.").body,
            error.status_code,
            error.headers,
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

    def known(model: str) -> str | None:
        """The adapter that a model name means. Raises ApiError."""
        if model != base_name and model not in decoder.adapters:
            raise ApiError(
                404, f"There is no model '{model}'. Loaded: {', '.join([base_name, *decoder.adapters])}.",
                code="model_not_found", param="model")  # fmt: skip
        return None if model == base_name else model

    def plain_messages(messages: list) -> list[dict]:
        plain = [message.plain() for message in messages]
        if sum(len(message["content"]) for message in plain) > MAX_MESSAGE_CHARACTERS:
            raise ApiError(400, f"messages: together at most {MAX_MESSAGE_CHARACTERS:,} characters.", param="messages")
        return plain

    @app.post("/adapters", dependencies=guarded)
    async def add_adapter(body: AdapterRequest):
        def add():
            if body.merge:
                decoder.merge_adapters(body.name, body.merge)
            else:
                decoder.add_adapter(body.name, body.path)

        try:
            if body.name == base_name:
                raise UserError(f"An adapter cannot have the base model's name, {base_name}.")
            await asyncio.to_thread(scheduler.call, add)
        except UserError as error:
            raise ApiError(400, str(error), param="path") from None
        return {"adapters": decoder.adapters}

    @app.post("/v1/score", dependencies=guarded)
    async def score(body: ScoreRequest, request: Request):
        """The log-probability of each token of a given answer, in one forward pass."""
        adapter, messages = known(body.model), plain_messages(body.messages)
        answer = body.token_ids if body.token_ids is not None else body.answer
        call = Call(lambda: decoder.score(adapter, messages, answer, body.top_logprobs))
        gone = asyncio.create_task(_cancel_when_gone(request, call))
        try:
            infos = await asyncio.get_running_loop().run_in_executor(_WAITING, scheduler.call, call)
        except UserError as error:
            raise ApiError(400, str(error)) from None
        finally:
            gone.cancel()
        return {"object": "score", "model": body.model, "content": [logprob_entry(info) for info in infos]}

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(body: ChatRequest, request: Request):
        sampling = _sampling(body, body.max_completion_tokens or body.max_tokens or DEFAULT_NEW_TOKENS)
        sampling.logprobs = body.top_logprobs if body.logprobs else None
        sampling.grammar = body.response_format.grammar() if body.response_format else None
        job = Job(
            known(body.model), plain_messages(body.messages), sampling, tools=body.definitions(),
            continue_final=body.continue_final_message, template_values=body.chat_template_kwargs)  # fmt: skip
        return await _answer(scheduler, job, body, Chat(job, _head(Chat, body)), request)

    @app.post("/v1/completions", dependencies=guarded)
    async def complete(body: CompletionRequest, request: Request):
        if len(body.prompt) > MAX_MESSAGE_CHARACTERS:
            raise ApiError(400, f"prompt: at most {MAX_MESSAGE_CHARACTERS:,} characters.", param="prompt")
        sampling = _sampling(body, body.max_tokens or DEFAULT_COMPLETION_TOKENS)
        sampling.logprobs = body.logprobs
        job = Job(known(body.model), [], sampling, prompt=body.prompt)
        return await _answer(scheduler, job, body, Plain(job, _head(Plain, body), body.echo), request)

    return app


class _Names:
    """Answers only to its own names, and to no page of another site but those that may call it."""

    def __init__(self, app, door: Door, cors: tuple[str, ...]):
        self.app, self.door, self.cors = app, door, cors

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and (message := self._refusal(scope)):
            refused = ApiError(403, message, code="forbidden_host")
            await JSONResponse(refused.body, refused.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope) -> str:
        headers = Headers(scope=scope)
        name, origin = host_name(headers.get("host", "")), headers.get("origin")
        if not name or not self.door.knows(name, (scope.get("server") or ("", 0))[0]):
            return f"Without --api-key this server does not answer to the name {name[:100]!r}, only to 127.0.0.1 and localhost."
        if origin is None or "*" in self.cors or origin in self.cors:
            return ""
        site = headers.get("sec-fetch-site", "")
        mine = same_origin(origin, scope["scheme"], headers.get("host", ""), by_browser=site == "same-origin")
        return (
            "" if mine else "Pages of other sites may not use this server. Start it with --cors ORIGIN to let one in."
        )


class _BodyLimit:
    """Refuses requests that are too large."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages, read = [], 0
        while True:  # the whole body first: what comes after it is only the client's going away
            message = await receive()
            messages.append(message)
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                refused = ApiError(413, f"The request is larger than {MAX_BODY >> 20} MiB.")
                await JSONResponse(refused.body, refused.status)(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        messages.reverse()

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)


def _head(kind: type[Chat] | type[Plain], body: Generation) -> dict:
    return {"id": f"{kind.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}


def _sampling(body: Generation, max_tokens: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k,
        repetition_penalty=body.repetition_penalty, stop=body.stops, seed=body.seed, n=body.n,
        presence_penalty=body.presence_penalty, frequency_penalty=body.frequency_penalty)  # fmt: skip


async def _answer(scheduler: Scheduler, job: Job, body: Generation, answer: Chat | Plain, request: Request):
    gone = asyncio.create_task(_cancel_when_gone(request, job))
    scheduler.submit(job)
    try:
        first = await _next(job)  # errors of the prompt still get their own status code
        if body.stream and not gone.done():
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            # the response looks itself whether its client is there
            return StreamingResponse(_stream(job, answer, first, with_usage), media_type="text/event-stream")
        tokens, token = [], first
        while token is not None:
            tokens.append(token)
            token = await _next(job)
    except BaseException:
        job.cancel()
        raise
    finally:
        gone.cancel()
    job.cancel()
    return JSONResponse(whole(answer, tokens)) if tokens else JSONResponse({}, 499)


async def _cancel_when_gone(request: Request, job: Job | Call) -> None:
    """Cancel a request as soon as its client closes the connection: before its prompt is read, or between any two steps."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _next(job: Job):
    """The next token, or None at the end; an error of the decoder as ApiError."""
    event = await asyncio.get_running_loop().run_in_executor(_WAITING, job.events.get)
    if isinstance(event, UserError):
        raise ApiError(400, str(event), code="context_length_exceeded" if "context holds" in str(event) else None)
    if isinstance(event, Exception):
        raise ApiError(500, f"{type(event).__name__}: {event}", kind="server_error")
    return event


async def _stream(job: Job, answer: Chat | Plain, token, with_usage: bool):
    try:
        while token is not None:
            for chunk in answer.chunks(token):
                yield event(chunk)
            token = await _next(job)
        if with_usage:
            kind = "chat.completion.chunk" if isinstance(answer, Chat) else answer.kind
            yield event({**answer.head, "object": kind, "choices": [], "usage": usage(job)})
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield event(error.body)
    except Exception as error:
        yield event(ApiError(500, f"{type(error).__name__}: {error}", kind="server_error").body)
    finally:
        job.cancel()
