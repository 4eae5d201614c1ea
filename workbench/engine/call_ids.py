"""Ids of tool calls as a chat template wants them: clients send back those that they got, from us or from elsewhere.

Mistral's older templates refuse all but nine letters and digits. Kimi-K2's writes no function's name but the call's
id, which therefore is `functions.NAME:NUMBER`, counted through the conversation
(https://huggingface.co/moonshotai/Kimi-K2-Instruct/blob/main/docs/tool_call_guidance.md).
"""

from collections.abc import Callable


def nine(name: str, number: int) -> str:
    """An id of nine digits."""
    return f"{number:09}"


def named(name: str, number: int) -> str:
    """An id that says the function's name."""
    return f"functions.{name}:{number}"


def with_ids(messages: list[dict], id_of: Callable[[str, int], str]) -> list[dict]:
    """Messages whose calls, and the results of these, have ids of another kind; the same for the same call.

    Args:
        id_of: makes an id of a function's name and the number of the call in the conversation, from 0.
    """
    renamed: list[dict] = []
    known: dict[str | None, str] = {}
    count = 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                known[call.get("id")] = id_of(call["function"]["name"], count)
                calls.append({**call, "id": known[call.get("id")]})
                count += 1
            message = {**message, "tool_calls": calls}
        elif message.get("tool_call_id") in known:
            message = {**message, "tool_call_id": known[message["tool_call_id"]]}
        renamed.append(message)
    return renamed
