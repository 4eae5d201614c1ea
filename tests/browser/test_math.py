"""Formulas in the Chatbot, as Gradio renders them."""

import gradio as gr
import pytest
from playwright.sync_api import expect

from workbench.chat.math import DELIMITERS
from workbench.chat.session import bubbles

pytestmark = [pytest.mark.browser, pytest.mark.process]
ANSWER = (
    "Inline \\(a_1 * b_1\\) and $c^2$ here.\n\n\\[ x < y \\]\n\nThen $$z \\\\ w$$ and `\\(code\\)`; it costs $5 and $6."
)


def test_formulas_are_rendered_and_prices_are_not(tab):
    with gr.Blocks() as demo:
        gr.Chatbot(bubbles([{"role": "assistant", "content": ANSWER}]), sanitize_html=True, latex_delimiters=DELIMITERS)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True)
    try:
        tab.goto(url)
        expect(tab.locator(".katex-html")).to_have_count(4)
        expect(tab.locator(".katex-display")).to_have_count(2)
        expect(tab.locator(".katex-error")).to_have_count(0)
        sources = tab.locator(".katex annotation").all_text_contents()
        assert [source.strip() for source in sources] == ["a_1 * b_1", "c^2", "x < y", "z \\\\ w"]
        expect(tab.locator("code", has_text="\\(code\\)")).to_have_count(1)
        expect(tab.get_by_text("it costs $5 and $6.")).to_be_visible()
    finally:
        demo.close()
