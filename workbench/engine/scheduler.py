"""The decoding loop behind one small interface, and the turns that several requests take on one model.

A `Decoder` opens a request as an iterator of tokens; `Scheduler` owns the only thread that touches the model and
gives every open request a few tokens in turn, so that a long answer does not hold up a short one. Nothing here knows
about HTTP; the tests run it on a fake decoder.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

TURN_TOKENS = 4  # tokens that a request decodes before the next one gets its turn


@dataclass
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off."""

    max_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0  # OpenAI's: taken from the logits of every token that was generated already
    frequency_penalty: float = 0.0  # the same, times how often it was
    n: int = 1  # answers, decoded as one batch
    logprobs: int | None = None  # measure each token, with this many alternatives
    grammar: str | dict | None = None  # `json` for any JSON object, or a JSON schema


@dataclass
class TokenInfo:
    """What the model thought of one token: of its own distribution, before temperature and penalties.

    `logprob` in nats, `rank` from 1, `entropy` in nats; `top` holds the likeliest tokens as (id, bytes, logprob, whether it ends
    the answer).
    `text` is what the token added to the answer (empty while a letter of several bytes is incomplete).
    """

    id: int
    text: str
    bytes: bytes
    logprob: float
    rank: int
    entropy: float
    top: list[tuple[int, bytes, float, bool]]


@dataclass
class Token:
    """A piece of answer number `index`. `finish` is set on its last one: `stop` or `length`."""

    text: str
    finish: str | None = None
    index: int = 0
    infos: list[TokenInfo] = field(default_factory=list)
    pause: bool = False  # nothing yet: a long prompt is still being read, others may take their turn


@dataclass
class Job:
    """One request on its way: `adapter` None means the base model. Results come through `events`.

    What to answer is `messages` (with `tools`, and `continue_final` to go on writing the last message), or `prompt`:
    plain text or token ids that the chat template does not touch. The decoder leaves the rendered text in `prompt_text`.
    """

    adapter: str | None
    messages: list[dict]
    sampling: Sampling
    prompt: str | list[int] | None = None
    tools: list[dict] | None = None
    continue_final: bool = False
    template_values: dict = field(default_factory=dict)  # for the chat template, such as `enable_thinking`
    prompt_text: str = ""
    response_template: dict | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    events: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[Token]:
        """Tokens until the last; raises what the decoder raised."""
        while True:
            event = self.events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event

    def cancel(self) -> None:
        """The client went away: free the place before the next token."""
        self.cancelled.set()


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
    """What the scheduler needs of a model."""

    def select(self, adapter: str | None) -> None:
        """Make the next tokens come from this adapter, or from the base model."""

    def open(self, job: Job) -> Iterator[Token]:
        """Decode a request token by token; sets `prompt_tokens` and counts `completion_tokens` on the job."""


class Scheduler:
    """Runs jobs on a decoder in fair turns. One daemon thread."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.active: deque[tuple[Job, Iterator[Token]]] = deque()  # changed by the decoding thread alone
        self._incoming: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="decoding")
        self._thread.start()

    def submit(self, job: Job) -> Job:
        self._incoming.put(job)
        return job

    def call(self, function: Callable[[], object] | Call) -> object:
        """Run `function()` on the decoding thread between two turns (loading an adapter, say); returns its result, None of a cancelled one."""
        call = function if isinstance(function, Call) else Call(function)
        self._incoming.put(call)
        result = call.done.get()
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self) -> None:
        active = self.active
        while True:
            while not active or not self._incoming.empty():
                item = self._incoming.get()
                if isinstance(item, Call):
                    item.run()
                elif item.cancelled.is_set():  # given up while it waited: its prompt is not read
                    item.events.put(None)
                else:
                    active.append((item, self.decoder.open(item)))
            for given_up in [one for one in active if one[0].cancelled.is_set()]:
                active.remove(given_up)
                self._turn(*given_up)  # which ends it
            if not active:
                continue
            job, tokens = active.popleft()
            if self._turn(job, tokens):
                active.append((job, tokens))

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
                job.events.put(token)
            else:
                return True
        except Exception as error:
            job.events.put(error)
        tokens.close()
        job.events.put(None)
        return False
