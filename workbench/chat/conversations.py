"""Conversations on the disk: `workspace/conversations/<id>.json`, one file each, written atomically."""

import contextlib
import itertools
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files
from workbench.storage.files import Unreadable, file_token, write_atomically
from workbench.storage.workspace import Workspace

MAX_TITLE = 80
MAX_BYTES = 16 << 20  # of a conversation's file
_ID = re.compile(r"[a-z0-9-]{6,40}")


@dataclass
class Conversation:
    """`columns` holds one list of messages per model that was asked; `models` their names."""

    id: str
    title: str = ""
    columns: list[list[dict]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    changed: float = 0.0
    problem: str = ""  # why its file cannot be read, in a list

    @property
    def shown_title(self) -> str:
        """Its name, or the beginning of the first question."""
        if self.problem:
            return f"⚠ {self.id}"
        first = next((m["content"] for m in (self.columns or [[]])[0] if m["role"] == "user"), "")
        return self.title or " ".join(first.split())[:MAX_TITLE] or self.id


# What the tab relies on in a file; other keys are left as they are.
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Alternative(BaseModel):
    token: str = ""
    logprob: _Finite
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None = None


class _Entry(BaseModel):
    token: str = ""
    text: str | None = None
    logprob: _Finite | None = None
    rank: int | None = None
    entropy: _Finite | None = None
    top_logprobs: list[_Alternative] | None = None


class _Call(BaseModel):
    name: str = ""
    arguments: str | dict = ""


class _Branch(BaseModel):
    content: str
    tokens: list[_Entry] | None = None
    samples: list[str] | None = None
    after: list["_Message"] = []


class _Message(BaseModel):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning: str | None = None
    thinking: Literal["auto", "on", "off"] | None = None
    model: str | None = None
    tokens: list[_Entry] | None = None
    samples: list[str] | None = None
    calls: list[_Call] | None = None
    system: list["_Message"] = []
    branches: list[_Branch] | None = None
    branch: Annotated[int, Field(ge=0)] = 0
    difference: Annotated[list[list[_Entry]], Field(min_length=2, max_length=2)] | None = None


class _File(BaseModel):
    id: str
    title: str = ""
    columns: list[list[_Message]] = []
    models: list[str] = []
    changed: _Finite = 0.0


_file_check = TypeAdapter(_File)


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _file(workspace: Workspace, id_: str) -> Path:
    if not _ID.fullmatch(id_ or ""):
        raise UserError("conversation_unknown")
    return workspace.conversations / f"{id_}.json"


def save(workspace: Workspace, conversation: Conversation) -> None:
    """Raises UserError where nothing can be written."""
    workspace.check_writable()
    conversation.changed = time.time()
    file = _file(workspace, conversation.id)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, _as_json(conversation))
    except OSError as error:
        raise UserError("conversation_not_saved", reason=error.strerror or error) from None


def _as_json(conversation: Conversation) -> str:
    """For the file. What is known of the tokens of old answers gives way when it would be too large. Raises UserError:
    it is even then."""
    kept = {key: value for key, value in vars(conversation).items() if key != "problem"}
    text = json.dumps(kept, ensure_ascii=False)
    if len(text) > MAX_BYTES // 4:  # UTF-8 has up to 4 bytes a character
        closer = ("tokens", "difference", "samples", "branches", "branch")
        for last in (1, 0):  # messages of a column that keep it
            if len(text.encode()) <= MAX_BYTES:
                break
            columns = [
                [m if i >= len(c) - last else {k: v for k, v in m.items() if k not in closer} for i, m in enumerate(c)]
                for c in kept["columns"]
            ]
            text = json.dumps(kept | {"columns": columns}, ensure_ascii=False)
        if len(text.encode()) > MAX_BYTES:
            raise UserError("conversation_too_large", most=MAX_BYTES >> 20)
    return text


def load(workspace: Workspace, id_: str) -> Conversation:
    """Raises UserError: there is none, or its file is broken."""
    file = _file(workspace, id_)
    try:
        values = files.read_object(file, MAX_BYTES)
        _file_check.validate_python(values, strict=True)
        branches = [m for column in values["columns"] for m in column if m.get("branches")]
        if any(m.get("branch", 0) >= len(m["branches"]) for m in branches):
            raise Unreadable(file.name, Message("version_missing"))
        return Conversation(**{key: values[key] for key in _File.model_fields if key in values})
    except FileNotFoundError:
        raise UserError("conversation_gone") from None
    except Unreadable as error:
        raise UserError("conversation_unreadable", name=file.name, reason=error.reason) from None
    except (ValidationError, KeyError, RecursionError) as error:
        where, problem = "columns", Message("value_missing")
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where, problem = ".".join(map(str, first["loc"]))[:100], first["msg"]
        raise UserError("conversation_unreadable_at", name=file.name, where=where, problem=problem) from None


def search(workspace: Workspace, query: str = "", limit: int = 200) -> list[Conversation]:
    """As `listed`, whole."""
    matches = []
    for conversation in listed(workspace, query, limit):
        with contextlib.suppress(UserError):  # deleted meanwhile
            matches.append(load(workspace, conversation.id))
    return matches


def listed(workspace: Workspace, query: str = "", limit: int = 200) -> list[Conversation]:
    """Conversations that contain all the words in title, questions or answers, for a list: each with its first question
    only; the last changed first."""
    wanted, items = query.lower().split(), []
    for conversation, text in _all(workspace):
        if conversation.problem:
            continue
        if all(word in text for word in wanted):
            items.append(conversation)
            if len(items) == limit:
                break
    return items


def unreadable(workspace: Workspace, limit: int = 20) -> list[Conversation]:
    """Conversations whose files cannot be read, with the reason in `problem`."""
    return list(itertools.islice((c for c, _ in _all(workspace) if c.problem), limit))


_known: OrderedDict[Path, tuple[tuple, tuple[Conversation, str]]] = (
    OrderedDict()
)  # file -> its version, what `_all` says of it
_KNOWN, _SEARCHED = 2000, 20_000  # files; characters of each that are searched


def _all(workspace: Workspace) -> Iterator[tuple[Conversation, str]]:
    """Every conversation for a list, with its first question alone, and its text to be searched; the last changed
    first. One that cannot be read carries the reason in `problem`. A file is read again only when it has changed."""
    for file in sorted(workspace.conversations.glob("*.json"), key=_changed, reverse=True):
        if not _ID.fullmatch(file.stem):
            continue
        version = file_token(file)
        known = _known.get(file)
        if known is None or known[0] != version:
            known = _known[file] = version, _listed(workspace, file.stem)
            while len(_known) > _KNOWN:
                _known.popitem(last=False)
        yield known[1]


def _listed(workspace: Workspace, id_: str) -> tuple[Conversation, str]:
    try:
        whole = load(workspace, id_)
    except UserError as error:
        return Conversation(id_, problem=error.message), ""
    text = " ".join([whole.title, *(m["content"] for column in whole.columns for m in column)])[:_SEARCHED].lower()
    first = next((m for m in (whole.columns or [[]])[0] if m["role"] == "user"), None)
    begin = [[{"role": "user", "content": first["content"][: 10 * MAX_TITLE]}]] if first else []
    return Conversation(id_, whole.title, begin, whole.models, whole.changed), text


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # deleted meanwhile, or a link to nothing
        return 0.0


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
