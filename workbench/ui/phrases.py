"""Figures in words, for the page and the command line."""

from workbench.ui.catalogue import say


def suggestion(kind: str, values: dict, lang: str) -> str:
    """One suggestion in words."""
    shown = {key: f"{value:.1%}" if isinstance(value, float) else f"{value:,}" for key, value in values.items()}
    return say(f"suggest_{kind}", lang, **shown)


def duration(seconds: float) -> str:
    """`1 h 5 min`, `3 min`, `12 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
