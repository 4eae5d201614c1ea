"""The part of OpenAI's chat protocol that the engine speaks, and its limits."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_MESSAGES = 500
MAX_MESSAGE_CHARACTERS = 400_000
MAX_NEW_TOKENS = 32_768
DEFAULT_NEW_TOKENS = 1024
MAX_STOPS = 8


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict] | None = None

    def plain(self) -> dict:
        """As the chat templates want it: a role and a text."""
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
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
    repetition_penalty: float = Field(1.0, gt=0, le=5)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=1)


class AdapterRequest(BaseModel):
    """Ours: load an adapter beside the model. `path` is a run id or a folder inside the workspace."""

    name: str = Field(min_length=1, max_length=200)
    path: str
