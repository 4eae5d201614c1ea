"""Do other samples of the same model support an answer? No second model, no training.

`support` of a sentence: its facts are its names and numbers that the question did not bring (its other content words
where it has none); for each, the share of samples that mention it; the mean of these. It follows SelfCheckGPT's idea
(Manakul et al. 2023: what a model knows, its samples repeat) with facts in place of n-grams. `docs/hallucination.md`
has its AUROC beside other scores.
"""

import math
import re
from dataclasses import dataclass, field

from workbench.uncertainty.confidence import sentences
from workbench.uncertainty.rules import plain

SAMPLES = 5
TEMPERATURE = 0.7  # of the samples; better than 1.0 in docs/hallucination.md
SUPPORTED, DOUBTFUL = 0.6, 0.3  # shares at which the words and colors change
_EMPTY = frozenset(
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
        "been",
        "being",
        "has",
        "have",
        "had",
        "i",
        "me",
        "my",
        "you",
        "your",
        "from",
        "which",
        "who",
        "whom",
        "whose",
        "what",
        "where",
        "when",
        "why",
        "how",
        "not",
        "no",
        "but",
        "also",
        "known",
        "can",
        "could",
        "will",
        "would",
        "should",
        "may",
        "might",
        "must",
        "their",
        "they",
        "them",
        "his",
        "her",
        "he",
        "she",
        "there",
        "such",
        "these",
        "those",
        "than",
        "then",
        "so",
        "if",
        "do",
        "does",
        "did",
        "about",
        "into",
        "over",
        "under",
        "more",
        "most",
        "very",
        "one",
    ]
)
_NAME = re.compile(r"\d[\d,.]*\d|\d|(?<![.!?…] )(?<![.!?…]\n)(?<!^)\b[A-Z]\w*")
_CJK = re.compile(r"[\u3040-\u9fff]+")


def words(text: str) -> list[str]:
    """Words in plain form; Chinese and Japanese runs as pairs of characters."""
    tokens = []
    for word in plain(_CJK.sub(lambda match: f" {match[0]} ", text)).split():
        if _CJK.fullmatch(word) and len(word) > 2:
            tokens += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            tokens.append(word)
    return tokens


def facts(text: str, question: str) -> list[str]:
    """What a sentence adds to the question: names and numbers, else its content words."""
    asked = set(words(question))
    content = [word for word in dict.fromkeys(words(text)) if word not in asked and word not in _EMPTY]
    named = {word for match in _NAME.findall(text) for word in words(match)}
    return [word for word in content if word in named] or content


def support(text: str, question: str, samples: list[str]) -> float:
    """Mean share of samples that mention each fact of `text`, 0 to 1; 1 when there is nothing to check."""
    claims = facts(text, question)
    if not claims or not samples:
        return 1.0
    sample_words = [set(words(sample)) for sample in samples]
    return sum(sum(fact in sample for sample in sample_words) / len(sample_words) for fact in claims) / len(claims)


def same(one: str, other: str, question: str) -> bool:
    """Whether two answers say the same: each mentions at least half of what the other adds."""
    mine, theirs = set(facts(one, question)), set(facts(other, question))
    if not mine or not theirs:
        return not mine and not theirs
    other_words, own_words = set(words(other)), set(words(one))
    return sum(f in other_words for f in mine) * 2 >= len(mine) and sum(f in own_words for f in theirs) * 2 >= len(
        theirs
    )


def clusters(answers: list[str], question: str) -> list[list[int]]:
    """Indices of answers that say the same, largest group first."""
    groups: list[list[int]] = []
    for index, answer in enumerate(answers):
        group = next((g for g in groups if same(answers[g[0]], answer, question)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return sorted(groups, key=len, reverse=True)


def semantic_entropy(answers: list[str], question: str) -> float:
    """Discrete semantic entropy (Farquhar et al., Nature 2024) in nats, with `same` in place of an entailment model."""
    sizes = [len(group) / len(answers) for group in clusters(answers, question)]
    return -sum(share * math.log(share) for share in sizes)


@dataclass
class Check:
    """What the samples say of an answer: a score per sentence, one for the whole, and the samples that disagree."""

    sentences: list[tuple[str, float | None]]  # None: nothing in it can be checked
    total: float
    samples: list[str]
    disagreeing: list[int]
    meanings: int  # how many different things the samples say
    details: list[tuple[str, float]] = field(default_factory=list)  # each fact and its share

    @property
    def level(self) -> str:
        """`supported`, `doubtful` or `unsupported`."""
        return "supported" if self.total >= SUPPORTED else "doubtful" if self.total >= DOUBTFUL else "unsupported"


def check(answer: str, question: str, samples: list[str]) -> Check:
    """Score an answer, and each of its sentences, against more samples."""
    scored = []
    for sentence in sentences(answer):
        scored.append((sentence, support(sentence, question, samples) if facts(sentence, question) else None))
    sample_words = [set(words(sample)) for sample in samples]
    details = [(f, sum(f in s for s in sample_words) / max(len(sample_words), 1)) for f in facts(answer, question)]
    disagreeing = [i for i, sample in enumerate(samples) if support(answer, question, [sample]) < 0.5]
    return Check(
        scored, support(answer, question, samples), samples, disagreeing, len(clusters(samples, question)), details
    )
