"""Asking a vLLM or SGLang server: its models, streams, adapters. What it sends is bounded and not trusted."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from workbench.engine.client import MAX_ANSWER, MAX_LIST, MAX_MODELS, MAX_NAME, Bounded
from workbench.errors import UserError

_PATIENCE = 3600.0  # seconds between two pieces of an answer
_SOON = 15.0  # for what is no answer of a model
_LOADING = 600.0  # for an adapter
_CONNECTIONS = 1000
ODD = (KeyError, TypeError, ValueError, IndexError, AttributeError)  # what reading an odd answer raises


@dataclass(frozen=True)
class Served:
    """A model in a server's list: an adapter has a `parent`."""

    name: str
    owner: str
    root: str
    parent: str
    context: int | None


def _served(listed: dict) -> Served:
    names = [str(listed.get(key) or "")[:MAX_NAME] for key in ("id", "owned_by", "root", "parent")]
    context = listed.get("max_model_len")
    return Served(*names, context if isinstance(context, int) and context > 1 else None)


class Upstream:
    """A server. Its coroutines run on an event loop of its own; `wait` is for all other threads.

    `url`: with or without `/v1`. `title`: how messages call it.
    """

    def __init__(self, url: str, key: str, title: str):
        self.url, self.title = url.rstrip("/").removesuffix("/v1"), title
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {})
        common: dict[str, Any] = {"headers": headers, "follow_redirects": False, "trust_env": False}
        self._client = httpx.AsyncClient(
            transport=Bounded(MAX_ANSWER, _CONNECTIONS), timeout=httpx.Timeout(_PATIENCE, connect=_SOON), **common
        )
        self._brief = httpx.AsyncClient(transport=Bounded(MAX_LIST), timeout=_SOON, **common)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="other engine").start()

    def wait(self, work: Coroutine) -> Any:
        """The result of a coroutine. Raises UserError."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def healthy(self) -> bool:
        """Whether it says that it is ready."""
        try:
            return (await self._brief.get(f"{self.url}/health")).status_code == 200
        except httpx.HTTPError:
            return False

    async def models(self) -> list[Served]:
        """Its models and adapters. Raises UserError."""
        found = await self._asked(self._brief, "GET", "/v1/models")
        try:
            return [_served(one) for one in found["data"][:MAX_MODELS]]
        except ODD:
            raise UserError("engine_answer_odd", engine=self.title) from None

    async def tokens(self, model: str, text: str) -> list[int] | None:
        """How it tokenizes a text; None where it does not tell."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        try:
            return [int(token) for token in (await self._asked(self._brief, "POST", "/tokenize", body))["tokens"]]
        except (UserError, *ODD):
            return None

    async def post(self, path: str, body: dict) -> dict:
        """Its whole answer. Raises UserError."""
        return await self._asked(self._client, "POST", path, body)

    async def command(self, path: str, body: dict) -> None:
        """Have something done, such as loading an adapter. Raises UserError."""
        await self._asked(self._client, "POST", path, body, anything=True, timeout=_LOADING)

    async def _asked(self, client, method: str, path: str, body: dict | None = None, *, anything=False, **more) -> dict:
        try:
            response = await client.request(method, self.url + path, json=body, **more)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.content)
        if anything:  # vLLM says it in plain words
            return {}
        try:
            found = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise UserError("engine_answer_odd", engine=self.title)
        return found

    async def stream(self, path: str, body: dict) -> AsyncIterator[dict]:
        """The events of a streamed answer. Leaving it closes the connection, at which the server gives up.

        Raises:
            UserError: it refuses, does not answer, or ends before it has said that it is done.
        """
        try:
            async with self._client.stream("POST", self.url + path, json=body) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    event = orjson.loads(data)
                    if "error" in event:
                        raise self._refusal(500, data.encode())
                    yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except (orjson.JSONDecodeError, TypeError):
            raise UserError("engine_answer_odd", engine=self.title) from None
        raise UserError("engine_ended_midway")

    def _unreachable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return UserError("engine_unreachable", engine=self.title, url=self.url, reason=reason)

    def _refusal(self, status: int, content: bytes) -> UserError:
        """What it says in one of the forms that both have had: `error.message`, `message` or `detail`."""
        if status in (401, 403):
            return UserError("engine_key_refused", engine=self.title, url=self.url)
        try:
            found = orjson.loads(content)
            error = found.get("error") or found
            said = error if isinstance(error, str) else error.get("message") or error.get("error_message")
            said = said or found.get("detail")
        except (orjson.JSONDecodeError, AttributeError):
            said = content[:300].decode(errors="replace")
        # a sentence in any case: others follow it
        reason = f"{' '.join(str(said or status).split())[:300].rstrip('.')}."
        return UserError("engine_refused", engine=self.title, reason=reason)
