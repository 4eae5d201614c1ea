"""The part of OpenAI's protocol that the engine speaks, and its limits: chat and plain completions.

A parameter that is not here is refused by name, never ignored. Sampling values that a request does not name are the
model's own (`generation_config`), else `SAMPLING_DEFAULTS`.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from workbench.engine.messages import MAX_TOOLS, Lenient, Message, Request

MAX_MESSAGES = 500
MAX_MESSAGE_CHARACTERS = 400_000
MAX_NEW_TOKENS = 32_768
DEFAULT_NEW_TOKENS = 1024
DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions, as OpenAI's
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 1000
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_PROMPTS = 256  # of one request for plain completions, times `n`
MAX_BIASES = 1024
SAMPLING_DEFAULTS = {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_TOOL_NAME = r"^[\w.-]{1,128}$"


class StreamOptions(Lenient):
    include_usage: bool = False


class JsonSchema(Lenient):
    name: str = "answer"
    schema_: dict = Field(default_factory=dict, alias="schema")


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_is_there(self):
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self

    def grammar(self) -> str | dict | None:
        """As `Sampling.grammar` wants it."""
        return {"text": None, "json_object": "json", "json_schema": self.json_schema and self.json_schema.schema_}[
            self.type
        ]


class ToolFunction(Lenient):
    name: str
    description: str = ""
    parameters: dict = Field(default_factory=dict)
    strict: bool | None = Field(None, exclude=True)  # no part of what the model reads

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name):
        if not re.fullmatch(_TOOL_NAME, name):
            raise ValueError("a tool's name has 1 to 128 letters, digits, _, - and dots")
        return name

    @field_validator("parameters")
    @classmethod
    def _an_object(cls, parameters):
        if parameters.get("type", "object") != "object":
            raise ValueError("the parameters of a function are an object: its schema has type object")
        return parameters


class Tool(Lenient):
    type: Literal["function"] = "function"
    function: ToolFunction


class Generation(Request):
    """What both kinds of completions share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=5)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=MAX_BIASES)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)

    @model_validator(mode="after")
    def _possible(self):
        if not self.model.isprintable():
            raise ValueError("model: not a name")
        if len(self.stops) > MAX_STOPS:
            raise ValueError(f"stop: at most {MAX_STOPS} texts")
        if any(len(text) > MAX_STOP_CHARACTERS for text in self.stops):
            raise ValueError(f"stop: a text has at most {MAX_STOP_CHARACTERS:,} characters")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling_values(self, own: dict[str, float]) -> dict[str, float]:
        """The values of `SAMPLING_DEFAULTS` for this request; `own`: those of the model's `generation_config`."""
        asked = {name: getattr(self, name) for name in SAMPLING_DEFAULTS}
        values = SAMPLING_DEFAULTS | own | {name: value for name, value in asked.items() if value is not None}
        values["top_k"] = max(0, int(values["top_k"]))  # -1 is off, too
        return values


_OWN_VALUES = {
    "messages",
    "tools",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
}


def _for_templates(values: dict) -> dict:
    """Values that a chat template may be given. Raises ValueError: one that the request has a field for, or none."""
    for name in values:
        if name in _OWN_VALUES:
            raise ValueError(f"chat_template_kwargs: {name} cannot be set there")
    return values


TemplateValues = Annotated[dict, AfterValidator(_for_templates)]


class ChatRequest(Generation):
    """`POST /v1/chat/completions`. `continue_final_message` (vLLM's name) goes on writing the last message."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: str | dict = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = Field(None, max_length=20)
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None  # vLLM wants it beside the other, and it says nothing more
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _only_what_works(self):
        """Asked for and not done would be worse than an error."""
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools: two of them have the same name")
        mode, chosen = self._choice()
        if mode not in ("auto", "none", "required"):
            raise ValueError('tool_choice can be auto, none, required or {"type": "function", "function": {"name": …}}')
        if mode == "required" and not self.tools:
            raise ValueError("tool_choice asks for a call, but there are no tools")
        if unknown := [name for name in chosen or () if name not in names]:
            raise ValueError(f"tool_choice: there is no tool named {str(unknown[0])[:100]}")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs the last message to be the assistant's")
        if self.add_generation_prompt not in (None, not self.continue_final_message):
            raise ValueError("add_generation_prompt: give the opposite of continue_final_message, or leave it out")
        return self

    def _choice(self) -> tuple[object, list | None]:
        """`(auto, none or required, names of the tools that it is about or None for all)`."""
        choice = self.tool_choice
        if isinstance(choice, str):
            return choice, None
        if choice.get("type") == "allowed_tools":
            choice = choice.get("allowed_tools", choice)
            choice = choice if isinstance(choice, dict) else {}
            tools = choice.get("tools")
            return choice.get("mode", "auto"), [_named(tool) for tool in tools] if isinstance(tools, list) else None
        return "required" if choice.get("type", "function") == "function" else choice.get("type"), [_named(choice)]

    def definitions(self) -> list[dict] | None:
        """The tools for the chat template."""
        mode, chosen = self._choice()
        if mode == "none" or not self.tools:
            return None
        tools = self.tools
        if isinstance(self.tool_choice, dict) and self.tool_choice.get("type") == "allowed_tools":
            tools = [tool for tool in tools if chosen is None or tool.function.name in chosen]
        return [tool.model_dump() for tool in tools] or None

    def strict(self) -> list[str]:
        """Names of the tools whose calls are bound to their schemas where the model decides on a call."""
        return [tool.function.name for tool in self.tools or () if tool.function.strict]

    def forced(self) -> list[str]:
        """Names of the tools of which one must be called; empty where none must."""
        mode, chosen = self._choice()
        if mode != "required":
            return []
        return [tool.function.name for tool in self.tools or () if chosen is None or tool.function.name in chosen]

    @property
    def several_calls(self) -> bool:
        """Whether an answer may have more than one call: a named tool is called once."""
        named = isinstance(self.tool_choice, dict) and self.tool_choice.get("type") != "allowed_tools"
        return self.parallel_tool_calls and not named


def _named(tool: object) -> object:
    """The name in `{"function": {"name": …}}` or `{"name": …}`."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("name")


class CompletionRequest(Generation):
    """`POST /v1/completions`: plain text goes on, without a chat template. One prompt or several, each a text or a list
    of token ids."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(None, ge=0, le=MAX_NEW_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=MAX_COMPLETION_LOGPROBS)
    echo: bool = False
    best_of: int | None = None

    @field_validator("prompt")
    @classmethod
    def _some_prompt(cls, prompt):
        several = not isinstance(prompt, str) and bool(prompt) and not isinstance(prompt[0], int)
        for one in prompt if several else [prompt]:
            if not one:
                raise ValueError("the prompt is empty")
        return prompt

    @model_validator(mode="after")
    def _not_too_many(self):
        if len(self.prompts) * self.n > MAX_PROMPTS:
            raise ValueError(f"prompt: at most {MAX_PROMPTS} answers in one request, prompts times n")
        if self.best_of not in (None, self.n):
            raise ValueError("best_of: not supported beyond n. Ask for n answers, and choose among them")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
