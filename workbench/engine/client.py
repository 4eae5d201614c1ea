"""The chat tab's and the probes' side of OpenAI's protocol: any compatible server, ours or another."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from workbench.errors import UserError
from workbench.messages.message import restored

TOP_LOGPROBS = 5
_PATIENCE = 3600  # seconds; a long answer on a CPU takes its time
# what another server, whose address a user has given, may send
MAX_LIST = 4 << 20  # bytes of a list of models
MAX_ANSWER = 64 << 20  # bytes of an answer: 4,096 tokens with their alternatives are about 5 MB
MAX_CHARACTERS = 400_000  # of a streamed answer with its thoughts
MAX_MODELS, MAX_NAME = 1000, 200


@dataclass(frozen=True)
class Endpoint:
    """A server: base URL with `/v1`, its key, and whether it is our own engine (which can score and go on writing)."""

    url: str
    key: str
    own: bool = True

    def client(self, limit: int = MAX_ANSWER):
        """A client of this server that reads at most `limit` bytes of an answer."""
        import httpx
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",
            max_retries=0,
            timeout=_PATIENCE,
            http_client=httpx.AsyncClient(
                transport=Bounded(limit),
                headers={"accept-encoding": "identity"},
                follow_redirects=False,
                timeout=_PATIENCE,
            ),
        )


class Bounded:
    """An httpx transport whose answers end in an error when they are larger than `limit` bytes, or packed, so that
    their size is not known. At most `connections` at a time; further requests wait."""

    def __init__(self, limit: int, connections: int = 100):
        import httpx

        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=20)
        self._limit, self._inner = limit, httpx.AsyncHTTPTransport(limits=limits)

    async def handle_async_request(self, request):
        import httpx

        answer = await self._inner.handle_async_request(request)
        if answer.headers.get("content-encoding", "identity") != "identity":
            await answer.aclose()
            raise httpx.ReadError("it sends packed answers, which it was asked not to")
        stream, limit = answer.stream, self._limit

        class Counted(httpx.AsyncByteStream):
            async def __aiter__(self):
                left = limit
                async for piece in stream:
                    left -= len(piece)
                    if left < 0:
                        raise httpx.ReadError(f"its answer has more than {limit >> 20} MiB")
                    yield piece

            async def aclose(self):
                await stream.aclose()

        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=Counted(), extensions=answer.extensions
        )

    async def aclose(self):
        await self._inner.aclose()

    async def __aenter__(self):
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error):
        await self._inner.__aexit__(*error)


@dataclass
class Delta:
    """What a chunk of a stream brings."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict] = field(default_factory=list)  # a name begins a call; without one its arguments go on
    entries: list[dict] = field(default_factory=list)  # of `logprobs.content`
    finish: str | None = None
    usage: dict | None = None


def joined_calls(calls: list[dict], more: list[dict]) -> list[dict]:
    """Calls with what a chunk brings of them."""
    calls = list(calls)
    for piece in more:
        if piece["name"] or not calls:
            calls.append({"name": piece["name"] or "", "arguments": piece["arguments"]})
        else:
            calls[-1] = calls[-1] | {"arguments": calls[-1]["arguments"] + piece["arguments"]}
    return calls


def _restored(error: dict, english: str) -> str:
    """What an error of our engine says, with its code where it came with one (see `ApiError`)."""
    return restored(error.get("told"), str(english)[:600])


def _said(error) -> UserError:
    """One sentence for what openai's client raises."""
    from openai import APIStatusError

    if isinstance(error, APIStatusError):
        body = error.body.get("message", "") if isinstance(error.body, dict) else ""
        return UserError(_restored(error.body, body) if body else str(error)[:600])
    reason = str(error.__cause__ or error).rstrip(".")[:300]
    return UserError("server_silent", reason=reason)


async def stream(backend: Endpoint, model: str, messages: list[dict], settings: dict) -> AsyncIterator[Delta]:
    """The answer piece by piece, with log-probabilities where the server gives them.

    Raises:
        UserError: the server refuses, cannot be reached, or ends in the middle.
    """
    from openai import APIError, BadRequestError

    async with backend.client() as client:
        asked = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings,
        }
        try:
            try:
                answer = await client.chat.completions.create(logprobs=True, top_logprobs=TOP_LOGPROBS, **asked)
            except BadRequestError as error:
                if "logprob" not in str(error).lower():
                    raise
                answer = await client.chat.completions.create(**asked)
            finished, written = False, 0
            try:
                async for chunk in answer:
                    delta = Delta(usage=chunk.usage.model_dump() if chunk.usage else None)
                    if chunk.choices:
                        choice = chunk.choices[0]
                        delta.content = choice.delta.content or ""
                        delta.reasoning = getattr(choice.delta, "reasoning_content", None) or ""
                        delta.calls = [
                            {"name": None, "arguments": ""} | call.function.model_dump(exclude_none=True)
                            for call in choice.delta.tool_calls or []
                            if call.function
                        ]
                        delta.finish = choice.finish_reason
                        finished = finished or bool(delta.finish)
                        if choice.logprobs and choice.logprobs.content:
                            delta.entries = [entry.model_dump() for entry in choice.logprobs.content]
                    written += len(delta.content) + len(delta.reasoning)
                    if written > MAX_CHARACTERS:
                        raise UserError("answer_too_long", most=MAX_CHARACTERS)
                    yield delta
            finally:
                await answer.close()
            if not finished:
                raise UserError("engine_ended_midway")
        except APIError as error:
            raise _said(error) from None


async def complete(
    backend: Endpoint,
    model: str,
    messages: list[dict],
    *,
    n: int = 1,
    done: Callable[[int], object] | None = None,
    **settings,
) -> list[str]:
    """`n` whole answers; asked one by one where the server gives only one at a time. `done` is told how many there are;
    another server than ours may give them all at once. Raises UserError."""
    from openai import APIError, BadRequestError

    async with backend.client() as client:
        try:
            if done and backend.own:
                return await _counted(client, model, messages, n, done, settings)
            try:
                answer = await client.chat.completions.create(model=model, messages=messages, n=n, **settings)
                answers = [choice.message.content or "" for choice in answer.choices]
            except BadRequestError:
                if n == 1:
                    raise
                answers = []
            while len(answers) < n:
                seed = settings.get("seed")
                more = settings if seed is None else settings | {"seed": seed + len(answers)}
                answer = await client.chat.completions.create(model=model, messages=messages, **more)
                answers.append(answer.choices[0].message.content or "")
                if done:
                    done(len(answers))
            return answers
        except APIError as error:
            raise _said(error) from None


async def _counted(client, model: str, messages: list[dict], n: int, done: Callable, settings: dict) -> list[str]:
    """`complete` of our own engine, as one batch whose answers end one after the other. Raises UserError."""
    texts, ended = [""] * n, set()
    async for chunk in await client.chat.completions.create(
        model=model, messages=messages, n=n, stream=True, **settings
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ended.add(choice.index)
                done(len(ended))
    if len(ended) < n:
        raise UserError("engine_ended_midway")
    return texts


async def score(
    backend: Endpoint,
    model: str,
    messages: list[dict],
    answer: str,
    token_ids: list[int] | None,
    more: dict | None = None,
) -> list[dict]:
    """What `model` thinks of each token of a given answer (our engine only). `more` goes with the request. Raises
    UserError."""
    if not backend.own:
        raise UserError("score_own_only")
    body = {
        "model": model,
        "messages": messages,
        "answer": answer,
        "token_ids": token_ids,
        "top_logprobs": TOP_LOGPROBS,
        **(more or {}),
    }
    return (await _post(backend, "score", body, _PATIENCE, "score_failed"))["content"]


async def add_adapter(engine: Endpoint, body: dict) -> None:
    """Load or merge adapters in our engine; `engine.url` is the engine's own, without `/v1`. Raises UserError."""
    await _post(engine, "adapters", body, 120, "adapter_load_failed")


async def _post(engine: Endpoint, path: str, body: dict, seconds: float, what: str) -> dict:
    """The answer of our engine to a request that OpenAI's protocol does not have. `what`: the code of what is said
    where it gives none. Raises UserError."""
    import httpx

    try:
        async with httpx.AsyncClient(timeout=seconds) as client:
            response = await client.post(
                f"{engine.url}/{path}", json=body, headers={"Authorization": f"Bearer {engine.key}"}
            )
            found = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise UserError(what, error=type(error).__name__) from None
    if response.status_code != 200:
        raise UserError(_restored(found["error"], found["error"]["message"]))
    return found


async def models(backend: Endpoint) -> list[str]:
    """Names of a server's models. Raises UserError."""
    from openai import APIError

    async with backend.client(MAX_LIST) as client:
        try:
            listed = (await client.with_options(timeout=15).models.list()).data
            return [str(model.id)[:MAX_NAME] for model in listed[:MAX_MODELS]]
        except APIError as error:
            raise _said(error) from None
        except ValueError:
            raise UserError("server_not_openai", url=backend.url) from None
