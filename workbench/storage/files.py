"""Readers of files that may be broken, too large or hostile. Each gives the content or one sentence, whatever the
bytes.

Only regular files are opened: a device or a pipe in a data folder would be read forever. Depth is limited because
parsers
recurse: Python's JSON gives up with a RecursionError, libyaml's composer with a segmentation fault.
"""

import contextlib
import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import orjson
import yaml

from workbench.errors import UserError
from workbench.messages.message import Message

MAX_FILE = 64 << 20  # bytes of a file that is read whole
MAX_YAML = 1 << 20  # bytes of a config
MAX_NESTING = 100  # lists and objects within each other

_THE_TEXT = Message("the_text")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as safe as the other, and fast enough for thousands of runs
_AS_WRITTEN = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class Unreadable(UserError):
    """A file or text that cannot be used; the message says why. `reason` is the same without the file's name."""

    def __init__(self, what: str, reason: str):
        super().__init__("cannot_be_read", what=what, reason=reason)
        self.reason = reason


def open_regular(path: Path):
    """A regular file, opened for reading bytes.

    Raises:
        OSError: there is none, or it may not be read.
        Unreadable: it is a device, a pipe, a socket or a folder.
    """
    descriptor = os.open(
        path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
    )  # a pipe would wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable(str(path), Message("not_regular_file"))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int = MAX_FILE) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: anything else, also more than `limit` bytes.
    """
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise Unreadable(str(path), Message("reason_given", reason=getattr(error, "strerror", None) or error)) from None
    if len(data) > limit:
        raise Unreadable(str(path), Message("has_more_mib", most=limit >> 20))
    return data


def read_text(path: Path, limit: int = MAX_FILE) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises as `read_bytes`."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(str(path), Message("not_utf8", byte=error.start + 1)) from None


def read_json(path: Path, limit: int = MAX_FILE):
    """The JSON value in a file. Raises as `read_bytes`."""
    return parse_json(read_bytes(path, limit), str(path))


def read_object(path: Path, limit: int = MAX_FILE) -> dict:
    """The JSON object in a file. Raises as `read_bytes`, also for other values than objects."""
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise Unreadable(str(path), Message("not_json_object"))
    return value


def parse_json(text: bytes | str, what: str = _THE_TEXT):
    """The value in a JSON text. Raises Unreadable: not JSON, not UTF-8, or nested more than `MAX_NESTING` deep."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _by_python(text, what)  # which reads a little more (NaN, lone surrogates) and says better what is wrong
    check_nesting(value, text, what)
    return value


def _by_python(text: bytes | str, what: str):
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise Unreadable(what, Message("not_utf8", byte=error.start + 1)) from None
    except json.JSONDecodeError as error:
        raise Unreadable(what, Message("not_json", line=error.lineno, problem=error.msg)) from None
    except RecursionError:
        raise Unreadable(what, Message("nested_deep", most=MAX_NESTING)) from None
    except ValueError as error:  # a number with thousands of digits
        raise Unreadable(what, Message("reason_given", reason=str(error)[:100])) from None


def check_nesting(value, text: bytes | str | None = None, what: str = _THE_TEXT) -> None:
    """Raise Unreadable if lists and objects lie more than `MAX_NESTING` deep in each other; `text` is what `value` was
    parsed from."""
    if text is not None:
        brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
        if brackets <= MAX_NESTING:  # nearly always
            return
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        level = [inner for inner in level if isinstance(inner, dict | list)]
        if not level:
            return
    raise Unreadable(what, Message("nested_deep", most=MAX_NESTING))


def parse_yaml(text: str, what: str = _THE_TEXT, *, as_written: bool = False):
    """The value in a YAML text. `as_written`: scalars stay the text that they are written as (`007`, `1.10`, dates).

    Raises:
        Unreadable: not YAML (with the line), too long, nested too deep, or with references (`*name`), which a few bytes
            can multiply into gigabytes.
    """
    for _ in yaml_events(text, what):
        pass
    with _yaml_errors(what):
        return yaml.load(text, Loader=_AS_WRITTEN if as_written else _LOADER)


def yaml_events(text: str, what: str = _THE_TEXT) -> Iterator[yaml.events.Event]:
    """The events of a YAML text, tags included; they need no recursion. Raises Unreadable as `parse_yaml` does."""
    if len(text) > MAX_YAML:
        raise Unreadable(what, Message("has_more_mib", most=MAX_YAML >> 20))
    depth = 0
    with _yaml_errors(what):
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.events.AliasEvent):
                raise Unreadable(what, Message("yaml_reference", name=event.anchor))
            depth += isinstance(event, yaml.events.CollectionStartEvent) - isinstance(
                event, yaml.events.CollectionEndEvent
            )
            if depth > MAX_NESTING:
                raise Unreadable(what, Message("nested_deep", most=MAX_NESTING))
            yield event


@contextlib.contextmanager
def _yaml_errors(what: str) -> Iterator[None]:
    """What the parser raises as Unreadable."""
    try:
        yield
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: an impossible date
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or Message("not_parsed")
        if mark:
            raise Unreadable(what, Message("not_yaml_line", line=mark.line + 1, problem=problem)) from None
        raise Unreadable(what, Message("not_yaml", problem=problem)) from None


def shown(value, limit: int = 200) -> str:
    """A value from outside as text for a sentence: short, and made in bounded time."""
    if isinstance(value, dict | list | tuple):
        return Message("size_of_list", kind=type(value).__name__, count=len(value))
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


_numbers = itertools.count()


def write_atomically(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write so that a reader, or a power cut, sees the old text or the new one, never a part. `mode`: who may read the
    file, less what the process's mask takes away."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.tmp")  # a signal handler may write, too
    try:
        opener = lambda name, flags: os.open(name, flags, mode)  # noqa: E731
        with open(temporary, "w", encoding="utf-8", opener=opener) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_token(*paths: Path) -> tuple:
    """Something cheap that changes when any of the files does."""
    token: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            stat = os.stat(path)
            token.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            token.append(None)
    return tuple(token)
