"""What vLLM and SGLang are sent, and how their answers are read.

Both get a prompt as token ids, and tell the ids of what they generate. Of a token they tell its log-probability and
those of the likeliest ones; what the whole distribution was (entropy) they do not, and a rank only among those.

vLLM: `POST /v1/completions` with `return_token_ids` (0.10.2 and later).
https://docs.vllm.ai/en/latest/serving/openai_compatible_server/
SGLang: its own `POST /generate`, whose log-probabilities come with ids; those of its OpenAI routes do not.
https://docs.sglang.io/basic_usage/native_api.html
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.engine.backend import Sampling
from workbench.errors import UserError

_GREEDY_BELOW = 0.01  # as in `sampling.py`


@dataclass(frozen=True)
class Measured:
    """What an engine tells of a token: nats; `rank` where it is known; the likeliest tokens as (id, logprob)."""

    logprob: float
    rank: int | None
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """What an event of a stream brings: tokens, each with its measurement where one was asked for, and `finish`:
    `stop` or `length` on the last one."""

    ids: list[int]
    measured: list[Measured | None]
    finish: str | None


@dataclass
class Seen:
    """What was read of a stream so far: SGLang's events repeat what came before, or not, as the server was started."""

    top: int | None = None  # alternatives that were asked for; None: no measurements
    tokens: int = 0


class Dialect(Protocol):
    """One engine's protocol. What reads an answer raises KeyError, TypeError, ValueError or IndexError for one that is
    not as documented, and UserError for an error that it tells."""

    title: str
    owner: str  # `owned_by` of its models
    stream_path: str
    load_path: str
    unload_path: str

    def request(
        self, model: str, adapter: str | None, prompt: list[int], sampling: Sampling, limit: int, ends: Sequence[int]
    ) -> dict:
        """The body of a streamed request for one answer of up to `limit` tokens. `sampling.grammar`: a JSON schema."""

    def read(self, event: dict, seen: Seen) -> Piece:
        """What an event of the stream brings beyond what was `seen`, which is brought up to date."""

    def score_request(self, model: str, adapter: str | None, prompt: list[int], given: list[int], top: int) -> dict:
        """The body of a request, to the same path, that measures the tokens `given` after `prompt`."""

    def scores(self, body: dict, given: list[int], top: int) -> list[Measured]:
        """The measurements in the answer to it."""


class Vllm:
    """vLLM."""

    title, owner, stream_path = "vLLM", "vllm", "/v1/completions"
    load_path, unload_path = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"

    def request(self, model, adapter, prompt, sampling, limit, ends) -> dict:
        body = {
            "model": adapter or model,
            "prompt": prompt,
            "stream": True,
            "max_tokens": limit,
            "stop_token_ids": list(ends),
            "return_token_ids": True,
            **_sampling(sampling),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.logprobs is not None:
            body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        if sampling.grammar is not None:
            named = {"name": "answer", "schema": sampling.grammar}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def read(self, event, seen) -> Piece:
        if not event["choices"]:  # usage
            return Piece([], [], None)
        choice = event["choices"][0]
        ids = choice.get("token_ids")
        if ids is None:
            raise UserError("engine_too_old", engine=self.title, version="0.10.2")
        measured: list[Measured | None] = [None] * len(ids)
        if found := choice.get("logprobs"):
            for place, token in enumerate(ids):
                named = found["top_logprobs"][place] or {}
                top = _best((_token_id(name), value) for name, value in named.items())
                if len(top) > (seen.top or 0):  # the token itself, which is none of the likeliest, comes beside them
                    top = [pair for pair in top if pair[0] != token]
                measured[place] = _measured(token, _logprob(found["token_logprobs"][place]), top)
        return Piece(_ids(ids), measured, _finish(choice.get("finish_reason"), self.title))

    def score_request(self, model, adapter, prompt, given, top) -> dict:
        return {
            "model": adapter or model,
            "prompt": prompt + given,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": top,
        }

    def scores(self, body, given, top) -> list[Measured]:
        found = body["choices"][0]["prompt_logprobs"]
        out = []
        for token, entries in zip(given, found[-len(given) :], strict=True):
            mine = entries[str(token)]
            best, rank = _best((_id(id_), entry["logprob"]) for id_, entry in entries.items()), mine.get("rank")
            out.append(Measured(_logprob(mine["logprob"]), None if rank is None else int(rank), best[:top]))
        return out


class Sglang:
    """SGLang."""

    title, owner, stream_path = "SGLang", "sglang", "/generate"
    load_path, unload_path = "/load_lora_adapter", "/unload_lora_adapter"

    def request(self, model, adapter, prompt, sampling, limit, ends) -> dict:
        chosen = {
            "max_new_tokens": limit,
            "stop_token_ids": list(ends),
            "skip_special_tokens": False,
            **_sampling(sampling),
        }
        if sampling.seed is not None:
            chosen["sampling_seed"] = sampling.seed
        if sampling.grammar is not None:
            chosen["json_schema"] = json.dumps(sampling.grammar)
        body = {
            "input_ids": prompt,
            "sampling_params": chosen,
            "stream": True,
            "return_logprob": True,  # `output_ids` had tokens of the prompt before them: sgl-project/sglang#17240
            "top_logprobs_num": sampling.logprobs or 0,
        }
        return body | ({"lora_path": adapter} if adapter else {})

    def read(self, event, seen) -> Piece:
        about = event["meta_info"]
        reason = about.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise UserError("engine_refused", engine=self.title, reason=str(reason.get("message"))[:300])
        if (length := about.get("output_token_logprobs_length")) is None:
            raise UserError("engine_too_old", engine=self.title, version="0.5")
        new = int(length) - seen.tokens
        entries = about["output_token_logprobs"][-new:] if new else []
        tops = (about.get("output_top_logprobs") or [])[-new:] or [None] * new
        ids = [_id(entry[1]) for entry in entries]
        measured: list[Measured | None] = [None] * new
        if seen.top is not None:
            measured = [self._entry(*one) for one in zip(ids, entries, tops, strict=True)]
        if len(ids) != new:
            raise ValueError("tokens are missing")
        seen.tokens += new
        return Piece(ids, measured, _finish(reason.get("type"), self.title))

    @staticmethod
    def _entry(token: int, entry: Sequence[Any], top: Sequence[Any] | None) -> Measured:
        """From `[logprob, id, text]`, of the token and of the likeliest ones."""
        if entry[1] != token:
            raise ValueError("the measurements are those of other tokens")
        return _measured(token, _logprob(entry[0]), _best((_id(one[1]), one[0]) for one in top or ()))

    def score_request(self, model, adapter, prompt, given, top) -> dict:
        body = {
            "input_ids": prompt + given,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": len(prompt) - 1,
            "top_logprobs_num": top,
        }
        return body | ({"lora_path": adapter} if adapter else {})

    def scores(self, body, given, top) -> list[Measured]:
        about = body["meta_info"]
        entries = about["input_token_logprobs"][-len(given) :]
        tops = (about.get("input_top_logprobs") or [])[-len(given) :] or [None] * len(given)
        return [self._entry(*one) for one in zip(given, entries, tops, strict=True)]


DIALECTS: dict[str, Dialect] = {"vllm": Vllm(), "sglang": Sglang()}


def _sampling(sampling: Sampling) -> dict:
    """The values that both engines name alike; all of them, so that the server's own defaults do not count."""
    greedy = sampling.temperature < _GREEDY_BELOW or not sampling.top_p
    values: dict[str, Any] = {
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "top_k": -1 if greedy else sampling.top_k or -1,
        "min_p": 0.0 if greedy else sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if sampling.logit_bias:
        values["logit_bias"] = {str(token): value for token, value in sampling.logit_bias.items()}
    return values


def _measured(token: int, logprob: float, top: list[tuple[int, float]]) -> Measured:
    """A rank is known only of a token that is among the likeliest ones."""
    inside = any(id_ == token for id_, _ in top)
    return Measured(logprob, 1 + sum(value > logprob for _, value in top) if inside else None, top)


def _best(pairs: Iterable[tuple[int, Any]]) -> list[tuple[int, float]]:
    """The likeliest first; without those that a grammar forbids, which have no finite logarithm (null in JSON)."""
    return sorted(((id_, _logprob(value)) for id_, value in pairs if value is not None), key=lambda pair: -pair[1])


def _logprob(value: Any) -> float:
    if not math.isfinite(logprob := float(value)):
        raise ValueError("no number")
    return logprob


def _id(value: Any) -> int:
    if not 0 <= (id_ := int(value)) < 1 << 31:
        raise ValueError("no token")
    return id_


def _ids(values: Sequence[Any]) -> list[int]:
    return [_id(value) for value in values]


def _token_id(name: str) -> int:
    """The id in vLLM's `token_id:17`."""
    return _id(name.removeprefix("token_id:"))


def _finish(reason: str | None, engine: str) -> str | None:
    if reason not in (None, "stop", "length"):
        raise UserError("engine_refused", engine=engine, reason=reason[:100])
    return reason
