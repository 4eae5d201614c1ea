"""The engine's HTTP side: OpenAI's `/v1` over a backend. `python -m workbench serve` ends here."""

import asyncio
import secrets

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse

from workbench.engine.backend import Backend, Score
from workbench.engine.door import Door
from workbench.engine.errors import ApiError, answer_errors
from workbench.engine.logprobs import logprob_entry
from workbench.engine.metrics import CountRequests
from workbench.engine.middleware import BodyLimit, Names
from workbench.engine.own_protocol import AdapterRequest, ScoreRequest
from workbench.engine.plain_routes import PlainRoutes
from workbench.engine.protocol import ChatRequest
from workbench.engine.response_routes import ResponseRoutes
from workbench.engine.responses import Chat, head, with_usage
from workbench.engine.service import Service, plain_messages
from workbench.engine.text_routes import TextRoutes
from workbench.errors import UserError

_READ = ["GET", "HEAD"]


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
    service = Service(backend, base_name)
    routes = Routes(service)
    guarded = APIRouter(dependencies=[Depends(_guard(api_key))])
    for method in _READ:  # each by itself, so that the description of the API names them apart
        app.api_route("/health", methods=[method], name=f"health_{method}")(routes.health)
        guarded.api_route("/v1/models", methods=[method], name=f"models_{method}")(routes.models)
        guarded.api_route("/v1/models/{name:path}", methods=[method], name=f"model_{method}")(routes.model)
        guarded.api_route("/metrics", methods=[method], name=f"metrics_{method}")(routes.read_metrics)
    guarded.post("/adapters")(routes.add_adapter)
    guarded.post("/v1/score")(routes.score)
    guarded.post("/v1/chat/completions")(routes.chat)
    guarded.post("/v1/completions")(PlainRoutes(service).complete)
    texts = TextRoutes(service)
    guarded.post("/v1/embeddings")(texts.embed)
    guarded.post("/v1/tokenize")(texts.tokenize)
    guarded.post("/v1/detokenize")(texts.detokenize)
    turns = ResponseRoutes(service)
    guarded.post("/v1/responses")(turns.create)
    guarded.get("/v1/responses/{name}")(turns.read)
    guarded.delete("/v1/responses/{name}")(turns.delete)
    app.include_router(guarded)
    paths = frozenset(getattr(route, "path", "") for route in guarded.routes)
    app.add_middleware(CountRequests, metrics=service.metrics, paths=paths)
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
    """The handlers of the paths for models, chat and scores."""

    def __init__(self, service: Service):
        self._service, self._backend = service, service.backend

    async def health(self):
        return {"status": "ok", "adapters": self._backend.adapters}

    async def models(self):
        return {"object": "list", "data": [self._listed(name) for name in self._service.names()]}

    async def model(self, name: str):
        self._service.adapter(name)
        return self._listed(name)

    async def read_metrics(self):
        return PlainTextResponse(self._service.metrics.text(self._backend), media_type="text/plain; version=0.0.4")

    async def add_adapter(self, body: AdapterRequest):
        try:
            if not self._backend.capabilities.adapters:
                raise UserError("adapters_unsupported")
            if body.name == self._service.base_name:
                raise UserError("adapter_named_as_base", name=self._service.base_name)
            if body.merge:
                await asyncio.to_thread(self._backend.merge_adapters, body.name, body.merge)
            else:
                await asyncio.to_thread(self._backend.add_adapter, body.name, body.path)
        except UserError as error:
            raise ApiError(400, error.message, param="path") from None
        return {"adapters": self._backend.adapters}

    async def score(self, body: ScoreRequest, request: Request):
        """The log-probability of each token of a given answer, in one forward pass."""
        answer = body.token_ids if body.token_ids is not None else body.answer
        asked = Score(
            self._service.adapter(body.model),
            plain_messages(body.messages),
            answer,
            body.top_logprobs,
            body.chat_template_kwargs,
        )
        infos = await self._service.scored(asked, request)
        return {"object": "score", "model": body.model, "content": [logprob_entry(info) for info in infos]}

    async def chat(self, body: ChatRequest, request: Request):
        job = self._service.chat_job(body)
        answer = Chat([job], head(Chat.prefix, body.model), with_usage(body), piecewise=body.stream)
        return await self._service.answered([job], answer, body.stream, request)

    def _listed(self, name: str) -> dict:
        # `max_model_len` as vLLM has it, which some clients read
        listed = {"id": name, "object": "model", "created": 0, "owned_by": "workbench"}
        return listed | {"max_model_len": getattr(self._backend, "context", None)}
