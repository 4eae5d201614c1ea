"""What lies in a model's folder beside its config: weights and whether they are whole, template, license. Reads headers
and small files only, bounded in size and number."""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

MAX_HEADER = 32 << 20  # bytes of a safetensors file's header
MAX_CARD = 64 << 10  # bytes that are read of a model card
MAX_TOKENIZER = 16 << 20
MAX_FILES = 5_000  # that are looked at in a folder
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_AGAIN = Message("weights_again")


@dataclass
class Folder:
    """`bytes`: of all files. `weights`: parameters in the weight files (0: none, or not all are plain numbers).
    `problems`: what is missing or cut off. `template`: the file with the chat template, or nothing. `gated`: the card
    says that access must be asked for. `code`: Python files that come with it."""

    path: Path
    bytes: int = 0
    weight_files: int = 0
    weight_bytes: int = 0
    weights: int = 0
    types: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    template: str = ""
    license: str = ""
    gated: bool = False
    has_card: bool = False
    code: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return self.weight_files > 0 and not self.problems


def look(path: Path) -> Folder:
    """What is in a folder. Raises nothing for what is broken in it: that is among its `problems`."""
    folder = Folder(path)
    unfinished = []
    for number, entry in enumerate(path.rglob("*")):
        if number >= MAX_FILES:
            break
        try:
            if not entry.is_file():
                continue
            folder.bytes += entry.stat().st_size
        except OSError:
            continue
        if entry.suffix in (".incomplete", ".part", ".aria2", ".crdownload"):
            unfinished.append(entry.name[:60])
        elif entry.suffix == ".py" and entry.parent == path:
            folder.code.append(entry.name[:60])
    if unfinished:
        names = unfinished[:3] + (["…"] if len(unfinished) > 3 else [])
        folder.problems.append(Message("anatomy_part_file", count=len(unfinished), names=names))
    folder.code.sort()
    _weights(folder)
    folder.template = _template(path)
    _card(folder)
    return folder


def _weights(folder: Folder) -> None:
    path, index = folder.path, folder.path / "model.safetensors.index.json"
    here = {p.name: p for p in sorted(path.glob("*.safetensors"))}
    try:
        wanted = sorted(_named(index)) if index.is_file() else sorted(here)
    except (UserError, OSError) as error:
        problem = getattr(error, "reason", None) or error
        folder.problems.append(Message("index_broken", file=index.name, problem=problem, advice=_AGAIN))
        wanted = sorted(here)
    missing = [name for name in wanted if name not in here]
    if missing:
        names = missing[:3] + (["…"] if len(missing) > 3 else [])
        folder.problems.append(
            Message(
                "shards_missing", folder=path.name, count=len(missing), total=len(wanted), names=names, advice=_AGAIN
            )
        )
    counted = 0
    for name in wanted:
        if name not in here:
            continue
        size = here[name].stat().st_size
        folder.weight_files += 1
        folder.weight_bytes += size
        try:
            for kind, count in header(here[name]).items():
                folder.types[kind] = folder.types.get(kind, 0) + count
                counted += count
        except UserError as error:
            reason = getattr(error, "reason", error)
            folder.problems.append(Message("shard_cut", file=name, size=size, problem=reason, advice=_AGAIN))
    if set(folder.types) <= set(_FLOATS) and not folder.problems:
        folder.weights = counted
    pickled = [p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth")] if not here else []
    if pickled:
        folder.problems.append(Message("weights_pickled", folder=path.name, file=sorted(pickled)[0]))


def _named(index: Path) -> set[str]:
    """The weight files that an index names. Raises Unreadable."""
    names = files.read_object(index).get("weight_map")
    found = set(names.values()) if isinstance(names, dict) and all(isinstance(v, str) for v in names.values()) else None
    if not found or any(Path(name).name != name for name in found):
        raise files.Unreadable(str(index), Message("weight_file_name"))
    return found


def header(file: Path) -> dict[str, int]:
    """Number format -> how many numbers of it a safetensors file holds, by its header. Raises as `tensors_of`."""
    found: dict[str, int] = {}
    for kind, shape, _ in tensors_of(file).values():
        found[kind] = found.get(kind, 0) + math.prod(shape)
    return found


def tensors_of(file: Path) -> dict[str, tuple[str, list[int], int]]:
    """Name -> number format, shape, and the place of its first byte, of a safetensors file's tensors; by its header.

    Raises:
        OSError: there is no such file.
        Unreadable: the header is none, or the file is not as long as it says.
    """
    with files.open_regular(file) as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise files.Unreadable(file.name, Message("no_header"))
        text = opened.read(length)
        opened.seek(0, 2)
        size = opened.tell()
    if len(text) < length:
        raise files.Unreadable(file.name, Message("shorter_than_said", missing=8 + length - size))
    tensors = files.parse_json(text, file.name)
    found: dict[str, tuple[str, list[int], int]] = {}
    end = 0
    try:
        for name, tensor in tensors.items():
            if name != "__metadata__":
                shape = [int(side) for side in tensor["shape"]]
                first, last = (int(place) for place in tensor["data_offsets"])
                found[name] = str(tensor["dtype"])[:12], shape, 8 + length + first
                end = max(end, last)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        raise files.Unreadable(file.name, Message("no_header")) from None
    if size < 8 + length + end:
        raise files.Unreadable(file.name, Message("shorter_than_said", missing=8 + length + end - size))
    return found


def _template(path: Path) -> str:
    """The file that holds the chat template, or nothing."""
    if (path / "chat_template.jinja").is_file():
        return "chat_template.jinja"
    for name, limit in (("chat_template.json", MAX_TOKENIZER), ("tokenizer_config.json", MAX_TOKENIZER)):
        try:
            if files.read_object(path / name, limit).get("chat_template"):
                return name
        except (UserError, OSError):
            continue
    return ""


def _card(folder: Folder) -> None:
    """License and gating, as the model card's header says it."""
    try:
        with files.open_regular(folder.path / "README.md") as opened:
            text = opened.read(MAX_CARD).decode("utf-8", "replace")
    except (UserError, OSError):
        return
    folder.has_card = True
    if not text.startswith("---"):
        return
    try:
        values = files.parse_yaml(text[3:].partition("\n---")[0], "README.md")
    except UserError:
        return
    if isinstance(values, dict):
        said = values.get("license_name") or values.get("license")
        said = ", ".join(map(str, said[:3])) if isinstance(said, list) else said
        folder.license = str(said)[:80] if isinstance(said, str) else ""
        folder.gated = any(str(key).startswith("extra_gated") for key in values)
