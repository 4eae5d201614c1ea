"""Small things that all tabs share: message boxes, and how quiet events are wired."""

from html import escape

from workbench.errors import Told
from workbench.messages import message

# `show_progress_on`: without it each event makes the browser update every component that any event has ever written
QUIET = {"show_progress": "hidden", "show_progress_on": [], "queue": False, "api_visibility": "private"}
# For events that bring data of their own, as which row was clicked. Gradio drops the second one while the first is
# being answered; with "always_last" it answers the first one's data twice (6.31).
EACH = QUIET | {"trigger_mode": "multiple"}
# For fields: a choice that is made while an earlier one is being answered is answered after it.
LATEST = QUIET | {"trigger_mode": "always_last"}


def told(what: Exception | str, lang: str) -> str:
    """What an error, a message or a plain text says in `lang`, the language of a request."""
    if isinstance(what, Told):
        return what.text(lang)
    return message.told(what, lang) if isinstance(what, str) else str(what)


def note(text: str, kind: str = "ok") -> str:
    """A box with one message; the text is escaped. Kinds: ok, warn, bad."""
    return f"<div class='wb-note {kind}'>{escape(text)}</div>" if text else ""


def shortened(text: str, most: int = 28) -> str:
    """A long `text` without its middle."""
    kept = (most - 1) // 2
    return text if len(text) <= most else f"{text[:kept]}…{text[-kept:]}"


def middle(text: str, most: int = 28) -> str:
    """`text` as HTML, a long one shortened in the middle, with the whole of it on hover."""
    if len(text) <= most:
        return escape(text)
    return f"<span title='{escape(text, quote=True)}'>{escape(shortened(text, most))}</span>"
