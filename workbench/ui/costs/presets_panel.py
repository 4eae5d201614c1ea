"""The presets as this machine sees them, and what earlier runs say of the estimates."""

from html import escape

import gradio as gr

from workbench.errors import UserError
from workbench.storage.workspace import Workspace
from workbench.train.estimates import history
from workbench.train.estimates.presets import for_machine
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.costs import view
from workbench.ui.notes import QUIET, note, told
from workbench.ui.strings import language, t

# a click on a preset tells which one is taken
TAKE_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-preset]');
  if (button) trigger('click', {preset: button.dataset.preset});
});
"""
_SURE_JS = "() => workbenchAsk('cost_forget_sure', '') ? 'yes' : 'no'"


class PresetsPanel:
    """A table that is made when it is opened; `table` reports which preset is taken."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def build(self) -> None:
        """Lay it out and wire what concerns only itself."""
        with gr.Accordion(t("cost_presets"), open=False, elem_id="presets-here") as self.accordion:
            self.table = gr.HTML(js_on_load=TAKE_JS, elem_id="presets-table")
            self.kept = gr.HTML(elem_id="cost-history")
            self.forget = gr.Button(t("cost_forget"), elem_id="cost-forget", size="sm", min_width=100)
        self.accordion.expand(self.look, None, [self.table, self.kept], **QUIET)
        sure = gr.Textbox(visible="hidden")
        self.forget.click(self.forgotten, sure, [self.table, self.kept], js=_SURE_JS, **QUIET)

    def look(self, request: gr.Request):
        """The table, and how many runs correct the estimates."""
        lang = language(request)
        runs = len(history.read(self.workspace))
        words = say("cost_history", lang, runs=runs) if runs else say("cost_history_none", lang)
        return table_html(self.workspace, lang), f"<div class='wb-sub'>{escape(words)}</div>"

    @people.needs("train")
    def forgotten(self, sure, request: gr.Request):
        """Drop what earlier runs measured, where the user is sure."""
        lang = language(request)
        if sure != "yes":
            return gr.skip(), gr.skip()
        try:
            count = history.forget(self.workspace)
        except UserError as error:
            return gr.skip(), note(told(error, lang), "bad")
        return table_html(self.workspace, lang), note(say("cost_forgotten", lang, runs=count))


def table_html(workspace: Workspace, lang: str) -> str:
    """Every preset: memory, whether it fits, time; the recommended one first."""
    columns = ("preset", "memory", "here", "time")
    head = "".join(f"<th scope='col'>{escape(say(f'cost_column_{column}', lang))}</th>" for column in columns)
    lines = []
    for preset, result, recommended in for_machine(workspace):
        name, *cells = view.preset_row(preset, result, lang)
        mark = f" ★ {escape(say('cost_recommended', lang))}" if recommended else ""
        take = escape(say("cost_preset_take", lang))
        button = f"<button type='button' class='wb-link' data-preset='{escape(name, quote=True)}'>{take}</button>"
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{escape(name)}{mark}</td>{rest}<td>{button}</td></tr>")
    table = f"<table class='wb-table'><tr>{head}<th></th></tr>{''.join(lines)}</table>"
    return f"<div class='wb-wide' tabindex='0'>{table}</div>"
