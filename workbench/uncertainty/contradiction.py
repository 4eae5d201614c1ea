"""One question in several wordings, negated and in another language: do the answers contradict each other?

A wording that begins with `!` asks for the opposite. The stance of an answer is read from simple signs (does it say
that something is so, or not), so a mark on the page means 'look here', not 'wrong'.
"""

import re
from dataclasses import dataclass

from workbench.errors import UserError
from workbench.uncertainty.consistency import clusters

MAX_WORDINGS = 12
# the article's case: a model that supports tool calls and has no ability to call tools
TOOL_CALLS = [
    "Do you support tool calling?",
    "Can you call tools?",
    "!You cannot call tools, right?",
    "Are you able to use external tools such as a calculator?",
    "!Is it true that you have no ability to call tools?",
    "你支持工具调用嘛？",
    "你有工具调用的能力吗？",
    "!你不能调用工具，对吧？",
]
_SAYS_NOT = re.compile(
    r"\bI (?:can ?not|can't|can’t|don't|don’t|do not|am not|am unable|have no|lack|won't|wouldn't|couldn't)\b|\bI'm"
    r" (?:not|unable)|\bI’m (?:not|unable)"
    r"|\bnot (?:able|capable|designed|support\w*)|\bno (?:ability|tools?|access)\b|\b(?:does|do|is|are|was|were)"
    r" ?n[o']t\b|\bcannot\b"
    r"|不能|不会|不支持|没有|無法|无法|不具备|不可以|不是",
    re.IGNORECASE,
)
_SAYS_SO = re.compile(
    r"\bI (?:can|do|am|have|support|will|could)\b|\bI'm (?:able|capable|designed|here)|\bI’m"
    r" (?:able|capable|designed|here)|\bsupports?\b|\bable to\b|\bcapable of\b"
    r"|支持|可以|能够|会|具备|能",
    re.IGNORECASE,
)
_YES = re.compile(
    r"\W*(yes|yeah|sure|certainly|of"
    r" course|absolutely|definitely|indeed|right|correct|true|是的?|对|当然|没错|可以|能|支持)",
    re.IGNORECASE,
)
_NO = re.compile(r"\W*(no\b|nope|not\b|never|wrong|false|incorrect|不|没|否)", re.IGNORECASE)


@dataclass
class Wording:
    question: str
    opposite: bool = False


@dataclass
class Reading:
    """An answer and what it takes to be so: `yes`, `no`, or empty when it cannot be told."""

    wording: Wording
    answer: str
    stance: str = ""
    contradicts: bool = False


def wordings(text: str) -> list[Wording]:
    """One wording a line, `!` before those that ask for the opposite.

    Raises:
        UserError: fewer than two, or too many.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip("! \t")]
    if not 2 <= len(lines) <= MAX_WORDINGS:
        raise UserError("wordings_count", most=MAX_WORDINGS)
    return [Wording(line.lstrip("! "), line.startswith("!")) for line in lines]


def reword(question: str) -> list[str]:
    """Wordings of a yes-no question by rule, English or Chinese; other questions get two polite forms."""
    asked = question.strip().rstrip("?？").strip()
    if match := re.fullmatch(r"(do|can|could|are|will|would) you (.+)", asked, re.IGNORECASE):
        verb, rest = match[1].lower(), match[2]
        other = {"do": f"Can you {rest}?", "are": f"Would you say that you are {rest}?"}.get(verb, f"Do you {rest}?")
        negated = {
            "do": "do not",
            "can": "cannot",
            "could": "could not",
            "are": "are not",
            "will": "will not",
            "would": "would not",
        }[verb]
        return [
            question,
            other,
            f"Please tell me: {verb} you {rest}?",
            f"!You {negated} {rest}, right?",
            f"!Is it true that you {negated} {rest}?",
        ]
    if match := re.fullmatch(r"你(能|会|可以|支持|有|是)(.+?)(吗|嘛|么)?", asked):
        verb, rest = match[1], match[2]
        negated = "没有" if verb == "有" else "不" + verb
        return [question, f"请问你{verb}{rest}吗？", f"!你{negated}{rest}，对吧？", f"!你{negated}{rest}，是真的吗？"]
    return [question, f"Please answer this question: {question}", f"I would like to know: {question}"]


def stance(answer: str, opposite: bool) -> str:
    """`yes` when the answer takes the thing asked about to be so, `no` when not, empty when it cannot be told."""
    first = re.split(r"(?<=[.!?。！？])\s*", answer.strip(), maxsplit=2)
    for sentence in [" ".join(first[:2]), answer[:400]]:
        if _SAYS_NOT.search(sentence):
            return "no"
        if _SAYS_SO.search(_YES.sub("", sentence, count=1)):
            return "yes"
    if _NO.match(answer):
        return "no"  # to a negated question, too: 'no, I cannot' is the common reading
    if _YES.match(answer):
        return "no" if opposite else "yes"
    return ""


def compare(asked: list[Wording], answers: list[str]) -> list[Reading]:
    """Line the answers up; those that the majority contradicts are marked. On a tie both sides are.

    Questions that have no yes or no are compared by the names and numbers in the answers.
    """
    readings = [Reading(w, a, stance(a, w.opposite)) for w, a in zip(asked, answers, strict=True)]
    sides = {side: [r for r in readings if r.stance == side] for side in ("yes", "no")}
    if len(sides["yes"]) + len(sides["no"]) >= len(readings) / 2:
        if sides["yes"] and sides["no"]:
            few, many = sorted(sides.values(), key=len)
            for reading in few if len(few) < len(many) else readings:
                reading.contradicts = bool(reading.stance)
        return readings
    groups = clusters(answers, " ".join(w.question for w in asked))
    for index in (i for group in groups[1:] for i in group):
        readings[index].contradicts = True
    return readings
