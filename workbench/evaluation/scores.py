"""Scores of an answer against its label, with LLaMA-Factory's names and definitions.

`bleu-4` is NLTK's sentence BLEU over characters with smoothing method 3. `rouge-1`, `rouge-2` and `rouge-l` are F1 over
words, as its `rouge-chinese` has them: n-grams are counted once, the last one is the longest common subsequence. Words
are those of jieba's dictionary. All of these go from 0 to 100.

ROUGE is ours because `rouge-chinese` keeps a table of all pairs of words (300 MB for two answers of 1,500), and
`rouge-score` counts n-grams otherwise, so that its numbers are others than LLaMA-Factory's.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from statistics import fmean

SCORES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
EXACT = "exact_match"
MAX_CHARACTERS = 100_000  # of an answer or a label that are compared


def words(text: str) -> list[str]:
    """The words of a text, Chinese ones too; punctuation marks are words."""
    import rjieba

    return [word for piece in rjieba.cut(text) for word in piece.split()]


def scores_of(predict: str, label: str) -> dict[str, float]:
    """`SCORES` of an answer, from 0 to 100, and `exact_match`, 0 or 100: whether they are the same but for the space
    around them and the composition of letters."""
    predict, label = predict[:MAX_CHARACTERS], label[:MAX_CHARACTERS]
    said, wanted = words(predict), words(label)
    found = {
        "bleu-4": bleu(predict, label),
        "rouge-1": rouge_n(said, wanted, 1),
        "rouge-2": rouge_n(said, wanted, 2),
        "rouge-l": f1(common(said, wanted), len(said), len(wanted)),
    }
    return {name: round(100 * value, 4) for name, value in found.items()} | {
        EXACT: 100.0 if normal(predict) == normal(label) else 0.0
    }


def normal(text: str) -> str:
    """A text as it is compared for equality."""
    return unicodedata.normalize("NFC", text).strip()


def bleu(predict: str, label: str) -> float:
    """BLEU-4 over characters, from 0 to 1."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if not predict or not label:
        return 0.0
    return float(sentence_bleu([list(label)], list(predict), smoothing_function=SmoothingFunction().method3))


def rouge_n(said: Sequence[str], wanted: Sequence[str], n: int) -> float:
    """F1 of the n-grams of two texts, each counted once."""
    grams = [{tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for text in (said, wanted)]
    return f1(len(grams[0] & grams[1]), len(grams[0]), len(grams[1]))


def f1(common_: int, said: int, wanted: int) -> float:
    """The harmonic mean of precision and recall."""
    return 2 * common_ / (said + wanted) if said and wanted else 0.0


def common(said: Sequence[str], wanted: Sequence[str]) -> int:
    """The length of the longest common subsequence, by whole rows of its table as the bits of one number (Hyyrö 2004):
    two texts of 10,000 words take a fraction of a second."""
    places: dict[str, int] = {}
    for number, word in enumerate(wanted):
        places[word] = places.get(word, 0) | (1 << number)
    full = (1 << len(wanted)) - 1
    row = full
    for word in said:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(wanted) - row.bit_count()


def totals(rows: Iterable[dict]) -> dict[str, float]:
    """LLaMA-Factory's `predict_…` totals of rows of predictions, and what else was counted.

    Scores are means over the rows that have them. A row that could not be asked counts in `predict_refused` alone.
    """
    count = refused = cut = 0
    sums: dict[str, list[float]] = {}
    for row in rows:
        if row.get("problem"):
            refused += 1
            continue
        count += 1
        cut += row.get("finish") == "length"
        for name in (*SCORES, EXACT, "tokens", "logprob"):
            value = row.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                sums.setdefault(name, []).append(value)
    means = {f"predict_{name}": round(fmean(values), 4) for name, values in sums.items() if values}
    means = {_NAMES.get(name, name): value for name, value in means.items()}
    scored = len(sums.get("bleu-4", ()))
    return means | {
        "predict_samples": count,
        "predict_scored": scored,
        "predict_refused": refused,
        "predict_cut": cut,
    }


_NAMES = {"predict_tokens": "predict_mean_tokens", "predict_logprob": "predict_mean_logprob"}
