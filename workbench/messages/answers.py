"""Messages in answers that cross from one process to another as JSON.

An answer holds their English text, as if there were no codes; beside it goes a list of what each of these texts is.
"""

from typing import Any

from workbench.messages.message import Message, restored, stored

KEY = "messages"
_MOST = 2000  # messages of an answer whose codes are sent and read


def messages_in(answer) -> dict[str, list]:
    """What to add to an answer: `{"messages": [[English text, stored], …]}`, nothing where it holds none."""
    found: dict[str, Any] = {}
    _collect(answer, found)
    return {KEY: [[text, kept] for text, kept in found.items()]} if found else {}


def _collect(value, found: dict[str, Any]) -> None:
    if isinstance(value, Message):
        if len(found) < _MOST:
            found.setdefault(str(value), stored(value))
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            _collect(inner, found)


def with_messages(answer: dict) -> dict:
    """An answer as it was before it crossed. What is no good list of messages changes nothing."""
    kept = answer.pop(KEY, None)
    if not isinstance(kept, list):
        return answer
    pairs = [pair for pair in kept[:_MOST] if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)]
    known = {text: restored(message, text) for text, message in pairs}
    return _put_back(answer, known) if known else answer


def _put_back(value, known: dict[str, str]):
    if isinstance(value, str):
        return known.get(value, value)
    if isinstance(value, dict):
        return {key: _put_back(inner, known) for key, inner in value.items()}
    return [_put_back(inner, known) for inner in value] if isinstance(value, list) else value
