"""The part of OpenAI's protocol that the engine speaks, its own additions, and the limits of both."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_MESSAGES = 500
MAX_MESSAGE_CHARACTERS = 400_000
MAX_NEW_TOKENS = 32_768
DEFAULT_NEW_TOKENS = 1024
DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions, as OpenAI's
MAX_STOPS = 8
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_TOOLS = 128
MAX_SCORED_CHARACTERS = 40_000
MAX_SCORED_TOKENS = 8192


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds a lone surrogate, which is no valid Unicode") from None
    return text


class Lenient(BaseModel):
    """Unknown fields are ignored, as clients send many; null means absent, as OpenAI's schema allows."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values):
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


class Function(Lenient):
    name: str = Field(min_length=1, max_length=128)
    arguments: str = "{}"


class ToolCall(Lenient):
    id: str = ""
    type: Literal["function"] = "function"
    function: Function


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict] | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = None
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _only_text(cls, content):
        """What the model cannot take is refused, not dropped: other parts than text, and broken Unicode."""
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        for part in parts:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError('only parts of the form {"type": "text", "text": …} are supported')
            _valid(part["text"])
        return content

    def plain(self) -> dict:
        """As the chat templates want it: a role and a text, with arguments of calls as objects."""
        import json

        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = []
            for call in self.tool_calls:
                try:
                    arguments = json.loads(call.function.arguments)
                except (ValueError, RecursionError):
                    arguments = call.function.arguments
                given = {"name": call.function.name, "arguments": arguments}
                message["tool_calls"].append({"id": call.id, "type": "function", "function": given})
        for key in ("tool_call_id", "name"):
            if getattr(self, key):
                message[key] = getattr(self, key)
        return message


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
    name: str = Field(min_length=1, max_length=128)
    description: str = ""
    parameters: dict = Field(default_factory=dict)


class Tool(Lenient):
    type: Literal["function"] = "function"
    function: ToolFunction


class Generation(Lenient):
    """What both kinds of completions share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1000)
    repetition_penalty: float = Field(1.0, ge=0.1, le=5)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)

    @model_validator(mode="after")
    def _possible(self):
        if not self.model.isprintable():
            raise ValueError("model: not a name")
        if len(self.stops) > MAX_STOPS:
            raise ValueError(f"stop: at most {MAX_STOPS} texts")
        for text in self.stops:
            _valid(text)
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


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
    response_format: ResponseFormat | None = None
    continue_final_message: bool = False
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)

    @model_validator(mode="after")
    def _only_what_works(self):
        """Asked for and not done would be worse than an error."""
        if self.tools and self.tool_choice not in ("auto", "none"):
            raise ValueError("tool_choice can be auto or none here")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs the last message to be the assistant's")
        return self

    def definitions(self) -> list[dict] | None:
        """The tools for the chat template."""
        return [tool.model_dump() for tool in self.tools] if self.tools and self.tool_choice != "none" else None


class CompletionRequest(Generation):
    """`POST /v1/completions`: plain text goes on, without a chat template. One prompt: a text, or a list of token
    ids."""

    prompt: str | list[str] | list[int]
    logprobs: int | None = Field(None, ge=0, le=MAX_COMPLETION_LOGPROBS)
    echo: bool = False

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt):
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
            if len(prompt) > 1:
                raise ValueError("one prompt at a time")
            prompt = prompt[0]
        if not prompt:
            raise ValueError("the prompt is empty")
        return _valid(prompt) if isinstance(prompt, str) else prompt


class ScoreRequest(Lenient):
    """Ours: `POST /v1/score`. The log-probability that `model` gives each token of an answer that is given."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    answer: str = Field("", max_length=MAX_SCORED_CHARACTERS)
    token_ids: list[int] | None = Field(None, max_length=MAX_SCORED_TOKENS)
    top_logprobs: int = Field(5, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)

    @field_validator("answer")
    @classmethod
    def _unicode(cls, answer):
        return _valid(answer)


class AdapterRequest(Lenient):
    """Ours: load an adapter beside the model. `path` is a run id or a folder inside the workspace; or `merge` several
    that are loaded already, as name -> weight."""

    name: str = Field(min_length=1, max_length=200)
    path: str = ""
    merge: dict[str, float] = Field(default_factory=dict, max_length=8)
