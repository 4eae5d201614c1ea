"""A chat template with generation markers: its own, or TRL's marked version of it. Works without torch, too."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from workbench.data.thinking import choice_in, without_choice
from workbench.errors import UserError

_END = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s+\Z")  # a special token, and space behind it
_CLOSED = re.compile(r"<think>\s*</think>\s*\Z")
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _WithoutTorch(PathFinder):
    """Finds all modules but torch."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] == "torch" else PathFinder.find_spec(fullname, path, target)


def without_torch() -> None:
    """Let this process do without torch, which costs seconds and 200 MB: tokenizers and templates need none.

    Call it before transformers is imported, which then takes torch for not installed.
    """
    if "torch" not in sys.modules:
        sys.meta_path[:] = [_WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def training_template(tokenizer) -> tuple[str, bool]:
    """`(template, whether it marks what the assistant wrote)` for a tokenizer with a template."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    if _MARKER.search(template):
        return template, True
    choice, plain = choice_in(template), without_choice(template)
    if not _trl_may_know(plain):
        return template, False
    from trl.chat_template_utils import get_training_chat_template

    own, tokenizer.chat_template = tokenizer.chat_template, plain  # TRL knows it by its text
    try:
        marked = get_training_chat_template(tokenizer)
    except Exception:  # no marked version is known for this template
        marked = None
    finally:
        tokenizer.chat_template = own
    return (choice + marked, True) if marked else (template, False)


def _trl_may_know(template: str) -> bool:
    """Whether a template is one of those that TRL ships, which it tells by their text; importing it to be told no costs
    half a second."""
    package = importlib.util.find_spec("trl")
    if package is None or not package.submodule_search_locations:
        return False
    folder = Path(package.submodule_search_locations[0]) / "chat_templates"
    files = list(folder.glob("*.jinja"))
    return not files or any(file.read_text(encoding="utf-8") == template for file in files)


def in_their_form(messages: list[dict]) -> list[dict]:
    """Messages as templates expect them: thoughts under all the names that are in use, nothing of our own."""
    if not any("train" in message or message.get("reasoning_content") for message in messages):
        return messages
    plain = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    return [
        {**message, "thinking": message["reasoning_content"], "reasoning": message["reasoning_content"]}
        if message.get("reasoning_content")
        else message
        for message in plain
    ]


@dataclass(frozen=True)
class Habits:
    """What a template does in every conversation.

    `header`: what it marks as the assistant's though the prompt brings it. `knows_thoughts`: it renders
    `reasoning_content`. `takes_think`: it shows thoughts as `<think>`. `opens_thought`: its prompt ends in `<think>`
    and the text of an answer does not. `closes_thought`: its prompt ends in an empty thought.
    """

    header: str = ""
    knows_thoughts: bool = False
    takes_think: bool = False
    opens_thought: bool = False
    closes_thought: bool = False

    def with_thoughts(self, messages: list[dict]) -> list[dict]:
        """Thoughts that the template does not know, in the answer's text where it shows them so in chat."""
        if self.knows_thoughts or not self.takes_think:
            return messages
        return [
            {
                **{key: value for key, value in message.items() if key != "reasoning_content"},
                "content": f"<think>\n{message['reasoning_content'].strip()}\n</think>\n\n{message['content']}",
            }
            if message.get("reasoning_content") and "<think>" not in message["content"]
            else message
            for message in messages
        ]

    def has_thought(self, message: dict) -> bool:
        """Whether an answer brings a thought."""
        return bool(message.get("reasoning_content")) or "<think>" in message["content"]

    def _in_the_prompt(self, text: str, start: int) -> int:
        """How many characters of `text` from `start` on the prompt brings: what is left of the header there."""
        for before in range(len(self.header)):
            rest = self.header[before:]
            if text.startswith(rest, start) and text.endswith(self.header[:before], 0, start):
                return len(rest)
        return 0

    def trimmed(self, spans: list[tuple[int, int]], text: str) -> list[tuple[int, int]]:
        """Marked ranges without what the model need not produce: the header before, space behind the end token, a
        second end token."""
        kept: list[tuple[int, int]] = []
        for start, end in spans:
            start = min(end, start + self._in_the_prompt(text, start))
            if space := _END.search(text[start:end]):
                end = start + space.end(1)
            ended = bool(kept) and text[kept[-1][0] : kept[-1][1]].endswith((">", "]"))
            if ended and not text[kept[-1][1] : start].strip() and re.fullmatch(r"\s*<[^<>\s]+>", text[start:end]):
                continue
            kept.append((start, end))
        return kept


def joined(spans: list[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Ranges of one per answer: what follows at once belongs together."""
    whole: list[tuple[int, int]] = []
    for start, end in spans:
        if whole and not text[whole[-1][1] : start].strip():
            whole[-1] = (whole[-1][0], end)
        else:
            whole.append((start, end))
    return whole


def habits(render: Callable[..., str], template: str) -> Habits:
    """Find out what a template does, with a conversation of one question.

    Args:
        render: renders messages with the template, `add_generation_prompt` as a keyword. It may raise UserError.
    """
    question = {"role": "user", "content": "Zq1kW"}
    try:
        text = render([question, {"role": "assistant", "content": "Zq2kW"}])
        prompt = render([question], add_generation_prompt=True)
        bare = render([question])
    except UserError:
        return Habits()
    same = next((i for i, pair in enumerate(zip(text, prompt, strict=False)) if pair[0] != pair[1]), len(prompt))
    thought = "Zq3kW"
    try:
        answer = {"role": "assistant", "content": "Zq2kW", "reasoning_content": thought}
        knows = thought in render(in_their_form([question, answer]))
    except UserError:
        knows = False
    header = text[len(bare) : same] if text.startswith(bare) else ""
    opens = prompt.rstrip().endswith("<think>") and not text[same:].lstrip().startswith(("<think>", "Zq2kW</think>"))
    opens = opens and not text[:same].rstrip().endswith("<think>")
    return Habits(header, knows, "<think>" in template, opens, bool(_CLOSED.search(prompt)))
