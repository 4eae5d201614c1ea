"""Which dollar signs of an answer are formulas."""

import time

import pytest

from workbench.chat.math import with_formulas
from workbench.chat.session import bubbles


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let $x^2$ be.", "Let \\(x^2\\) be."),
        ("$a$ and $b$", "\\(a\\) and \\(b\\)"),
        ("$\\frac{1}{2}\n+ y$.", "\\(\\frac{1}{2}\n+ y\\)."),
        ("$2 \\pi$", "\\(2 \\pi\\)"),
        ("$3$", "\\(3\\)"),
        ("It costs $5 and $6.", None),
        ("It costs $5 and 10$.", None),
        ("$20,000 to $30,000", None),
        ("$5-$10, US$5 or A$7", None),
        ("$5-10$", None),
        ("a \\$5 and \\$6", None),
        ("$$x$$ and \\(y\\) and \\[z\\]", None),
        ("$a\n\nb$", None),
        ("$ a $", None),
        ("one $ only", None),
    ],
)
def test_formulas_and_prices(text, expected):
    assert with_formulas(text) == (text if expected is None else expected)


def test_code_and_what_the_user_wrote_stay_as_they_are():
    talk = [
        {"role": "user", "content": "$x$ <b>"},
        {"role": "assistant", "content": "`$x$` is $a < b$", "reasoning": "$y$"},
    ]
    assert [b["content"] for b in bubbles(talk)] == ["$x$ &lt;b&gt;", "\\(y\\)", "`$x$` is \\(a &lt; b\\)"]


def test_many_dollars_cost_little():
    began = time.monotonic()
    for text in ("$a " * 50_000, "$" * 100_000, "$" + "\\" * 100_000, "$" + "a\n" * 50_000, "$x$" * 30_000):
        with_formulas(text)
    assert time.monotonic() - began < 2
