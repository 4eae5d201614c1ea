"""Confidence, consistency, contradiction and probes: plain text and numbers in, verdicts out."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import UserError
from workbench.ui.catalogue import TEXT
from workbench.ui.token_view import confidence_html, consistency_html, contradiction_html, difference_html
from workbench.uncertainty import consistency, contradiction, probes
from workbench.uncertainty.confidence import sentences, spans, summary, views
from workbench.uncertainty.rules import denies, mentions, passes


def entry(text, probability, top=(), **more):
    best = [{"token": t, "logprob": math.log(p)} for t, p in top]
    return {"token": text, "text": text, "logprob": math.log(probability), "top_logprobs": best} | more


def test_the_weakest_span_is_a_name_not_a_function_word():
    tokens = views(
        [
            entry("The", 0.01),
            entry(" capital", 0.9),
            entry(" is", 0.99),
            entry(" Can", 0.8),
            entry("berra", 0.3),
            entry(".", 0.9),
        ]
    )
    assert [("".join(t.text for t in tokens[a:b])) for a, b in spans(tokens)] == [
        "The",
        " capital",
        " is",
        " Canberra",
        ".",
    ]
    of = summary(tokens)
    assert (of.weakest, of.weakest_probability, of.low, of.tokens) == ("Canberra", pytest.approx(0.3), 2, 6)
    assert [t.bin for t in tokens] == [0, 3, 4, 3, 1, 3]


def test_rank_and_entropy_of_a_server_that_tells_neither():
    (token,) = views([entry("b", 0.2, [("a", 0.7), ("b", 0.2)])])
    assert token.rank == 2 and token.entropy is None
    (rare,) = views([entry("z", 0.01, [("a", 0.7)])])
    assert rare.rank is None


@given(st.text(max_size=200))
def test_sentences_joined_are_the_text(text):
    assert "".join(sentences(text)) == text


def test_support_counts_what_the_answer_adds_to_the_question():
    question = "What is the capital of Australia?"
    assert consistency.facts("The capital of Australia is Canberra.", question) == ["canberra"]
    samples = ["It is Canberra.", "Sydney", "canberra, I think", "The capital is Melbourne."]
    found = consistency.check("The capital of Australia is Canberra. It was founded in 1913.", question, samples)
    assert found.total == pytest.approx((0.5 + 0) / 2) and found.level == "unsupported"
    assert [score for _, score in found.sentences] == [0.5, 0.0]
    assert found.disagreeing == [1, 3]
    assert consistency.check("Yes.", "Is it?", []).total == 1.0
    chinese = consistency.support("澳大利亚的首都是堪培拉。", "澳大利亚的首都是哪里？", ["首都是堪培拉", "悉尼"])
    assert 0.3 < chinese < 0.7


def test_semantic_entropy_groups_what_says_the_same():
    answers = ["It is Paris.", "Paris", "Paris of course", "Lyon"]
    assert sorted(map(len, consistency.clusters(answers, "Where?"))) == [1, 3]
    assert consistency.semantic_entropy(answers, "Where?") == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert consistency.semantic_entropy(["a b", "a b"], "Where?") == 0


@pytest.mark.parametrize(
    ("answer", "opposite", "expected"),
    [
        ("Yes, I support tool calling.", False, "yes"),
        ("No. I do not support tool calling: I have no tools.", False, "no"),
        ("Right. I cannot call tools.", True, "no"),
        ("No, that is wrong. I can call tools.", True, "yes"),
        ("Yes.", True, "no"),
        ("是的，我支持工具调用。", False, "yes"),
        ("我没有工具调用的能力。", False, "no"),
        ("The weather is nice.", False, ""),
    ],
)
def test_stances(answer, opposite, expected):
    assert contradiction.stance(answer, opposite) == expected


def test_the_articles_contradiction_is_marked():
    asked = contradiction.wordings("Do you support tool calling?\nCan you call tools?\n!You cannot call tools, right?")
    answers = ["Yes, I support tool calls.", "Yes, I can call tools.", "Right, I have no ability to call tools."]
    assert [r.contradicts for r in contradiction.compare(asked, answers)] == [False, False, True]
    assert not any(r.contradicts for r in contradiction.compare(asked, ["No.", "No, I cannot.", "Right. I cannot."]))
    facts = contradiction.compare(
        contradiction.wordings("Capital?\nThe capital is?\nTell me the capital"), ["Paris", "It is Paris", "Rome"]
    )
    assert [r.contradicts for r in facts] == [False, False, True]
    for bad in ("", "only one", "\n".join("abcdefghijklmnop")):
        with pytest.raises(UserError, match="wordings"):
            contradiction.wordings(bad)
    assert all(
        len(contradiction.wordings("\n".join(contradiction.reword(q)))) >= 3
        for q in ("Do you sing?", "你会唱歌吗？", "Who?")
    )
    assert len(contradiction.wordings("\n".join(contradiction.TOOL_CALLS))) == 8


def test_judging():
    assert (
        mentions("It's São Paulo!", "sao paulo")
        and not mentions("catalogue", "cat")
        and mentions("首都是堪培拉。", "堪培拉")
    )
    assert denies("No. I have none.") and denies("我不能。") and not denies("Yes, I can. It is not hard.")
    assert passes("The answer is 42.", {"expect": ["41", "42"]}) and not passes("142", {"expect": "42"})
    assert passes("Fe", {"pattern": r"\bFe\b"}) and not passes("iron", {"pattern": "Fe"})
    assert passes('{"a": 1}', {"judge": "is_json"}) and not passes("{", {"judge": "is_json"})
    assert not passes("No, 42", {"expect": "42", "judge": "says_yes"})


def test_the_bundled_sets_are_whole_and_bad_ones_say_which_line(workspace, tmp_path):
    assert set(probes.probe_sets(workspace)) == {"abilities", "facts"}
    assert len(probes.read_set("facts", workspace)) == 304 and len(probes.read_set("abilities", workspace)) == 32
    trained = {
        json.loads(line)["messages"][0]["content"]
        for line in (probes.BUNDLED.parent / "abilities.jsonl").open(encoding="utf-8")
    }
    assert not trained & {p["prompt"] for p in probes.read_set("abilities", workspace)}  # not what the demo trains on
    cases = {
        "{": "bad.jsonl:2: not valid JSON", "[]": "should be an object", '{"prompt": ""}': "'prompt' is missing",
        '{"prompt": "a"}': "needs one of", '{"prompt": "a", "pattern": "("}': "no regular expression",
        '{"prompt": "a", "judge": "nice"}': "no rule 'nice'", '{"prompt": "a", "expect": [1]}': "'expect' should be",
    }  # fmt: skip
    for line, words in cases.items():
        file = tmp_path / "bad.jsonl"
        file.write_text('{"prompt": "ok", "expect": "ok"}\n' + line + "\n")
        with pytest.raises(UserError, match=r"bad\.jsonl:2") as error:
            probes.read_set(str(file), workspace)
        assert words in str(error.value)
    with pytest.raises(UserError, match="Did you mean 'facts'"):
        probes.read_set("fact", workspace)


def test_reports_are_kept_and_compared(workspace):
    def ask(model, messages, n, temperature, seed):
        good = "No, I cannot." if model == "tuned" else "Yes, I can."
        return [good] * (n - 1) + ["No." if n > 1 else good]

    reports = []
    for model in ("base", "tuned"):
        results = [
            probes.run_probe(ask, model, {"prompt": p, "judge": "says_no"}, samples)
            for p, samples in (("a", 0), ("b", 3))
        ]
        reports.append(probes.Report("abilities", model, results))
        probes.keep(reports[-1], workspace)
    assert [r.verdict for r in reports[0].results] == ["fail", "inconsistent"]
    assert [r.verdict for r in reports[1].results] == ["pass", "pass"]
    assert [row["change"] for row in probes.before_after(reports)] == ["fixed", "fixed"]
    assert probes.kept("abilities", "tuned", workspace).results == reports[1].results
    assert probes.kept("abilities", "other", workspace) is None


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> {{value}} ${value} `x` '\""


def test_model_output_stays_text_in_every_view():
    tokens = [entry(HOSTILE, 0.5, [(HOSTILE, 0.5)], rank=1, entropy=0.1)]
    check = consistency.check(HOSTILE, HOSTILE, [HOSTILE, "other"])
    reading = contradiction.Reading(contradiction.Wording(HOSTILE), HOSTILE, "yes", True)
    for lang in ("en", "zh"):
        for html in (
            confidence_html(tokens, lang),
            difference_html(tokens, tokens, lang),
            consistency_html(check, lang),
            contradiction_html([reading], lang),
        ):
            assert "&lt;script&gt;" in html
            for raw in ("<script", "<img", "{{", "${", "`"):
                assert raw not in html, raw
    assert confidence_html([], "en") and difference_html([], [], "en")


def test_the_catalogue_has_no_word_twice_as_a_key_and_a_value():
    assert all(len(pair) == 2 and all(pair) for pair in TEXT.values())
