"""Fair turns of several requests on one model.

A `Decoder` opens a request as an iterator of tokens; `Scheduler` owns the only thread that touches the model and
gives every open request a few tokens in turn, so that a long answer does not hold up a short one. Nothing here knows
about HTTP; the tests run it on a fake decoder.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from workbench.engine.backend import Capabilities, Job, Score, Token, TokenInfo
from workbench.errors import UserError

CLOSE_SECONDS = 60.0  # that a step may take at the end
TURN_TOKENS = 4  # tokens that a request decodes before the next one gets its turn


@dataclass
class Call:
    """Something to be done on the decoding thread between two turns."""

    function: Callable[[], object]
    done: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for it any more: it is not begun."""
        self.cancelled.set()

    def run(self) -> None:
        try:
            self.done.put(None if self.cancelled.is_set() else self.function())
        except Exception as error:
            self.done.put(error)


class Decoder(Protocol):
    """A model that decodes one request at a time. The scheduler calls it on its own thread only."""

    capabilities: Capabilities
    adapters: list[str]
    context: int

    def select(self, adapter: str | None) -> None:
        """Make the next tokens come from this adapter, or from the base model."""

    def open(self, job: Job) -> Iterator[Token]:
        """Decode a request token by token; sets `prompt_tokens` and counts `completion_tokens` on the job."""

    def score(self, request: Score) -> list[TokenInfo]:
        """Measure the tokens of a given answer. Raises UserError."""

    def tokenize(self, job: Job) -> list[int]:
        """The tokens of a request's prompt; called from any thread. Raises UserError."""

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens; called from any thread. Raises UserError."""

    def embed(self, adapter: str | None, tokens: list[int]) -> list[float]:
        """The mean of the last hidden states over a text. Raises UserError."""

    def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter. Raises UserError."""

    def merge_adapters(self, name: str, weights: dict[str, float]) -> None:
        """Add adapters up under a new name. Raises UserError."""

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter and free its memory. Raises UserError."""


class Scheduler:
    """A `Backend` that runs jobs on a decoder in fair turns. One daemon thread."""

    def __init__(self, decoder: Decoder, not_batched: str = ""):
        """`not_batched`: why requests take turns here instead of sharing forward passes."""
        self.decoder, self._not_batched = decoder, not_batched
        self._counts = dict.fromkeys(("requests_total", "places_freed_total", "generated_tokens_total"), 0.0)
        self.active: deque[tuple[Job, Iterator[Token]]] = deque()  # changed by the decoding thread alone
        self._turning: Job | None = None  # whose turn it is
        self._incoming: queue.SimpleQueue = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="decoding")
        self._thread.start()

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.decoder.capabilities, not_batched=self._not_batched)

    @property
    def adapters(self) -> list[str]:
        return self.decoder.adapters

    @property
    def context(self) -> int:
        return self.decoder.context

    @property
    def defaults(self) -> dict[str, float]:
        return getattr(self.decoder, "defaults", {})

    def metrics(self) -> dict[str, float]:
        turning, active = self._turning, [job for job, _ in list(self.active)]
        if turning is not None and all(job is not turning for job in active):
            active.append(turning)
        held = sum(job.prompt_tokens + job.completion_tokens for job in active)
        waiting = self._incoming.qsize()
        levels = {"requests_running": len(active), "requests_waiting": waiting, "kv_tokens_used": held}
        return self._counts | levels

    def tokenize(self, job: Job) -> list[int]:
        return self.decoder.tokenize(job)

    def detokenize(self, tokens: list[int]) -> str:
        return self.decoder.detokenize(tokens)

    def embed(self, adapter: str | None, tokens: list[int]) -> list[float]:
        return self.call(lambda: self.decoder.embed(adapter, tokens)) or []

    def score(self, request: Score) -> list[TokenInfo]:
        return self.call(Call(lambda: self.decoder.score(request), cancelled=request.cancelled)) or []

    def add_adapter(self, name: str, path: str) -> None:
        self.call(lambda: self.decoder.add_adapter(name, path))

    def merge_adapters(self, name: str, weights: dict[str, float]) -> None:
        self.call(lambda: self.decoder.merge_adapters(name, weights))

    def remove_adapter(self, name: str) -> None:
        def remove() -> None:
            if any(job.adapter == name for job, _ in self.active):
                raise UserError("adapter_in_use", name=name)
            self.decoder.remove_adapter(name)

        self.call(remove)

    def submit(self, job: Job) -> Job:
        self._incoming.put(job)
        return job

    def call(self, function: Callable[[], object] | Call) -> object:
        """Run `function()` on the decoding thread between two turns (loading an adapter, say); returns its result, None
        of a cancelled one."""
        call = function if isinstance(function, Call) else Call(function)
        self._incoming.put(call)
        result = call.done.get()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """End the decoding thread once its step is done, and wait for that; whether it has ended. Python must not end
        while it computes: what is left of the thread then ends the process by C++'s `terminate`. Open requests hear
        nothing more."""
        self._closing.set()
        self._incoming.put(Call(lambda: None))  # it may be waiting for something to do
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        active = self.active
        while not self._closing.is_set():
            while not active or not self._incoming.empty():
                item = self._incoming.get()
                if self._closing.is_set():
                    return
                if isinstance(item, Call):
                    item.run()
                elif item.cancelled.is_set():  # given up while it waited: its prompt is not read
                    item.events.put(None)
                else:
                    self._counts["requests_total"] += 1
                    active.append((item, self.decoder.open(item)))
            for given_up in [one for one in active if one[0].cancelled.is_set()]:
                active.remove(given_up)
                self._turn(*given_up)  # which ends it
            if not active:
                continue
            job, tokens = active.popleft()
            self._turning = job
            if self._turn(job, tokens):
                active.append((job, tokens))
            self._turning = None

    def _turn(self, job: Job, tokens: Iterator[Token]) -> bool:
        """A few tokens of one job; whether it goes on."""
        try:
            if not job.cancelled.is_set():
                self.decoder.select(job.adapter)
            for _ in range(TURN_TOKENS):
                if job.cancelled.is_set():
                    break
                token = next(tokens, None)
                if token is None:
                    break
                if token.pause:
                    return True
                self._counts["generated_tokens_total"] += 1
                job.events.put(token)
            else:
                return True
        except Exception as error:
            job.events.put(error)
        tokens.close()
        self._counts["places_freed_total"] += 1
        job.events.put(None)
        return False
