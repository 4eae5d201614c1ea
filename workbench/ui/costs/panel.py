"""What a form's options come to in memory and time: a bar against the device, the cards that it fits, and the changes
that save most, each applied by a click."""

import json
from html import escape

import gradio as gr

from workbench.train.estimates.outlook import Outlook
from workbench.ui.catalogue import say
from workbench.ui.costs import view
from workbench.ui.theme import CHART_JS

# a click on a change tells which options it sets
APPLY_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-change]');
  if (button) trigger('click', {change: button.dataset.change});
});
"""
_MOST = 2000  # letters of a change that comes from a browser


class CostPanel:
    """The bar and the words beside a form; `name` begins their ids."""

    def __init__(self, name: str):
        self.name = name

    def build(self) -> None:
        """Lay the parts out."""
        self.chart = gr.HTML(
            html_template="<div class='live-chart wb-cost-chart'></div>",
            js_on_load=CHART_JS,
            elem_id=f"{self.name}-cost-chart",
        )
        self.words = gr.HTML(js_on_load=APPLY_JS, elem_id=f"{self.name}-cost")

    @property
    def outputs(self) -> list:
        """What `shown` fills."""
        return [self.chart, self.words]


def shown(result: Outlook, lang: str) -> tuple[str, str]:
    """The chart and the words of an outlook."""
    return view.chart(result, lang), words_html(result, lang)


def words_html(result: Outlook, lang: str) -> str:
    """Total, cards, changes, and how the figure comes about."""
    details = view.details(result, lang)
    if result.estimate is None:
        return "".join(f"<div class='wb-sub'>{escape(line)}</div>" for line in details)
    kind = "" if result.fits_here else " warn"
    parts = [
        f"<div class='wb-note{kind}'>{escape(view.total_line(result, lang))}</div>" if kind else "",
        "" if kind else f"<div class='wb-sub'>{escape(view.total_line(result, lang))}</div>",
        f"<div class='wb-sub'>{escape(view.cards_line(result, lang))}</div>",
    ]
    if result.changes:
        parts.append(f"<div class='wb-chips'><b>{escape(say('cost_changes', lang))}</b> ")
        for change in result.changes:
            words = escape(view.change_line(change, result.fits_here, lang))
            value = escape(json.dumps(change.options), quote=True)
            apply = escape(say("cost_apply", lang))
            parts.append(
                f"<span class='wb-chip'>{words} <button type='button' class='wb-link' data-change='{value}'>{apply}"
                "</button></span> "
            )
        parts.append("</div>")
    lines = "".join(f"<li>{escape(line)}</li>" for line in details)
    title = escape(say("cost_more", lang))
    parts.append(f"<details class='wb-details'><summary>{title}</summary><ul>{lines}</ul></details>")
    return "".join(parts)


def changed_options(event: gr.EventData, known) -> dict:
    """The options that a click asks to set: those of `known` with plain values; the text comes from a browser."""
    text = event._data.get("change")
    if not isinstance(text, str) or len(text) > _MOST:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    plain = str | int | float | bool | None
    return {k: v for k, v in values.items() if k in known and isinstance(v, plain)} if isinstance(values, dict) else {}
