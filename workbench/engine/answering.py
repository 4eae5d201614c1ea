"""From the jobs of one request to its answer: whole or as a stream, and ended when its client goes away."""

import asyncio
import queue
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse

from workbench.engine.backend import Backend, ContextOverflow, Job, Score, Token, missing_capability
from workbench.engine.errors import ApiError, unexpected
from workbench.engine.metrics import Metrics
from workbench.errors import UserError

_WAITING = ThreadPoolExecutor(512, "waiting")  # one for each request in flight: none waits because others do


class Answer(Protocol):
    """Makes a protocol's answer from tokens; a token's index counts the choices of all jobs of the request."""

    last: str  # what a stream ends with

    def take(self, token: Token) -> list[dict]:
        """Take a token; the pieces of a stream that it makes."""

    def done(self) -> bool:
        """Whether all has been said, though the model may go on."""

    def closing(self) -> list[dict]:
        """The last pieces of a stream."""

    def encode(self, piece: dict) -> str:
        """A piece as a server-sent event."""

    def body(self) -> dict:
        """The whole answer, of all that was taken."""


class _Numbered:
    """Puts a job's events into a queue that several share."""

    def __init__(self, events: queue.SimpleQueue, number: int):
        self._events, self._number = events, number

    def put(self, event) -> None:
        self._events.put((self._number, event))


class Batch:
    """The jobs of one request on their way."""

    def __init__(self, backend: Backend, jobs: list[Job], metrics: Metrics):
        self.jobs, self._events, self._going = jobs, queue.SimpleQueue(), len(jobs)
        self._metrics = metrics
        for number, job in enumerate(jobs):
            job.events = _Numbered(self._events, number)  # type: ignore[assignment]
            metrics.began(job)
            backend.submit(job)

    def cancel(self) -> None:
        for job in self.jobs:
            job.cancel()
            self._metrics.ended(job)

    async def next(self) -> Token | None:
        """The next token of any of the jobs, or None at the end; an error of the decoder as ApiError."""
        while self._going:
            number, event = await in_thread(self._events.get)
            if event is None:
                self._going -= 1
                continue
            if isinstance(event, Exception):
                raise said(event)
            self._metrics.token(self.jobs[number])
            event.index += number * self.jobs[number].sampling.n
            return event
        return None


async def in_thread(function, *arguments):
    """The result of a function that waits."""
    return await asyncio.get_running_loop().run_in_executor(_WAITING, function, *arguments)


def said(error: Exception) -> ApiError:
    """What a client is told of an error of the decoder."""
    if isinstance(error, ContextOverflow):
        return ApiError(400, error.message, code="context_length_exceeded", param=error.what)
    return ApiError(400, error.message) if isinstance(error, UserError) else unexpected(error)


async def answered(backend: Backend, jobs: list[Job], answer: Answer, stream: bool, request: Request, metrics: Metrics):
    """The response to a request. Raises ApiError."""
    for job in jobs:
        if problem := missing_capability(job, backend.capabilities):
            raise ApiError(400, problem)
    batch = Batch(backend, jobs, metrics)
    gone = asyncio.create_task(cancel_when_gone(request, batch))
    try:
        first = await batch.next()  # errors of the prompt still get their own status code
        if stream and not gone.done():
            # the response looks itself whether its client is there
            return StreamingResponse(_stream(batch, answer, first), media_type="text/event-stream")
        token, taken = first, 0
        while token is not None and not answer.done():
            answer.take(token)
            taken += 1
            token = await batch.next()
    except BaseException:
        batch.cancel()
        raise
    finally:
        gone.cancel()
    batch.cancel()
    return JSONResponse(answer.body()) if taken or not jobs else JSONResponse({}, 499)


async def cancel_when_gone(request: Request, work: Batch | Score) -> None:
    """Cancel a request as soon as its client closes the connection: before its prompt is read, or between any two
    steps."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.cancel()


async def _stream(batch: Batch, answer: Answer, token: Token | None) -> AsyncIterator[str]:
    try:
        while token is not None and not answer.done():
            for piece in answer.take(token):
                yield answer.encode(piece)
            token = await batch.next()
        for piece in answer.closing():
            yield answer.encode(piece)
        yield answer.last
    except ApiError as error:
        yield answer.encode(error.body)
    except Exception as error:
        yield answer.encode(unexpected(error).body)
    finally:
        batch.cancel()
