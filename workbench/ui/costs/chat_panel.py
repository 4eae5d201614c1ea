"""What the Chat tab's load settings come to in memory."""

from collections.abc import Callable
from html import escape

import gradio as gr

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.storage.workspace import Workspace
from workbench.train.estimates.outlook import chat_outlook
from workbench.ui.costs.panel import CostPanel, changed_options, shown
from workbench.ui.notes import EACH, LATEST, told
from workbench.ui.strings import language
from workbench.ui.tabs.record import Event


class ChatCosts(CostPanel):
    """`expecting` is the event that fills it."""

    def __init__(self, workspace: Workspace):
        super().__init__("chat")
        self.workspace = workspace

    def wire(self, config_of: Callable[..., EngineConfig], adapter, asked: list) -> None:
        """Fill it when a setting changes. `config_of` makes a config of what `asked` holds: model, bits, the rest."""
        self._config_of = config_of
        self.expecting = Event(self.expected, [adapter, *asked], self.outputs)
        changes = [widget.change for widget in (adapter, *asked)]
        gr.on(changes, *self.expecting[:3], **LATEST)
        self.words.click(self.apply, None, asked[1], **EACH)

    def expected(self, request: gr.Request, adapter, *asked):
        """The chart and the words."""
        lang = language(request)
        try:
            config = self._config_of(*asked)
            self.workspace.confine(config)
            return shown(chat_outlook(config, adapter or "", self.workspace), lang)
        except UserError as error:  # Load tells the same
            return "", f"<div class='wb-sub'>{escape(told(error, lang))}</div>"

    def apply(self, event: gr.EventData):
        """Set the bits that one of the changes asks for."""
        bits = changed_options(event, ("quantization_bit",)).get("quantization_bit")
        return bits if bits in (4, 8) else gr.skip()
