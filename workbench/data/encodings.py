"""Text files that are not UTF-8: which encoding they look like, and the same file as UTF-8."""

import codecs
import tempfile
from pathlib import Path
from typing import BinaryIO

from workbench.errors import UserError
from workbench.messages.message import Message

ENCODINGS = ("utf-8", "gb18030", "big5", "shift_jis", "euc_kr", "utf-16", "cp1250", "cp1251", "cp1252")
_SAMPLE = 256 << 10
_CHUNK = 1 << 20
_SEARCHED = 16 << 10  # bytes that are tried in many encodings
NAMES = {
    "gb18030": "GB18030",
    "utf-16": "UTF-16",
    "shift_jis": "Shift-JIS",
    "big5": "Big5",
    "euc_kr": "EUC-KR",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1252": "Windows-1252",
}
# Microsoft's versions hold those above, and more
_CODECS = {"shift_jis": "cp932", "euc_kr": "cp949"}
# charset-normalizer's names for what it finds
_FOUND = {"big5": "big5", "big5hkscs": "big5", "cp950": "big5", "cp949": "euc_kr", "johab": "euc_kr"}
_FOUND |= {"cp932": "shift_jis", "shift_jis": "shift_jis", "cp1250": "cp1250", "cp1251": "cp1251"}
_ENOUGH = 8  # letters from which on charset-normalizer is believed
_SYLLABLES = set("다이는을를가에의은니까요한하고지서로도기나어사그리라스")  # every third of a Korean text
# what Western European texts hold beside ASCII
_WESTERN = set("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýœŒ‘’“”„«»–—…€£§°·¿¡´ªº½²\xa0")


class WrongEncoding(UserError):
    """A text file that is not UTF-8. `encoding`: what it looks like."""

    def __init__(self, message: str, encoding: str):
        self.encoding = encoding
        super().__init__(message)


def looks_like(sample: bytes) -> str:
    """The encoding that the beginning of a text file looks like; empty for UTF-8 (also with a few wrong bytes), and
    where nothing fits.

    A Chinese text in GB18030 consists almost wholly of the common characters of GB2312; a Japanese one has many kana; a
    Western one has the letters of its languages. For others charset-normalizer is asked.
    """
    if sample[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    lines = sample.split(b"\n")[: -1 if len(sample) >= _SAMPLE else None]
    foreign = [line for line in lines if not line.isascii()]
    if not foreign or any(_decoded(line, "utf-8") for line in foreign):
        return ""
    text = b"\n".join(foreign)
    japanese = _letters(_decoded(text, "shift_jis"))
    if japanese and sum("\u3041" <= char <= "\u30fe" for char in japanese) > 0.2 * len(japanese):
        return "shift_jis"
    # Hangul has the bytes of common Chinese characters
    korean = _letters(_decoded(text, "cp949"))
    hangul = sum("\uac00" <= char <= "\ud7a3" for char in korean)
    if hangul > 0.9 * len(korean) and sum(char in _SYLLABLES for char in korean) > 0.2 * len(korean):
        return "euc_kr"
    chinese = _letters(_decoded(text, "gb18030"))
    if chinese and sum(map(_common, chinese)) > 0.8 * len(chinese):
        return "gb18030"
    western = _letters(_decoded(text, "cp1252"))
    if western and _WESTERN.issuperset(western):
        return "cp1252"
    return _found(text)


def _found(text: bytes) -> str:
    """What charset-normalizer makes of some lines; empty where it is not sure, or it is nothing that can be read
    here."""
    from charset_normalizer import from_bytes

    best = from_bytes(text[:_SEARCHED], cp_isolation=list(_FOUND), threshold=0.15).best()
    return _FOUND.get(best.encoding, "") if best is not None and len(_letters(str(best))) >= _ENOUGH else ""


def check_utf8(path: Path, file: BinaryIO) -> None:
    """Leave `file` behind the mark of UTF-8, if it has one. Raises WrongEncoding when it is another text."""
    start = file.tell()
    sample = file.read(_SAMPLE)
    if encoding := looks_like(sample):
        raise WrongEncoding(
            Message("not_utf8_but", name=path.name, guess=NAMES[encoding], encoding=encoding),
            encoding,
        )
    file.seek(start + (3 if sample.startswith(codecs.BOM_UTF8) else 0))


def as_utf8(path: Path, file: BinaryIO, encoding: str) -> BinaryIO:
    """A temporary file with the text of `file` in UTF-8. Raises UserError: it is not in that encoding."""
    target = tempfile.TemporaryFile()  # noqa: SIM115  closed with the last reference
    reader = codecs.getreader(_CODECS.get(encoding, encoding))(file)
    try:
        while text := reader.read(_CHUNK):
            target.write(text.encode())
    except (UnicodeError, LookupError) as error:
        target.close()
        raise UserError("wrong_encoding", name=path.name, encoding=encoding, problem=str(error)[:100]) from None
    target.seek(0)
    return target


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return ""


def _letters(text: str) -> str:
    return "".join(char for char in text if not char.isascii())


def _common(char: str) -> bool:
    try:
        return bool(char.encode("gb2312"))
    except UnicodeEncodeError:
        return False
