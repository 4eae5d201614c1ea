"""Conversations on the disk: `workspace/conversations/<id>.json`, one file each, written atomically."""

import json
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from workbench.config import write_atomically
from workbench.errors import UserError
from workbench.workspace import Workspace

MAX_TITLE = 80
_ID = re.compile(r"[a-z0-9-]{6,40}")


@dataclass
class Conversation:
    """`columns` holds one list of messages per model that was asked; `models` their names."""

    id: str
    title: str = ""
    columns: list[list[dict]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    changed: float = 0.0

    @property
    def shown_title(self) -> str:
        """Its name, or the beginning of the first question."""
        first = next((m["content"] for m in (self.columns or [[]])[0] if m["role"] == "user"), "")
        return self.title or " ".join(first.split())[:MAX_TITLE] or self.id


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _file(workspace: Workspace, id_: str) -> Path:
    if not _ID.fullmatch(id_ or ""):
        raise UserError("There is no such conversation.")
    return workspace.conversations / f"{id_}.json"


def save(workspace: Workspace, conversation: Conversation) -> None:
    """Raises UserError where nothing can be written."""
    workspace.check_writable()
    conversation.changed = time.time()
    file = _file(workspace, conversation.id)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(vars(conversation), ensure_ascii=False))
    except OSError as error:
        raise UserError(f"The conversation could not be saved: {error.strerror or error}.") from None


def load(workspace: Workspace, id_: str) -> Conversation:
    """Raises UserError: there is none, or its file is broken."""
    file = _file(workspace, id_)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Conversation(**{key: values[key] for key in Conversation.__dataclass_fields__ if key in values})
    except FileNotFoundError:
        raise UserError("This conversation is no longer there.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"The conversation {file.name} cannot be read: {error}.") from None


def search(workspace: Workspace, words: str = "", limit: int = 200) -> list[Conversation]:
    """Conversations that contain all the words in title, questions or answers; the last changed first."""
    wanted, found = words.lower().split(), []
    files = workspace.conversations.glob("*.json")
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
        try:
            conversation = load(workspace, file.stem)
        except UserError:
            continue
        text = " ".join([conversation.title, *(str(m.get("content")) for c in conversation.columns for m in c)]).lower()
        if all(word in text for word in wanted):
            found.append(conversation)
            if len(found) == limit:
                break
    return found


def rename(workspace: Workspace, id_: str, title: str) -> Conversation:
    """The conversation under its new name. Raises UserError."""
    conversation = load(workspace, id_)
    conversation.title = " ".join(title.split())[:MAX_TITLE]
    save(workspace, conversation)
    return conversation


def delete(workspace: Workspace, id_: str) -> None:
    workspace.check_writable()
    _file(workspace, id_).unlink(missing_ok=True)


def as_jsonl(conversation: Conversation) -> str:
    """One line per column in the messages form that datasets use."""
    lines = []
    for column, model in zip(conversation.columns, [*conversation.models, *[""] * 9], strict=False):
        if column:
            messages = [{"role": m["role"], "content": m["content"]} for m in column]
            lines.append(json.dumps({"messages": messages, "model": model}, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)


def as_markdown(conversation: Conversation) -> str:
    """For people: who said what, a section per model."""
    out = [f"# {conversation.shown_title}\n"]
    for column, model in zip(conversation.columns, [*conversation.models, *[""] * 9], strict=False):
        if not column:
            continue
        if model:
            out.append(f"## {model}\n")
        out += [f"**{m['role'].capitalize()}**\n\n{m['content']}\n" for m in column]
    return "\n".join(out)
