"""What the engine's HTTP side needs of whatever decodes: a `Backend`, and the requests and tokens that go in and out.

`Scheduler` is one, with fair turns over a single model. Another (batching, another engine) takes its place without a
change in `server.py`.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.engine.grammars import Plan


@dataclass
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off; `top_p` 0 leaves
    the likeliest token."""

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
    # `json` for any JSON object, or a JSON schema; the decoder makes a `grammars.Plan` of it with the prompt
    grammar: "str | dict | Plan | None" = None
    min_p: float = 0.0  # of the likeliest token's chance: what a token needs to be drawn
    logit_bias: dict[int, float] = field(default_factory=dict)  # added to the logits of these tokens


@dataclass
class TokenInfo:
    """What the model thought of one token: of its own distribution, before temperature and penalties.

    `logprob` in nats, `rank` from 1, `entropy` in nats; rank and entropy are None where a backend cannot tell. `top`
    holds the likeliest tokens as (id, bytes, logprob, whether it ends the answer). `text` is what the token added to
    the answer (empty while a letter of several bytes is incomplete).
    """

    id: int
    text: str
    bytes: bytes
    logprob: float
    rank: int | None
    entropy: float | None
    top: list[tuple[int, bytes, float, bool]]


@dataclass
class Token:
    """A piece of answer number `index`. `finish` is set on its last one: `stop` or `length`."""

    text: str
    finish: str | None = None
    index: int = 0
    infos: list[TokenInfo] = field(default_factory=list)
    pause: bool = False  # nothing yet: a long prompt is still being read, others may take their turn
    end: str = ""  # the token that ended the answer, which is not part of its text
    end_info: TokenInfo | None = None  # what was measured of it


@dataclass
class Job:
    """One request on its way: `adapter` None means the base model. Results come through `events`.

    What to answer is `messages` (with `tools`, and `continue_final` to go on writing the last message), or `prompt`:
    plain text or token ids that the chat template does not touch. `forced`: names of tools of which the answer calls
    one, or with `several_calls` some; `strict`: those whose schemas bind calls that are not forced. The decoder leaves
    the rendered text in `prompt_text`, how the model writes thoughts and calls in `response_template`, and whether the
    prompt has opened a thought in `thinking`.
    """

    adapter: str | None
    messages: list[dict]
    sampling: Sampling
    prompt: str | list[int] | None = None
    special_tokens: bool = True  # around a prompt of plain text, as the tokenizer puts them
    tools: list[dict] | None = None
    forced: list[str] = field(default_factory=list)
    strict: list[str] = field(default_factory=list)
    several_calls: bool = True
    continue_final: bool = False
    template_values: dict = field(default_factory=dict)  # for the chat template, such as `enable_thinking`
    prompt_text: str = ""
    response_template: dict | None = None
    thinking: bool = False
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
class Score:
    """A request to measure the tokens of a given answer: text, or the ids of its tokens as they were generated. It
    follows `messages`, or `prompt`: token ids that the chat template does not touch."""

    adapter: str | None
    messages: list[dict]
    answer: str | list[int]
    top: int
    template_values: dict = field(default_factory=dict)
    prompt: list[int] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for it any more: it is not begun."""
        self.cancelled.set()


class ContextOverflow(UserError):
    """A request of more tokens than the context holds, in OpenAI's words."""

    def __init__(self, context: int, tokens: int, what: str = "messages"):
        super().__init__("context_overflow", context=context, tokens=tokens, what=what)
        self.what = what


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do beside decoding; a request for anything else is refused in one sentence."""

    adapters: bool = False  # load and merge LoRA adapters
    score: bool = False  # measure the tokens of a given answer
    logprobs: bool = False
    grammars: bool = False
    tokens: bool = False  # tell the tokens of a text, and the text of tokens
    embeddings: bool = False
    continue_final: bool = False  # go on writing the last message
    batching: bool = False  # requests share forward passes
    not_batched: str = ""  # why this model's requests take turns, where they might share


class Backend(Protocol):
    """All methods may be called from any thread; those that wait say so."""

    capabilities: Capabilities

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that are loaded."""

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    @property
    def defaults(self) -> dict[str, float]:
        """Sampling values that the model's `generation_config` names, as fields of `Sampling`."""

    def metrics(self) -> dict[str, float]:
        """Counters (names end in `_total`) and levels: requests running and waiting, tokens, tokens per second, use of
        the cache. Which there are differs; a name always means the same."""

    def tokenize(self, job: Job) -> list[int]:
        """The tokens of a request's prompt. Raises UserError."""

    def detokenize(self, tokens: list[int]) -> str:
        """Raises UserError for ids that the model does not have."""

    def embed(self, adapter: str | None, tokens: list[int]) -> list[float]:
        """Waits for the mean of the last hidden states over the tokens of a text. Raises UserError."""

    def submit(self, job: Job) -> Job:
        """Queue a request; its tokens come through the job, which can be cancelled at any time."""

    def score(self, request: Score) -> list[TokenInfo]:
        """Waits for the measurements; empty for a cancelled request. Raises UserError."""

    def add_adapter(self, name: str, path: str) -> None:
        """Waits until an adapter is loaded; a known name stays as it is. Raises UserError."""

    def merge_adapters(self, name: str, weights: dict[str, float]) -> None:
        """Waits until adapters are added up, each with its weight, under a new name. Raises UserError."""

    def remove_adapter(self, name: str) -> None:
        """Waits until an adapter is forgotten and its memory free. Raises UserError for an unknown name, and while a
        request uses it."""


def missing_capability(job: Job, capabilities: Capabilities) -> str:
    """What a request asks for that a backend cannot do, as a sentence; empty if there is nothing."""
    asked = {
        "adapters": job.adapter is not None,
        "logprobs": job.sampling.logprobs is not None,
        "grammars": job.sampling.grammar is not None or bool(job.forced),
        "continue_final": job.continue_final,
    }
    lacking = [name for name, wanted in asked.items() if wanted and not getattr(capabilities, name)]
    return f"This engine does not support {', '.join(lacking)}. Leave it out of the request." if lacking else ""
