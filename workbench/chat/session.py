"""A conversation as the Chat tab keeps it, shows it, and sends it. No gradio here."""

import random
import re
from dataclasses import dataclass, field
from html import escape, unescape

from workbench.chat.conversations import Conversation, new_id
from workbench.chat.math import with_formulas
from workbench.errors import UserError

MAX_COLUMNS = 4  # the base model and three adapters
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)


def shown(text: str, formulas: bool = False) -> str:
    """A text for the Chatbot: Markdown stays, HTML becomes text (code spans are left to Markdown). `formulas`: between
    single dollars, too; not for what the user edits there."""
    parts = _CODE.split(text)
    for index in range(0, len(parts), 2):
        parts[index] = escape(with_formulas(parts[index]) if formulas else parts[index], quote=False)
    return "".join(parts)


def go_on(session: "Session") -> bool:
    """Mark the first answer that was cut, so that it is written on; whether there is one."""
    for column in session.columns[: session.width]:
        if column and column[-1].get("cut") and column[-1]["role"] == "assistant":
            last = column[-1]
            session.next_turn([list(messages) for messages in session.columns])
            last.pop("cut")
            last["unfinished"] = True
            return True
    return False


def unshown(text: str) -> str:
    """What `shown` was made from: the Chatbot's editor holds the escaped text."""
    parts = _CODE.split(text)
    return "".join(part if index % 2 else unescape(part) for index, part in enumerate(parts))


def settled(column: list[dict]) -> list[dict]:
    """A column without an answer that was never begun."""
    last = column[-1] if column else {}
    empty = last.get("role") == "assistant" and not (last["content"] or last.get("calls") or last.get("reasoning"))
    return list(column[:-1] if empty else column)


def bubbles(conversation: list[dict], thoughts: str = "Thoughts", calls: str = "Tool call") -> list[dict]:
    """A conversation as the Chatbot shows it: thoughts folded, tool calls as code."""
    bubbles = []
    for message in conversation:
        if message.get("reasoning"):
            about = {"title": thoughts, "status": "done" if message["content"] else "pending"}
            bubbles.append({"role": "assistant", "content": shown(message["reasoning"], True), "metadata": about})
        for call in message.get("calls") or []:
            code = f"```json\n{call.get('name', '')}({call.get('arguments', '')})\n```"
            bubbles.append(
                {"role": "assistant", "content": code, "metadata": {"title": f"{calls}: {call.get('name', '')}"}}
            )
        if message["content"] or not (message.get("reasoning") or message.get("calls")):
            text = shown(message["content"], formulas=message["role"] == "assistant")
            bubbles.append({"role": message["role"], "content": text or "…"})
    return bubbles


def sent(conversation: list[dict]) -> list[dict]:
    """What goes to the model: roles and texts, with the calls that were made.

    Questions that follow each other, because the first got no answer, are one message: many chat templates (Gemma's,
    Mistral's) demand that roles alternate.
    """
    messages: list[dict] = []
    for message in conversation:
        plain = {"role": message["role"], "content": message["content"]}
        if messages and plain["role"] == "user" == messages[-1]["role"]:
            messages[-1]["content"] += "\n\n" + plain["content"]
            continue
        if message.get("calls"):
            plain["tool_calls"] = [
                {"id": f"call_{i}", "type": "function", "function": call} for i, call in enumerate(message["calls"])
            ]
        messages.append(plain)
    return messages


def from_bubble(conversation: list[dict], index: int) -> int | None:
    """The place in `conversation` of what the Chatbot shows at `index`."""
    place = -1
    for number, message in enumerate(conversation):
        place += len(bubbles([message]))
        if index <= place:
            return number
    return None


@dataclass
class Session:
    """One tab's conversations: a column of plain messages for each model that is asked.

    `turn` counts what the user did; an answer that is being written ends when it is no longer the turn's own.
    An assistant's message also carries what is known of it: `tokens` (entries of its log-probabilities), `model`,
    `branches`.
    """

    columns: list[list[dict]] = field(default_factory=lambda: [[] for _ in range(MAX_COLUMNS)])
    models: list[str] = field(default_factory=list)
    width: int = 1  # columns that are shown
    turn: int = 0
    id: str = field(default_factory=new_id)
    title: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completed: int = 0  # the last turn whose answer is no longer being written
    answered: int = -1  # the last turn whose answer came to its end
    saved_at: float = 0.0  # when this session last wrote its file
    focus: tuple[int, int] | None = (
        None  # column and place of the answer that is looked at; None: the last of the first
    )

    @property
    def left(self) -> list[dict]:
        return self.columns[0]

    def next_turn(self, columns: list[list[dict]]) -> None:
        """The user acted: what was being written stays as it is, the conversations go on as given."""
        self.turn += 1
        self.columns = [*map(settled, columns), *([] for _ in range(MAX_COLUMNS - len(columns)))]
        self.focus = None

    def shown(self, problem: str = "") -> tuple:
        """Values for the Chatbots and the line under them."""
        return *map(bubbles, self.columns), problem

    def answer(self) -> tuple[list[dict], dict] | None:
        """The conversation before the answer that is looked at, and that answer."""
        column, index = self.focus or (0, len(self.left) - 1)
        messages = self.columns[column]
        while index >= 0 and (index >= len(messages) or messages[index]["role"] != "assistant"):
            index -= 1
        return (messages[:index], messages[index]) if index >= 0 else None

    def focus_place(self) -> tuple[int, int] | None:
        """Column and place of the answer that is looked at."""
        focused = self.answer()
        return None if focused is None else ((self.focus or (0, 0))[0], len(focused[0]))

    def saved(self) -> Conversation:
        """For the disk."""
        return Conversation(self.id, self.title, list(self.columns[: self.width]), self.models)

    @staticmethod
    def opened(conversation: Conversation) -> "Session":
        columns = [*conversation.columns, *([] for _ in range(MAX_COLUMNS))][:MAX_COLUMNS]
        return Session(
            columns,
            conversation.models,
            max(len(conversation.columns), 1),
            id=conversation.id,
            title=conversation.title,
            saved_at=conversation.changed,
        )


def asked_to_think(thinking: str | None) -> dict:
    """For the API: the chat template's switch, under the names that templates have for it; nothing for `auto`."""
    if thinking in (None, "auto"):
        return {}
    return {"chat_template_kwargs": {"enable_thinking": thinking == "on", "thinking": thinking == "on"}}


@dataclass
class Sampling:
    """The generation parameters of the page."""

    system: str
    max_tokens: float
    temperature: float
    top_p: float
    top_k: float
    repetition_penalty: float
    seed: str
    thinking: str = "auto"  # on, off, or as the model was loaded

    def request(self, seed: int, own: bool = True) -> dict:
        """For the API; `own`: with what only our engine and vLLM know."""
        plain = {"max_tokens": int(self.max_tokens), "temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        extra = {"top_k": int(self.top_k), "repetition_penalty": self.repetition_penalty}
        extra = (extra if own else {}) | asked_to_think(self.thinking)
        return plain | {"extra_body": extra} if extra else plain

    def chosen_seed(self) -> int:
        text = str(self.seed or "").strip()
        if text and not re.fullmatch(r"-?\d+", text):
            raise UserError("seed_wrong", text=text)
        return int(text) if text else random.randrange(2**31)
