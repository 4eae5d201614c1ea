"""What a tab tells the page: the events of the page's start and of the tab's choice."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from workbench.ui.notes import QUIET


class Event(NamedTuple):
    """A handler with its input and output components. `js` runs in the browser before it."""

    handler: Callable | None
    inputs: object = None
    outputs: object = None
    js: str | None = None


@dataclass
class Tab:
    """A tab that is laid out.

    `on_load` and `on_select` hold chains: events that follow one another when the page is loaded, or the tab is chosen.
    `timers` tick only while the tab is in front.
    """

    on_load: list[tuple[Event, ...]] = field(default_factory=list)
    on_select: list[tuple[Event, ...]] = field(default_factory=list)
    timers: list = field(default_factory=list)


def bind(trigger: Callable, chain: tuple[Event, ...], **options) -> None:
    """Wire a chain to `trigger`, such as `blocks.load` or the `select` of a tab. `options` are gradio's, for each
    event."""
    for event in chain:
        trigger = trigger(event.handler, event.inputs, event.outputs, js=event.js, **QUIET, **options).then
