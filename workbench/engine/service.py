"""What the handlers of all paths share: the backend, names of models, how tokens are chosen, answering."""

import asyncio

from fastapi import Request

from workbench.engine.answering import answered, cancel_when_gone, in_thread, said
from workbench.engine.backend import Backend, Job, Sampling, Score, TokenInfo
from workbench.engine.errors import ApiError
from workbench.engine.messages import Message
from workbench.engine.metrics import Metrics
from workbench.engine.protocol import DEFAULT_NEW_TOKENS, MAX_MESSAGE_CHARACTERS, ChatRequest, Generation
from workbench.errors import UserError


class Service:
    """A backend behind the API. `base_name` is the base model's name; adapters come beside it."""

    def __init__(self, backend: Backend, base_name: str):
        self.backend, self.base_name, self.metrics = backend, base_name, Metrics()

    def names(self) -> list[str]:
        """The models: the base and every adapter that is loaded."""
        return [self.base_name, *self.backend.adapters]

    def chat_job(self, body: ChatRequest) -> Job:
        """What a backend is asked for a chat. Raises ApiError."""
        sampling = self.sampling(body, body.max_completion_tokens or body.max_tokens or DEFAULT_NEW_TOKENS)
        sampling.logprobs = body.top_logprobs if body.logprobs else None
        sampling.grammar = body.response_format.grammar() if body.response_format else None
        values = dict(body.chat_template_kwargs)
        if body.reasoning_effort is not None:
            values["reasoning_effort"] = body.reasoning_effort
        return Job(
            self.adapter(body.model),
            plain_messages(body.messages),
            sampling,
            tools=body.definitions(),
            forced=body.forced(),
            strict=body.strict(),
            several_calls=body.several_calls,
            continue_final=body.continue_final_message,
            template_values=values,
        )

    async def answered(self, jobs: list[Job], answer, stream: bool, request: Request):
        return await answered(self.backend, jobs, answer, stream, request, self.metrics)

    async def scored(self, asked: Score, request: Request) -> list[TokenInfo]:
        """The measurements of a given answer; given up when the client goes away. Raises ApiError."""
        if not self.backend.capabilities.score:
            raise ApiError(400, UserError("no_scoring").message)
        gone = asyncio.create_task(cancel_when_gone(request, asked))
        try:
            return await in_thread(self.backend.score, asked)
        except UserError as error:
            raise said(error) from None
        finally:
            gone.cancel()

    def adapter(self, model: str) -> str | None:
        """The adapter that a model name means. Raises ApiError."""
        if model not in self.names():
            names = ", ".join(self.names())
            problem = UserError("model_not_loaded", model=model, names=names).message
            raise ApiError(404, problem, code="model_not_found", param="model")
        return None if model == self.base_name else model

    def sampling(self, body: Generation, max_tokens: int) -> Sampling:
        """How tokens are chosen for a request."""
        return Sampling(
            max_tokens=max_tokens,
            stop=body.stops,
            seed=body.seed,
            n=body.n,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=body.logit_bias,
            **body.sampling_values(self.backend.defaults),  # type: ignore[arg-type]
        )


def plain_messages(messages: list[Message]) -> list[dict]:
    """The messages as a chat template takes them. Raises ApiError."""
    plain = [message.plain() for message in messages]
    if sum(len(message["content"]) for message in plain) > MAX_MESSAGE_CHARACTERS:
        raise too_many_characters("messages")
    return plain


def too_many_characters(what: str) -> ApiError:
    """The error for a parameter `what` with more text than a request may have."""
    problem = UserError("too_many_characters", what=what, most=MAX_MESSAGE_CHARACTERS)
    return ApiError(400, problem.message, param=what)
