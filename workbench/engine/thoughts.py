"""How models write thoughts before an answer, and whether a prompt leaves one open."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thoughts:
    """A layout of thoughts: what opens one, what closes it, and what is written between it and the answer's text."""

    open: str
    close: str
    answer: str = ""


KNOWN = (
    Thoughts("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM-4.5, Nemotron and most others
    Thoughts("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final<|message|>"),  # gpt-oss
    Thoughts("<|channel>thought\n", "<channel|>"),  # Gemma 4
    Thoughts("[THINK]", "[/THINK]"),  # Magistral
    Thoughts("<seed:think>", "</seed:think>"),  # Seed-OSS
    Thoughts("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)


def thoughts_of(template: str) -> Thoughts | None:
    """The layout that a chat template speaks of, or None."""
    return next((layout for layout in KNOWN if layout.open.strip() in template), None)


def left_open(layout: Thoughts, prompt: str, given: str | None) -> bool:
    """Whether what is written next is a thought.

    Args:
        prompt: the rendered conversation.
        given: the beginning of the answer that is to be gone on with; None where a new answer begins.
    """
    opening, closing = layout.open.strip(), layout.close.strip()
    if given is None:
        return prompt.rstrip().endswith(opening)
    given = given.strip()
    if opening in given or closing in given:
        return given.rfind(opening) > given.rfind(closing)
    before = prompt[: prompt.rfind(given)] if given else prompt
    return before.rstrip().endswith(opening)  # the template opened it


def may_think(layout: Thoughts, prompt: str, given: str | None) -> bool:
    """Whether a thought may still be begun: the prompt neither closes one nor goes on with an answer."""
    # gpt-oss closes a thought with what begins every message
    closed = not layout.answer and prompt.rstrip().endswith(layout.close.strip())
    return given is None and not closed
