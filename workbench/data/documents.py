"""Text of a Word document (`.docx`): its paragraphs, and the rows of its tables, in order. And passages of documents.

Deleted and moved-away text is left out; what was inserted, text boxes and content controls are read. Headers,
footers, footnotes and comments are not.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from workbench.data.archives import archive_parts
from workbench.errors import UserError

_UNPACKED = 256 << 20  # bytes that the parts of a document may unpack to, all together
_TEXT = 64 << 20  # of them its XML, which is held as a tree
_PARTS = 10_000
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # says what stands beside it again
_SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def document_texts(path: Path) -> Iterator[str]:
    """The texts of a document that are not empty; a row of a table as its cells between ` | `.

    Raises:
        UserError: it is no such document, or too large.
    """
    import docx

    _check_size(path)
    try:
        with open(path, "rb") as file:
            body = docx.Document(file).element.body
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError("file_unreadable", path=path.name, reason=error.strerror or error) from None
    except Exception as error:  # a document can be broken in many ways
        reason = " ".join(str(error).replace(str(path), path.name).split())[:200].rstrip(". ")
        raise UserError("document_broken", name=path.name, reason=reason or type(error).__name__) from None
    for block in body.iter(f"{_W}p", f"{_W}tr") if body is not None else ():
        around = {ancestor.tag for ancestor in block.iterancestors()}
        if f"{_W}tr" in around or _FALLBACK in around or _inside(block, "p"):
            continue  # a part of what is read with what is around it
        text = _row(block) if block.tag == f"{_W}tr" else _text(block)
        if text.strip():
            yield text.strip()


def _inside(block, name: str) -> bool:
    return next(block.iterancestors(f"{_W}{name}"), None) is not None


def _row(row) -> str:
    """The cells of a table's row; a table within a cell is a part of it."""
    cells = [" ".join(_text(cell).split()) for cell in row.iterchildren(f"{_W}tc", f"{_W}sdt")]
    return " | ".join(cells) if any(cells) else ""


def _text(block) -> str:
    """All text in a paragraph or a cell; paragraphs within it on lines of their own."""
    parts: list[str] = []
    for node in block.iter(f"{_W}t", f"{_W}p", *(f"{_W}{name}" for name in _SIGNS)):
        if node.tag == f"{_W}p":
            parts.append("\n" if parts else "")
            continue
        around = {ancestor.tag for ancestor in node.iterancestors()}
        if around & {_FALLBACK, f"{_W}moveFrom", f"{_W}del"}:
            continue
        if node.tag == f"{_W}t":
            parts.append(node.text or "")
        elif node.getparent().tag == f"{_W}r":  # elsewhere a tab is a stop of the ruler
            parts.append(_SIGNS[node.tag.removeprefix(_W)])
    return "".join(parts)


def _check_size(path: Path) -> None:
    """Raise UserError for what is no archive, or would unpack to too much."""
    parts = archive_parts(path, "document_not_docx")
    unpacked = sum(part.file_size for part in parts)
    text = sum(part.file_size for part in parts if part.filename.lower().endswith((".xml", ".rels")))
    if unpacked > _UNPACKED or text > _TEXT or len(parts) > _PARTS:
        sizes = {"size": unpacked >> 20, "text": text >> 20, "parts": len(parts)}
        raise UserError("document_too_large", name=path.name, **sizes, most=_UNPACKED >> 20, most_text=_TEXT >> 20)


_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])|\n+")


def passages(texts: Iterator[str] | list[str], most: int) -> Iterator[str]:
    """Texts one after the other as passages of at most `most` characters: whole paragraphs where they fit, else whole
    sentences, else pieces of one."""
    held = ""
    for text in texts:
        for piece in [text] if len(text) <= most else _sentences(text, most):
            if held and len(held) + 1 + len(piece) > most:
                yield held
                held = ""
            held = f"{held}\n{piece}" if held else piece
    if held:
        yield held


def _sentences(text: str, most: int) -> Iterator[str]:
    for sentence in filter(None, map(str.strip, _SENTENCE.split(text))):
        yield from (sentence[at : at + most] for at in range(0, len(sentence), most))
