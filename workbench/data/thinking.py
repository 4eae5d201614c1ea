"""The switch by which a chat template asks a model to think or not: `enable_thinking` (Qwen3, GLM, Nemotron, Gemma), or
`thinking` (DeepSeek-V3.1, Granite).

A choice becomes the template's own default, in the template's text. So whatever renders it later, chat and the exported
model too, asks as training did, and a request that brings the switch still has its way.
"""

import re

SWITCHES = ("enable_thinking", "thinking")
_DEFAULTS = re.compile(
    r"\A(?:\{% if (?:enable_)?thinking is not defined %\}\{% set (?:enable_)?thinking = (?:true|false) %\}"
    r"\{% endif %\})+"
)
_MARKERS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def switches(template: str) -> list[str]:
    """The names of the switches that a template asks for; none of one that cannot be parsed."""
    from jinja2 import Environment, TemplateError, meta

    if not any(name in template for name in SWITCHES):
        return []
    try:
        code = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_MARKERS.sub("", without_choice(template)))
        asked = meta.find_undeclared_variables(code)
    except (TemplateError, RecursionError):
        return []
    return [name for name in SWITCHES if name in asked]


def with_choice(template: str, choice: str) -> str:
    """A template whose switch is `on` or `off` unless a request says otherwise; with `auto` as it came.

    A template without a switch stays as it is.
    """
    if choice == "auto":
        return template
    plain, value = without_choice(template), "true" if choice == "on" else "false"
    defaults = [
        f"{{% if {name} is not defined %}}{{% set {name} = {value} %}}{{% endif %}}" for name in switches(plain)
    ]
    return "".join(defaults) + plain


def without_choice(template: str) -> str:
    """The template without a choice that `with_choice` has made."""
    return _DEFAULTS.sub("", template)


def choice_in(template: str) -> str:
    """What `with_choice` has put before a template; empty if nothing."""
    match = _DEFAULTS.match(template)
    return match[0] if match else ""
