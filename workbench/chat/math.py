"""Formulas in a model's answers: which marks the Chatbot renders, and dollar signs that are prices.

Gradio takes everything between two delimiters for a formula, code and prices too. So `$` is none of them: what stands
between dollars as formulas do becomes `\\(…\\)`, by pandoc's rule for `tex_math_dollars`.
https://pandoc.org/MANUAL.html#math
"""

import re

DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
# no space inside of the dollars, no digit behind them, no empty line and no other dollar between them
_DOLLARS = re.compile(r"(?<![\\$\w])\$(?![\s$])((?:[^$\\\n]|\\[^\n]|\n(?![ \t]*\n))+)(?<![\s\\])\$(?![\d$])")
_PRICE = re.compile(r"\d[\d.,]*(?:\s*[-–/]|\s+[^\W\d_]{2})")  # "$5 and 10$"


def with_formulas(text: str) -> str:
    """`$x^2$` as `\\(x^2\\)`; `$5 and $6` as it is."""
    return _DOLLARS.sub(lambda found: found[0] if _PRICE.match(found[1]) else f"\\({found[1]}\\)", text)
