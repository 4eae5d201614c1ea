"""The part of OpenAI's chat protocol that the engine speaks, and its limits."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_MESSAGES = 500
MAX_MESSAGE_CHARACTERS = 400_000
MAX_NEW_TOKENS = 32_768
DEFAULT_NEW_TOKENS = 1024
MAX_STOPS = 8


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict] | None = None

    @field_validator("content")
    @classmethod
    def _only_text(cls, content):
        """What the model cannot take is refused, not dropped: other parts than text, and broken Unicode."""
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        for part in parts:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError('only parts of the form {"type": "text", "text": …} are supported')
            try:
                part["text"].encode()
            except UnicodeEncodeError:
                raise ValueError("the text holds a lone surrogate, which is no valid Unicode") from None
        return content

    def plain(self) -> dict:
        """As the chat templates want it: a role and a text."""
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")
    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1000)
    repetition_penalty: float = Field(1.0, ge=0.1, le=5)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=1)
    tools: list | None = None
    response_format: dict | None = None
    logprobs: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values):
        """OpenAI's schema allows null for every optional field."""
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _only_what_works(self):
        """Asked for and not done would be worse than an error."""
        if self.tools:
            raise ValueError("tools are not supported yet")
        if self.response_format and self.response_format.get("type", "text") != "text":
            raise ValueError("response_format other than text is not supported yet")
        if self.logprobs:
            raise ValueError("logprobs are not supported yet")
        if not self.model.isprintable():
            raise ValueError("model: not a name")
        return self


class AdapterRequest(BaseModel):
    """Ours: load an adapter beside the model. `path` is a run id or a folder inside the workspace."""

    name: str = Field(min_length=1, max_length=200)
    path: str
