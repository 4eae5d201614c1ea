"""Lists of names in one text."""


def split_names(text: str | None) -> list[str]:
    """`'a, b'` as `['a', 'b']`."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
