"""Rewards by rule for GRPO: what an answer is worth, from 0 to 1. And those of a Python file that the user names."""

import importlib.util
import json
import math
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import regex

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.errors import UserError

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.S)
_LONGEST = 20_000  # characters of an answer that a pattern looks at
_SECONDS = 1.0  # that it may take

Reward = Callable[..., list[float]]


def reward_functions(config: RunConfig, scores: Reward | None = None) -> list[Reward]:
    """The functions of `reward_funcs` in TRL's form: called with `prompts`, `completions` (messages) and the columns of
    the dataset, they return a number for each. `scores` is that of a reward model, where it is among them.

    Raises:
        UserError: a file that cannot be read, is not trusted or has no function `reward`.
    """
    made: dict[str, Callable[[RunConfig], Any]] = {
        "answer": lambda config: answer_matches,
        "json": lambda config: valid_json,
        "length": lambda config: short_enough(config.reward_length),
        "regex": lambda config: matches_pattern(config.reward_regex or ""),
        "file": from_file,
        "model": lambda config: scores,
    }
    return [made[name](config) for name in split_names(config.reward_funcs)]


def texts(completions: list) -> list[str]:
    """What the model wrote, of messages or of texts."""
    return [one if isinstance(one, str) else str(one[-1].get("content") or "") for one in completions]


def answer_matches(completions: list, answer: list[str], **columns) -> list[float]:
    """1 where an answer is the dataset's: the same words, or the same last number where that ends in one (GSM8K's
    `#### 42`)."""
    return [float(same_answer(text, wanted)) for text, wanted in zip(texts(completions), answer, strict=True)]


def same_answer(text: str, wanted: str) -> bool:
    """Whether two answers say the same, as `answer_matches` means it."""
    if " ".join(text.split()).casefold() == " ".join(wanted.split()).casefold():
        return True
    last = wanted.rsplit("####", 1)[-1].strip()
    number = _NUMBER.fullmatch(last.rstrip("."))
    if number is None:
        return False
    found = _NUMBER.findall(text)
    return bool(found) and _value(found[-1]) == _value(number[0])


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def valid_json(completions: list, **columns) -> list[float]:
    """1 where an answer is a JSON object or list and nothing else; a fence around it does not count."""

    def worth(text: str) -> float:
        fenced = _FENCE.match(text.strip())
        try:
            value = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return 0.0
        return float(isinstance(value, dict | list))

    return [worth(text) for text in texts(completions)]


def short_enough(most: int) -> Reward:
    """1 up to `most` characters, then less and less, 0 from twice as many on."""

    def length(completions: list, **columns) -> list[float]:
        return [min(1.0, max(0.0, 2 - len(text) / most)) for text in texts(completions)]

    return length


def matches_pattern(pattern: str) -> Reward:
    """1 where the pattern is found. Raises UserError: it is no regular expression."""
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UserError("reward_pattern", pattern=pattern, problem=error) from None

    def found(text: str) -> bool:
        try:
            return compiled.search(text[:_LONGEST], timeout=_SECONDS) is not None
        except TimeoutError:
            return False

    def matches(completions: list, **columns) -> list[float]:
        return [float(found(text)) for text in texts(completions)]

    matches.__name__ = "regex"
    return matches


def from_file(config: RunConfig) -> Reward:
    """The function `reward` of a Python file, which runs only where `trust_reward_code` is ticked.

    What it raises, or returns instead of numbers, ends the run with one sentence.
    """
    file = Path(config.reward_file or "")
    if not config.trust_reward_code:
        raise UserError("reward_untrusted", file=file)
    try:
        spec = importlib.util.spec_from_file_location("workbench_reward_file", file)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        function = module.reward
    except FileNotFoundError:
        raise UserError("reward_file_missing", file=file) from None
    except AttributeError:
        raise UserError("reward_file_without", file=file) from None
    except Exception as error:
        raise UserError("reward_failed", file=file, line=_line(error, file), problem=_said(error)) from None

    def checked(prompts: list, completions: list, **columns) -> list[float]:
        try:
            values = [float(value) for value in function(prompts=prompts, completions=texts(completions), **columns)]
        except Exception as error:
            raise UserError("reward_failed", file=file, line=_line(error, file), problem=_said(error)) from None
        if len(values) != len(completions) or not all(map(math.isfinite, values)):
            raise UserError("reward_values", file=file, count=len(completions), got=len(values))
        return values

    checked.__name__ = "file"
    return checked


def _line(error: Exception, file: Path) -> int:
    """The line of the file in which an error came up, 0 if none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return lines[-1] or 0 if lines else getattr(error, "lineno", 0) or 0


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
