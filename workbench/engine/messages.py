"""Messages of a conversation as OpenAI's protocol has them, and what all requests share."""

import difflib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_TOOLS = 128
# they say who asks or what for, and change nothing in an answer: taken and not used
ANNOTATIONS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")


def valid_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds a lone surrogate, which is no valid Unicode") from None
    return text


def _check_letters(values: dict) -> None:
    """Raises ValueError for broken Unicode anywhere in a request, such as a tool's description."""
    waiting: list[object] = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            valid_text(value)
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value


class Lenient(BaseModel):
    """Unknown fields are ignored, as clients send many; null means absent, as OpenAI's schema allows."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values):
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


class Request(Lenient):
    """The body of a request: what it names and this server does not know is refused by name."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values):
        if not isinstance(values, dict):
            return values
        _check_letters(values)
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in values.items():
            if name in known or name in ANNOTATIONS or value is None:
                continue
            near = difflib.get_close_matches(str(name)[:100], known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise PydanticCustomError(
                "unknown_parameter",
                "this server does not support the parameter {name}.{hint} Leave it out",
                {"name": str(name)[:100], "hint": hint},
            )
        return values


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
    reasoning_content: str | None = None

    @field_validator("content")
    @classmethod
    def _only_text(cls, content):
        """What the model cannot take is refused, not dropped: other parts than text, and broken Unicode."""
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        for part in parts:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError('only parts of the form {"type": "text", "text": …} are supported')
            valid_text(part["text"])
        return content

    def plain(self) -> dict:
        """As the chat templates want it: a role and a text, with arguments of calls as objects."""
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
        if self.reasoning_content:  # templates know it under three names
            message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), self.reasoning_content)
        return message
