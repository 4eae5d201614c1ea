"""What a chat template leaves out of a conversation.

The conversation is rendered once more with a mark of its own behind every piece of content. Marks that are not
in that text are pieces that the template drops. A mark consists of letters and digits, so that trimming and escaping
leave it as it is.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from workbench.errors import UserError

THINK = re.compile(r"\A(\s*<think>\n*)(.*?)(\n*</think>\s*)(.*)\Z", re.DOTALL)

# kinds of pieces: the code of what is said of one that is missing
KINDS = {
    "system": "piece_system",
    "text": "piece_text",
    "beside": "piece_beside",
    "thought": "piece_thought",
    "call": "piece_call",
    "result": "piece_result",
    "tool": "piece_tool",
}
# without these a conversation does not make sense; the others are named, and the row is used
NEEDED = ("text", "call", "result", "tool")
_LONG = 8  # characters from which on a piece is not in a text by chance


@dataclass(frozen=True)
class Piece:
    """A piece of content: its `kind`, the number of its turn from 1 on (0: a tool's definition), its `text`."""

    kind: str
    turn: int
    text: str


def left_out(
    messages: list[dict], tools: list[dict] | None, text: str, render: Callable[[list[dict], list[dict] | None], str]
) -> list[Piece]:
    """The pieces of a conversation that a template drops.

    Args:
        text: what the template made of the conversation.
        render: renders another conversation with the same template. It may raise UserError.
    """
    marking = _Marking()
    try:
        marked = render(*marking.conversation(messages, tools))
    except UserError:  # the template knows these names or values; then the texts themselves have to do
        return [piece for piece in marking.pieces.values() if not _is_in(piece.text, text)]
    return [piece for mark, piece in marking.pieces.items() if mark not in marked]


def signature(messages: list[dict], tools: list[dict] | None) -> str:
    """The same for conversations of one structure, of which a template drops the same pieces as a rule."""

    def turn(message: dict) -> list:
        content = message["content"]
        calls = [_structure(call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
        thought = bool(message.get("reasoning_content")), bool(THINK.match(content)), "</think>" in content
        return [message["role"], bool(content.strip()), *thought, calls]

    return json.dumps([[turn(message) for message in messages], len(tools or ())])


def long_texts(messages: list[dict]) -> Iterable[str]:
    """Texts that are not found in a rendered conversation by chance."""
    for message in messages:
        match = THINK.match(message["content"]) if message["role"] == "assistant" else None
        for part in (match[2], match[4]) if match else (message["content"],):
            if len(part.strip()) >= _LONG:
                yield part.strip()


def _is_in(piece: str, text: str) -> bool:
    return piece.strip() in text or json.dumps(piece.strip(), ensure_ascii=False)[1:-1] in text


def _structure(value):
    if isinstance(value, dict):
        return {str(key): _structure(inner) for key, inner in value.items()}
    return [_structure(inner) for inner in value] if isinstance(value, list) else type(value).__name__


class _Marking:
    """Puts a mark behind every piece of content, and remembers what each stands for. The content stays: a template may
    go by it."""

    def __init__(self):
        self.pieces: dict[str, Piece] = {}

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> tuple[list[dict], list[dict] | None]:
        """Messages and tools of the same structure, all content marked."""
        return [self._message(message, turn) for turn, message in enumerate(messages, 1)], self._tools(tools)

    def _mark(self, kind: str, turn: int, text: str) -> str:
        mark = f"Zq{len(self.pieces):05d}kW"
        self.pieces[mark] = Piece(kind, turn, text)
        return text + mark

    def _message(self, message: dict, turn: int) -> dict:
        content, role = message["content"], message["role"]
        kind = {"system": "system", "tool": "result"}.get(role, "beside" if message.get("tool_calls") else "text")
        marked = dict(message)
        if content.strip():
            marked["content"] = self._content(content, kind, turn, role)
        if message.get("reasoning_content"):
            marked["reasoning_content"] = self._mark("thought", turn, message["reasoning_content"])
        if message.get("tool_calls"):
            marked["tool_calls"] = [self._call(call, turn) for call in message["tool_calls"]]
        return marked

    def _content(self, content: str, kind: str, turn: int, role: str) -> str:
        match = THINK.match(content) if role == "assistant" else None
        if not match:
            return self._mark(kind, turn, content)
        thought = self._mark("thought", turn, match[2]) if match[2].strip() else match[2]
        answer = self._mark(kind, turn, match[4]) if match[4].strip() else match[4]
        return match[1] + thought + match[3] + answer

    def _call(self, call: dict, turn: int) -> dict:
        function = call["function"]
        name = self._mark("call", turn, function["name"])
        arguments = {key: self._value(value, turn) for key, value in function["arguments"].items()}
        return {**call, "function": {**function, "name": name, "arguments": arguments}}

    def _value(self, value, turn: int):
        if isinstance(value, str) and value.strip():
            return self._mark("call", turn, value)
        if isinstance(value, dict):
            return {key: self._value(inner, turn) for key, inner in value.items()}
        return [self._value(inner, turn) for inner in value] if isinstance(value, list) else value

    def _tools(self, tools: list[dict] | None) -> list[dict] | None:
        if not tools:
            return tools
        return [
            {**tool, "function": {**tool["function"], "name": self._mark("tool", 0, tool["function"]["name"])}}
            for tool in tools
        ]
