"""A conversation as the Chat tab keeps it, shows it, and sends it. No gradio here."""

import random
import re
from dataclasses import dataclass, field
from html import escape

from workbench.errors import UserError

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)


def shown(text: str) -> str:
    """A model's answer for the Chatbot: Markdown stays, HTML becomes text (code spans are left to Markdown)."""
    parts = _CODE.split(text)
    return "".join(part if index % 2 else escape(part, quote=False) for index, part in enumerate(parts))


def bubbles(conversation: list[dict]) -> list[dict]:
    """A conversation as the Chatbot shows it."""
    return [{"role": m["role"], "content": shown(m["content"]) or "…"} for m in conversation]


@dataclass
class Session:
    """One tab's conversations: `left`, and `right` when comparing, as plain messages.

    `turn` counts what the user did; an answer that is being written ends when it is no longer the turn's own.
    """

    left: list[dict] = field(default_factory=list)
    right: list[dict] = field(default_factory=list)
    turn: int = 0

    @property
    def columns(self) -> tuple[list[dict], list[dict]]:
        return self.left, self.right

    def next_turn(self, left: list[dict], right: list[dict]) -> None:
        """The user acted: what was being written stays as it is, the conversations go on as given."""
        self.turn += 1
        self.left, self.right = left, right

    def shown(self, problem: str = "") -> tuple:
        """Values for both Chatbots and the line under them."""
        return bubbles(self.left), bubbles(self.right), problem


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

    def request(self, seed: int) -> dict:
        return {
            "max_tokens": int(self.max_tokens),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": seed,
            "extra_body": {"top_k": int(self.top_k), "repetition_penalty": self.repetition_penalty},
        }

    def chosen_seed(self) -> int:
        text = str(self.seed or "").strip()
        if text and not re.fullmatch(r"-?\d+", text):
            raise UserError(f"Seed: '{text}' is not a whole number. Leave it empty for a random one.")
        return int(text) if text else random.randrange(2**31)
