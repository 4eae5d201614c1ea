"""Does an answer pass a probe? By an expected text, a pattern, or a rule. Plain text in, a verdict out."""

import json
import re
import unicodedata

import regex

from workbench.errors import UserError

MAX_JUDGED = 4000  # characters of an answer that patterns are tried on
PATTERN_SECONDS = 1.0  # that one may take: somebody wrote it, and some never end
_DENIES = re.compile(
    r"\b(no|not|cannot|can't|can’t|don't|don’t|doesn't|doesn’t|unable|never|none|isn't|isn’t|won't|won’t|neither|without)\b"
    r"|不|没|無|无法|未",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """`text` in lower case, without accents, punctuation and double spaces; Chinese stays as it is."""
    letters = unicodedata.normalize("NFKD", text.lower())
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[^\w%]+", " ", letters).split())


def mentions(answer: str, wanted: str) -> bool:
    """Whether `wanted` occurs in `answer` as whole words (in Chinese: anywhere)."""
    answer, wanted = plain(answer), plain(wanted)
    if not wanted:
        return False
    if re.search(r"[\u4e00-\u9fff]", wanted):
        return wanted in answer
    return f" {wanted} " in f" {answer} "


def denies(answer: str) -> bool:
    """Whether the first sentence of an answer says no."""
    first = re.split(r"(?<=[.!?。！？])", answer.strip(), maxsplit=1)[0]
    return bool(_DENIES.search(first))


def _is_json(answer: str) -> bool:
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return True


RULES = {
    "says_no": denies,
    "says_yes": lambda answer: bool(answer.strip()) and not denies(answer),
    "is_json": _is_json,
    "is_short": lambda answer: 0 < len(answer.strip()) <= 200,
    "not_empty": lambda answer: bool(answer.strip()),
}


def passes(answer: str, probe: dict) -> bool:
    """Whether `answer` satisfies the probe's `expect` (one of several texts), `pattern`, or `judge` (a rule's name).

    A probe with several of them wants all.
    """
    verdicts = []
    if expect := probe.get("expect"):
        verdicts.append(any(mentions(answer, wanted) for wanted in ([expect] if isinstance(expect, str) else expect)))
    if pattern := probe.get("pattern"):
        verdicts.append(_matches(pattern, answer[:MAX_JUDGED], bool(probe.get("ignore_case"))))
    if judge := probe.get("judge"):
        verdicts.append(RULES[judge](answer))
    return all(verdicts)


def _matches(pattern: str, answer: str, ignore_case: bool) -> bool:
    """Whether a pattern occurs in an answer. Raises UserError: it takes too long, as some patterns do on some texts."""
    try:
        return bool(regex.search(pattern, answer, regex.IGNORECASE if ignore_case else 0, timeout=PATTERN_SECONDS))
    except TimeoutError:
        raise UserError("pattern_slow", pattern=pattern[:100], seconds=PATTERN_SECONDS) from None
    except regex.error as error:
        raise UserError("pattern_wrong", pattern=pattern[:100], problem=error) from None


def check_probe(probe: dict, place: str) -> None:
    """Raise UserError, naming the place, when a probe cannot be asked or judged."""
    if not isinstance(probe, dict):
        raise UserError("probe_not_object", place=place, kind=type(probe).__name__)
    if not isinstance(probe.get("prompt"), str) or not probe["prompt"].strip():
        raise UserError("probe_prompt", place=place)
    expect = probe.get("expect")
    if expect is not None and not (
        isinstance(expect, str) or (isinstance(expect, list) and expect and all(isinstance(e, str) for e in expect))
    ):
        raise UserError("probe_expect", place=place)
    if probe.get("judge") is not None and (not isinstance(probe["judge"], str) or probe["judge"] not in RULES):
        raise UserError("probe_judge", place=place, name=probe["judge"], rules=RULES)
    if (pattern := probe.get("pattern")) is not None:
        try:
            regex.compile(pattern)
        except (regex.error, TypeError) as error:
            raise UserError("probe_pattern", place=place, problem=error) from None
    if not any(probe.get(key) for key in ("expect", "pattern", "judge")):
        raise UserError("probe_empty", place=place)
