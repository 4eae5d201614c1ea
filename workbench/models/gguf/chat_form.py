"""A chat template as Ollama writes one (Go's text/template), where it is no more than text around each message.

The template is rendered on small conversations; what stands around the contents is the form, and it counts only if
putting it together gives every rendering again. Templates that do more (tools, thoughts taken out, another form for
the last message) have no such form, or one that is true for plain messages only, which the Modelfile says.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SYSTEM, _USER, _SAID, _SECOND = (
    {"role": role, "content": f"Zyx {word} qvw"}
    for role, word in (("system", "one"), ("user", "two"), ("assistant", "three"), ("user", "four"))
)
_TALKS = [
    [_USER],
    [_SYSTEM, _USER],
    [_USER, _SAID, _SECOND],
    [_SYSTEM, _USER, _SAID, _SECOND],
    [_USER, _SAID, _SECOND, _SAID, _USER],
]


@dataclass(frozen=True)
class ChatForm:
    """Text before and behind a message of each role, before the whole, before the answer; the template's own system
    message, where a conversation has none."""

    around: dict[str, tuple[str, str]]
    start: str
    answer: str
    system: str | None

    def render(self, messages: list[dict[str, str]]) -> str:
        """A conversation and the beginning of the answer to it."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = [before + m["content"] + behind for m in messages for before, behind in [self.around[m["role"]]]]
        return self.start + "".join(parts) + self.answer

    def go(self) -> str:
        """As a template of Ollama."""
        roles = list(self.around)
        lines = [_go_text(self.start), "{{- range .Messages }}"]
        for number, role in enumerate(roles):
            before, behind = self.around[role]
            test = f'{"else if" if number else "if"} eq .Role "{role}"'
            lines.append(f"{{{{- {test} }}}}{_go_text(before)}{{{{ .Content }}}}{_go_text(behind)}")
        return "".join([*lines, "{{- end }}{{- end }}", _go_text(self.answer)])


def _go_text(text: str) -> str:
    """Text between actions. Space at its edges is written as a string: actions beside it take plain space away."""
    middle = text.strip()
    before, _, behind = text.partition(middle) if middle else (text, "", "")
    return _go_space(before) + middle.replace("{{", '{{ "{{" }}') + _go_space(behind)


def _go_space(space: str) -> str:
    shown = space.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f'{{{{ "{shown}" }}}}' if space else ""


def chat_form(tokenizer: Any, drop_bos: bool) -> ChatForm | None:
    """The form of a tokenizer's template, or None where it has no such form.

    Args:
        drop_bos: the BOS token is added by whoever reads the text, so it is not in the form.
    """

    def rendered(talk: list[dict[str, str]], answer: bool = True) -> str:
        text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=answer)
        return text.removeprefix(tokenizer.bos_token) if drop_bos and tokenizer.bos_token else text

    try:
        wanted = [(talk, rendered(talk)) for talk in _TALKS]
        unanswered = rendered(_TALKS[1], answer=False)
    except Exception:  # a template may raise what it likes about conversations that it does not take
        return None
    return next(
        (form for form in _candidates(wanted, unanswered) if all(form.render(t) == text for t, text in wanted)), None
    )


def _candidates(wanted: list[tuple[list[dict[str, str]], str]], unanswered: str) -> Iterator[ChatForm]:
    """Forms that would give the longest conversation again. Where one message's text ends and the next one's begins
    cannot be seen in it, so that all ways are tried."""
    answer = wanted[1][1].removeprefix(unanswered)
    pattern = "(.*?)".join(re.escape(message["content"]) for message in _TALKS[3])
    cut = re.fullmatch(rf"(.*?){pattern}(.*)", wanted[3][1], re.DOTALL)
    if cut is None or not cut[5].endswith(answer) or not wanted[1][1].startswith(unanswered):
        return
    first, system_user, user_said, said_user, last = cut.groups()
    user_end = last[: len(last) - len(answer)]
    if not user_said.startswith(user_end):
        return
    said_start = user_said[len(user_end) :]
    lengths = sorted(range(len(said_user) + 1), key=lambda length: said_user[:length] != user_end)
    for length, begin in itertools.product(lengths, range(len(first) + 1)):
        said_end, user_start = said_user[:length], said_user[length:]
        if not system_user.endswith(user_start):
            continue
        system_end = system_user[: len(system_user) - len(user_start)]
        around = {
            "system": (first[begin:], system_end),
            "user": (user_start, user_end),
            "assistant": (said_start, said_end),
        }
        yield ChatForm(around, first[:begin], answer, None)
        behind = f"{system_end}{user_start}{_TALKS[0][0]['content']}{user_end}{answer}"
        alone = wanted[0][1]
        if alone.startswith(first) and alone.endswith(behind) and len(alone) > len(first) + len(behind):
            yield ChatForm(around, first[:begin], answer, alone[len(first) : len(alone) - len(behind)])


def trims(tokenizer: Any) -> bool:
    """Whether a template takes the space around a message away, which Ollama's form does not."""
    try:
        messages = [{"role": "user", "content": "  Zyx  "}]
        return "  Zyx  " not in tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:
        return False
