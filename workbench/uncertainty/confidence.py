"""What an answer's log-probabilities say, token by token. Entries are those of OpenAI's `logprobs.content`.

A span is scored by its weakest token, not by its mean: a made-up name in a fluent sentence hides in a mean
(arXiv 2509.03531 found the maximum over a span the best of the scores that need no training).
"""

import math
import re
from dataclasses import dataclass, field

LOW = 0.5  # a token below this probability counts as one that the model was not sure of
BINS = (0.2, 0.5, 0.8, 0.95)  # limits of the five colors
_SENTENCE = re.compile(r"[^.!?。！？\n]*(?:[.!?。！？]+|\n|$)")
_EMPTY_WORDS = frozenset(
    [
        "the",
        "a",
        "an",
        "is",
        "are",
        "was",
        "were",
        "of",
        "to",
        "in",
        "on",
        "at",
        "by",
        "for",
        "and",
        "or",
        "that",
        "this",
        "it",
        "its",
        "as",
        "with",
        "be",
        "has",
        "have",
        "i",
        "you",
    ]
)


@dataclass
class TokenView:
    """One token for the page. `entropy` and `rank` are None where a server does not tell them."""

    text: str
    probability: float
    logprob: float
    rank: int | None = None
    entropy: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)  # text and probability, likeliest first

    @property
    def bin(self) -> int:
        """0 (least probable) to 4."""
        return sum(self.probability >= limit for limit in BINS)


@dataclass
class Summary:
    """Above the answer: its mean log-probability, its weakest span, how many tokens were uncertain."""

    mean_logprob: float
    weakest: str
    weakest_probability: float
    low: int
    tokens: int


def views(entries: list[dict]) -> list[TokenView]:
    """Entries of `logprobs.content` (dicts, other servers' too) as the page needs them."""
    views = []
    for entry in entries:
        logprob = max(float(entry.get("logprob") or 0.0), -100.0)
        top = [(t.get("token", ""), math.exp(max(t["logprob"], -100.0))) for t in entry.get("top_logprobs") or []]
        rank = entry.get("rank")
        if rank is None and top:  # another server: the place among the alternatives, when it is one of them
            rank = next((i for i, (text, _) in enumerate(top, 1) if text == entry.get("token")), None)
        text = entry.get("text")
        views.append(
            TokenView(
                entry.get("token", "") if text is None else text,
                math.exp(logprob),
                logprob,
                rank,
                entry.get("entropy"),
                top,
            )
        )
    return views


def spans(tokens: list[TokenView]) -> list[tuple[int, int]]:
    """Words as ranges of tokens: a new one begins at a space, a line end, punctuation or a Chinese character."""
    spans, start = [], 0
    for index, token in enumerate(tokens):
        if index > start and re.match(r"\s|[^\w\s]|[\u3040-\u9fff]", token.text or "x"):
            spans.append((start, index))
            start = index
    if tokens:
        spans.append((start, len(tokens)))
    return spans


def summary(tokens: list[TokenView]) -> Summary:
    """Of an answer with at least one token."""
    if not tokens:
        return Summary(0.0, "", 1.0, 0, 0)
    scored = []
    for start, end in spans(tokens):
        text = "".join(token.text for token in tokens[start:end]).strip()
        if re.search(r"\w", text) and text.lower() not in _EMPTY_WORDS:
            scored.append((min(token.probability for token in tokens[start:end]), text))
    probability, weakest = min(scored, default=(min(token.probability for token in tokens), ""))
    mean = sum(token.logprob for token in tokens) / len(tokens)
    return Summary(mean, weakest, probability, sum(token.probability < LOW for token in tokens), len(tokens))


def sentences(text: str) -> list[str]:
    """An answer cut into sentences; joined they are the answer again."""
    pieces = [piece for piece in _SENTENCE.findall(text) if piece]
    joined: list[str] = []
    for piece in pieces:
        # "3.5", "e.g." and lone marks are no sentences
        if joined and (not re.search(r"\w", piece) or re.search(r"(\d\.|\b[A-Za-z]\.)$", joined[-1])):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
