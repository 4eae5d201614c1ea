"""The engine's HTTP side: OpenAI's `/v1` over a backend. `python -m workbench serve` ends here."""

import asyncio
import secrets
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse

from workbench.engine.backend import Backend, Job, Sampling, Score, missing_capability
from workbench.engine.door import Door
from workbench.engine.errors import ApiError, answer_errors, unexpected
from workbench.engine.middleware import BodyLimit, Names
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
from workbench.errors import UserError

_WAITING = ThreadPoolExecutor(512, "waiting")  # one for each request in flight: none waits because others do


def build_app(
    backend: Backend, base_name: str, api_key: str = "", cors: list[str] | None = None, door: Door | None = None
) -> FastAPI:
    """The API over a backend. `base_name` is the base model's name in `/v1/models`; adapters come beside it.

    `cors`: origins whose pages may call it from a browser; none unless asked. `door`: the names it answers to; any
    without, for servers that a key protects.
    """
    app = FastAPI(title="QLoRA Workbench engine", docs_url=None, redoc_url=None)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=cors, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(BodyLimit)
    if door:
        app.add_middleware(Names, door=door, cors=tuple(cors or ()))
    answer_errors(app)
    routes = Routes(backend, base_name)
    app.get("/health")(routes.health)
    guarded = APIRouter(dependencies=[Depends(_guard(api_key))])
    guarded.get("/v1/models")(routes.models)
    guarded.post("/adapters")(routes.add_adapter)
    guarded.post("/v1/score")(routes.score)
    guarded.post("/v1/chat/completions")(routes.chat)
    guarded.post("/v1/completions")(routes.complete)
    app.include_router(guarded)
    return app


def _guard(api_key: str):
    def authorize(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if api_key and not secrets.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(
                401, "The API key is missing or wrong. Send it as: Authorization: Bearer KEY.", code="invalid_api_key"
            )

    return authorize


class Routes:
    """The handlers of the API's paths."""

    def __init__(self, backend: Backend, base_name: str):
        self.backend, self.base_name = backend, base_name

    async def health(self):
        return {"status": "ok", "adapters": self.backend.adapters}

    async def models(self):
        names = [self.base_name, *self.backend.adapters]
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "workbench"} for name in names]
        return {"object": "list", "data": listed}

    async def add_adapter(self, body: AdapterRequest):
        try:
            if not self.backend.capabilities.adapters:
                raise UserError("This engine does not support adapters. Load the model with another engine.")
            if body.name == self.base_name:
                raise UserError(f"An adapter cannot have the base model's name, {self.base_name}.")
            if body.merge:
                await asyncio.to_thread(self.backend.merge_adapters, body.name, body.merge)
            else:
                await asyncio.to_thread(self.backend.add_adapter, body.name, body.path)
        except UserError as error:
            raise ApiError(400, str(error), param="path") from None
        return {"adapters": self.backend.adapters}

    async def score(self, body: ScoreRequest, request: Request):
        """The log-probability of each token of a given answer, in one forward pass."""
        if not self.backend.capabilities.score:
            raise ApiError(400, "This engine does not support scoring. Load the model with another engine.")
        answer = body.token_ids if body.token_ids is not None else body.answer
        asked = Score(
            self._adapter(body.model), _plain(body.messages), answer, body.top_logprobs, body.chat_template_kwargs
        )
        gone = asyncio.create_task(_cancel_when_gone(request, asked))
        try:
            infos = await asyncio.get_running_loop().run_in_executor(_WAITING, self.backend.score, asked)
        except UserError as error:
            raise ApiError(400, str(error)) from None
        finally:
            gone.cancel()
        return {"object": "score", "model": body.model, "content": [logprob_entry(info) for info in infos]}

    async def chat(self, body: ChatRequest, request: Request):
        sampling = _sampling(body, body.max_completion_tokens or body.max_tokens or DEFAULT_NEW_TOKENS)
        sampling.logprobs = body.top_logprobs if body.logprobs else None
        sampling.grammar = body.response_format.grammar() if body.response_format else None
        job = Job(
            self._adapter(body.model),
            _plain(body.messages),
            sampling,
            tools=body.definitions(),
            continue_final=body.continue_final_message,
            template_values=body.chat_template_kwargs,
        )
        return await _answer(self.backend, job, body, Chat(job, _head(Chat, body)), request)

    async def complete(self, body: CompletionRequest, request: Request):
        if len(body.prompt) > MAX_MESSAGE_CHARACTERS:
            raise ApiError(400, f"prompt: at most {MAX_MESSAGE_CHARACTERS:,} characters.", param="prompt")
        sampling = _sampling(body, body.max_tokens or DEFAULT_COMPLETION_TOKENS)
        sampling.logprobs = body.logprobs
        job = Job(self._adapter(body.model), [], sampling, prompt=body.prompt)
        return await _answer(self.backend, job, body, Plain(job, _head(Plain, body), body.echo), request)

    def _adapter(self, model: str) -> str | None:
        """The adapter that a model name means. Raises ApiError."""
        if model != self.base_name and model not in self.backend.adapters:
            names = ", ".join([self.base_name, *self.backend.adapters])
            raise ApiError(404, f"There is no model '{model}'. Loaded: {names}.", code="model_not_found", param="model")
        return None if model == self.base_name else model


def _plain(messages: list) -> list[dict]:
    """The messages as a chat template takes them. Raises ApiError."""
    plain = [message.plain() for message in messages]
    if sum(len(message["content"]) for message in plain) > MAX_MESSAGE_CHARACTERS:
        raise ApiError(400, f"messages: together at most {MAX_MESSAGE_CHARACTERS:,} characters.", param="messages")
    return plain


def _head(kind: type[Chat] | type[Plain], body: Generation) -> dict:
    return {"id": f"{kind.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}


def _sampling(body: Generation, max_tokens: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        repetition_penalty=body.repetition_penalty,
        stop=body.stops,
        seed=body.seed,
        n=body.n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
    )


async def _answer(backend: Backend, job: Job, body: Generation, answer: Chat | Plain, request: Request):
    if problem := missing_capability(job, backend.capabilities):
        raise ApiError(400, problem)
    gone = asyncio.create_task(_cancel_when_gone(request, job))
    backend.submit(job)
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


async def _cancel_when_gone(request: Request, job: Job | Score) -> None:
    """Cancel a request as soon as its client closes the connection: before its prompt is read, or between any two
    steps."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _next(job: Job):
    """The next token, or None at the end; an error of the decoder as ApiError."""
    event = await asyncio.get_running_loop().run_in_executor(_WAITING, job.events.get)
    if isinstance(event, UserError):
        raise ApiError(400, str(event), code="context_length_exceeded" if "context holds" in str(event) else None)
    if isinstance(event, Exception):
        raise unexpected(event)
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
        yield event(unexpected(error).body)
    finally:
        job.cancel()
