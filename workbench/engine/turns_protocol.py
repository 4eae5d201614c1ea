"""`POST /v1/responses`: the part of OpenAI's Responses API that the engine speaks, turned into a chat request.
https://platform.openai.com/docs/api-reference/responses"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from workbench.engine.messages import MAX_TOOLS, Lenient, Request
from workbench.engine.protocol import MAX_MESSAGES, MAX_NEW_TOKENS, MAX_TOP_LOGPROBS, ChatRequest, TemplateValues

_LOGPROBS = "message.output_text.logprobs"


class Format(Lenient):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema_: dict = Field(default_factory=dict, alias="schema")


class TextOptions(Request):
    format: Format = Field(default_factory=Format)


class Reasoning(Request):
    effort: str | None = Field(None, max_length=20)
    summary: Literal["auto"] | None = None


class FlatTool(Lenient):
    type: Literal["function"] = "function"
    name: str
    description: str = ""
    parameters: dict = Field(default_factory=dict)
    strict: bool | None = None

    def nested(self) -> dict:
        """As chat completions have it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        function |= {"strict": self.strict}
        return {"type": "function", "function": function}


class TurnRequest(Request):
    """`input` is a text or a list of items: messages, calls, results of calls and thoughts of turns before.

    `previous_response_id` goes on from an answer that this server has given and kept (`store`).
    """

    model: str
    input: str | Annotated[list[dict], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool = False
    store: bool = True
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[FlatTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: str | dict = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = Field(default_factory=TextOptions)
    reasoning: Reasoning | None = None
    include: list[str] = Field(default_factory=list)
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    service_tier: Literal["auto", "default"] | None = None
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)

    @field_validator("include")
    @classmethod
    def _known_parts(cls, include):
        for name in include:
            # thoughts are not encrypted here: they come as they are
            if name not in (_LOGPROBS, "reasoning.encrypted_content"):
                raise ValueError(f"{name[:100]} cannot be included; only {_LOGPROBS} can")
        return include

    @property
    def with_logprobs(self) -> bool:
        return bool(self.top_logprobs) or _LOGPROBS in self.include

    def chat(self, before: list[dict]) -> ChatRequest:
        """The chat request of this turn, which goes on from the messages `before`. Raises ValueError."""
        messages = [*before, *chat_messages(self.input)]
        if self.instructions is not None:
            messages = [{"role": "system", "content": self.instructions}, *messages]
        format_ = self.text.format
        wanted: dict = {"type": format_.type}
        if format_.type == "json_schema":
            wanted["json_schema"] = {"name": format_.name, "schema": format_.schema_}
        given = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": self.with_logprobs,
            "top_logprobs": self.top_logprobs,
            "tools": [tool.nested() for tool in self.tools] or None,
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": wanted,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "chat_template_kwargs": self.chat_template_kwargs,
        }
        return ChatRequest.model_validate(given)


def chat_messages(items: str | list[dict]) -> list[dict]:
    """Items of the Responses API as messages of a chat; what a model has done in one turn becomes one message.

    Raises ValueError: an item of a kind that is not supported.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict] = []
    for item in items:
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            role, content = item.get("role"), _text(item.get("content"))
            last = messages[-1] if messages else {}
            if role == "assistant" and last.get("role") == "assistant" and not last.get("content"):
                last["content"] = content
            else:
                messages.append({"role": role, "content": content})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            call = {"id": item.get("call_id") or "", "type": "function", "function": function}
            _assistant(messages).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": _text(item.get("output"))})
        elif kind == "reasoning":
            if thought := _text(item.get("content") or []):
                messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
        else:
            raise ValueError(f"input: items of type {str(kind)[:60]} are not supported")
    return messages


def _assistant(messages: list[dict]) -> dict:
    """The model's message that a call belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(content: object) -> str:
    """The text of a content. Raises ValueError where it holds something else."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "reasoning_text") or not isinstance(part.get("text"), str):
            raise ValueError("input: only texts are supported in a content")
        texts.append(part["text"])
    return "".join(texts)
