"""Pydantic's words for a value that does not fit, as messages in two languages."""

from collections.abc import Mapping
from typing import Any

from workbench.messages.message import CATALOGUE, Message


def type_error(error: Mapping[str, Any]) -> str:
    """What is wrong with the value of one of pydantic's errors, as a clause. Kinds that no option has stay English."""
    english = error["msg"].replace("Input should", "it should").removeprefix("Value error, ")
    code, values = f"type_{error['type']}", error.get("ctx") or {}
    if code not in CATALOGUE:
        return english
    try:
        message = Message(code, **{name: _plain(value) for name, value in values.items()})
    except (KeyError, ValueError):
        return english
    return message if message == english else english


def _plain(value):
    return int(value) if isinstance(value, float) and value.is_integer() else value
