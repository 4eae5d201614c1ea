"""Requests of the engine's API beside completions: embeddings, tokens, and what is ours alone."""

from typing import Literal

from pydantic import Field, model_validator

from workbench.engine.messages import Message, Request
from workbench.engine.protocol import MAX_MESSAGES, MAX_PROMPTS, MAX_TOP_LOGPROBS, TemplateValues, Tool

MAX_SCORED_CHARACTERS = 40_000
MAX_SCORED_TOKENS = 8192
MAX_LISTED_TOKENS = 1_000_000


class ScoreRequest(Request):
    """Ours: `POST /v1/score`. The log-probability that `model` gives each token of an answer that is given."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    answer: str = Field("", max_length=MAX_SCORED_CHARACTERS)
    token_ids: list[int] | None = Field(None, max_length=MAX_SCORED_TOKENS)
    top_logprobs: int = Field(5, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)


class AdapterRequest(Request):
    """Ours: load an adapter beside the model. `path` is a run id or a folder inside the workspace; or `merge` several
    that are loaded already, as name -> weight."""

    name: str = Field(min_length=1, max_length=200)
    path: str = ""
    merge: dict[str, float] = Field(default_factory=dict, max_length=8)


class EmbeddingRequest(Request):
    """`POST /v1/embeddings`, mean-pooled: a text or list of texts, or their token ids."""

    model: str
    input: str | list[int] | list[str] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"

    @model_validator(mode="after")
    def _something(self):
        if len(self.inputs) > MAX_PROMPTS:
            raise ValueError(f"input: at most {MAX_PROMPTS} texts in one request")
        for one in self.inputs:
            if not one:
                raise ValueError("input: a text is empty")
        return self

    @property
    def inputs(self) -> list[str | list[int]]:
        if isinstance(self.input, str) or not self.input or isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]
        return list(self.input)  # type: ignore[arg-type]


class TokenizeRequest(Request):
    """`POST /v1/tokenize` (vLLM's fields): the tokens of `prompt`, or of `messages` in the chat template."""

    model: str
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_both(self):
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Request):
    """`POST /v1/detokenize` (vLLM's fields): the text of `tokens`."""

    model: str
    tokens: list[int] = Field(max_length=MAX_LISTED_TOKENS)
