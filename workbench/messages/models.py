"""TODO."""

SENTENCES: dict[str, tuple[str, str]] = {}
PARTS: dict[str, tuple[str, str]] = {}
