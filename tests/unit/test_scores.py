"""Scores of answers against values that were worked out elsewhere: by hand, and by LLaMA-Factory's own libraries."""

import random

import pytest

from workbench.evaluation.scores import common, normal, rouge_n, scores_of, totals, words

# what LLaMA-Factory's ComputeSimilarity gives (rouge-chinese 1.0.3, NLTK 3.10.4, jieba's dictionary): rouge-1, -2, -l, bleu-4
REFERENCE = [
    ("The cat sat on the mat.", "The cat lay on the mat.", (85.7143, 66.6667, 85.7143, 79.4484)),
    ("今天天气很好，我们去公园散步。", "今天天气不错，我们去公园玩。", (70.5882, 40.0, 70.5882, 50.3892)),
    ("A", "A", (100.0, 0.0, 100.0, 35.3553)),
    ("A", "B", (0.0, 0.0, 0.0, 0.0)),
    ("the the the the", "the cat the mat", (50.0, 0.0, 50.0, 43.3321)),
    ("巴黎是法国的首都，人口约二百万。它位于塞纳河畔。", "法国的首都是巴黎。", (63.1579, 22.2222, 40.0, 18.0383)),
    (
        "Use `pip install x` first. Then run it!",
        "First use pip install x, then run it.",
        (57.1429, 30.0, 45.4545, 65.0212),
    ),
    ("", "x", (0.0, 0.0, 0.0, 0.0)),
    ("Paris", "Paris is the capital of France.", (25.0, 0.0, 25.0, 0.5517)),
]


@pytest.mark.parametrize(("predict", "label", "expected"), REFERENCE)
def test_scores_are_those_of_llama_factory(predict, label, expected):
    found = scores_of(predict, label)
    assert [found[name] for name in ("rouge-1", "rouge-2", "rouge-l", "bleu-4")] == pytest.approx(expected, abs=1e-3)


def test_chinese_words_are_those_of_the_dictionary():
    assert words("我们在公园散步。Hello world!") == ["我们", "在", "公园", "散步", "。", "Hello", "world", "!"]


def test_rouge_by_hand():
    # bigrams {ab, bc, cd} and {ab, bd}: one of 3 and of 2 in common, F1 = 2 * 1 / 5
    assert rouge_n("abcd", "abd", 2) == pytest.approx(0.4)
    assert rouge_n("a", "ab", 2) == 0.0
    assert common("abcbdab", "bdcaba") == 4  # Cormen et al., fig. 15.8: BCBA
    assert common("", "abc") == common("abc", "") == 0


def test_the_longest_common_subsequence_is_that_of_the_plain_table():
    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("abcd", k=draw.randrange(30))) for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one):
            for j, b in enumerate(other):
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
        assert common(one, other) == table[-1][-1], (one, other)


def test_what_counts_as_the_same_answer():
    assert scores_of(" Yes.\n", "Yes.")["exact_match"] == 100.0
    assert scores_of("yes.", "Yes.")["exact_match"] == 0.0
    assert normal("e\u0301") == normal("é")


def test_totals_are_means_over_the_rows_that_have_a_score():
    rows = [
        {"predict": "a", "finish": "stop", "tokens": 2, "logprob": -1.0} | scores_of("The cat", "The cat"),
        {"predict": "b", "finish": "length", "tokens": 4, "logprob": -3.0} | scores_of("dog", "The cat"),
        {"predict": "c", "finish": "stop", "tokens": 6},  # without a label
        {"predict": "", "problem": "too long"},
    ]
    found = totals(rows)
    assert found["predict_exact_match"] == 50.0 and found["predict_rouge-1"] == 50.0 and found["predict_bleu-4"] == 50.0
    assert (found["predict_mean_tokens"], found["predict_mean_logprob"]) == (4.0, -2.0)
    counts = ("samples", "scored", "refused", "cut")
    assert [found[f"predict_{name}"] for name in counts] == [3, 2, 1, 1]
    assert totals([]) == {"predict_samples": 0, "predict_scored": 0, "predict_refused": 0, "predict_cut": 0}
