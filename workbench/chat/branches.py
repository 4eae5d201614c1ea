"""Branches of an answer: another token in the place of one, from there on; the versions are kept beside each other. No
gradio here.

A message's `branches` hold its versions (`content`, `tokens`, `samples`, and the messages that came `after`); `branch`
says which one it shows.
"""

from workbench.chat.session import Session
from workbench.errors import UserError

_PARTS = ("content", "tokens", "samples")


class Impossible(UserError):
    """The answer cannot go on from this token."""


def branch(talk: Session, number: int, alternative: int) -> None:
    """The answer that is looked at goes on with another token at place `number`; the rest is to be written
    (`unfinished`), unless the token ends the answer.

    Raises:
        Impossible: another server's answer, one with thoughts or tool calls, or a token that is part of a letter.
        LookupError: no such token.
    """
    focused = talk.focus_place()
    if focused is None:
        raise LookupError
    column, index = focused
    message = talk.columns[column][index]
    entries = message.get("tokens") or []
    before, other = entries[:number], entries[number]["top_logprobs"][alternative]
    ends = bool(other.get("ends"))
    added = "" if ends else bytes(other["bytes"]).decode(errors="replace")
    text = "".join(entry.get("text", entry["token"]) for entry in before) + added
    if "\ufffd" in text or message.get("external") or message.get("reasoning") or message.get("calls"):
        raise Impossible("")
    after = talk.columns[column][index + 1 :]
    kept = message.get("branches") or [{key: message.get(key) for key in _PARTS} | {"after": after}]
    tokens = list(before)
    if not ends:
        tokens.append(
            {
                "token": other["token"],
                "text": added,
                "logprob": other["logprob"],
                "bytes": other["bytes"],
                "top_logprobs": entries[number]["top_logprobs"],
                "rank": alternative + 1,
                "entropy": entries[number].get("entropy"),
                "token_id": other.get("token_id"),
            }
        )
    new = {key: message[key] for key in ("role", "model", "system") if key in message}
    new |= {
        "content": text,
        "tokens": tokens,
        "unfinished": not ends,
        "branch": len(kept),
        "branches": [*kept, {"content": text, "tokens": tokens, "after": []}],
    }
    columns = [list(messages) for messages in talk.columns]
    columns[column] = [*columns[column][:index], new]
    talk.next_turn(columns)
    talk.focus = (column, index)
    if ends:
        talk.completed = talk.turn


def settle(talk: Session) -> None:
    """What each branched answer has become, beside its other versions."""
    for column in talk.columns:
        for message in column:
            if message.get("branches"):
                message["branches"][message["branch"]] |= {key: message.get(key) for key in _PARTS}


def switch(talk: Session, number: int) -> bool:
    """Show another version of the answer that is looked at, and what came after it; whether anything changed."""
    focused = talk.focus_place()
    if focused is None:
        return False
    column, index = focused
    message = talk.columns[column][index]
    branches = message.get("branches") or []
    if not 0 <= number < len(branches) or number == message.get("branch"):
        return False
    settle(talk)
    branches[message["branch"]]["after"] = talk.columns[column][index + 1 :]
    # a copy: what is still being written belongs to the version that is left
    other = {key: value for key, value in message.items() if key not in ("difference", "unfinished")}
    other |= {key: branches[number].get(key) for key in _PARTS} | {"branch": number}
    columns = [list(messages) for messages in talk.columns]
    columns[column] = [*columns[column][:index], other, *branches[number].get("after", [])]
    talk.next_turn(columns)
    talk.focus, talk.completed = (column, index), talk.turn
    return True
