"""Small things that all tabs share: message boxes, and how quiet events are wired."""

from html import escape

QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def note(text: str, kind: str = "ok") -> str:
    """A box with one message; the text is escaped. Kinds: ok, warn, bad."""
    return f"<div class='wb-note {kind}'>{escape(text)}</div>" if text else ""
