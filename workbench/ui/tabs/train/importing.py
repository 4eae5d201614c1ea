"""What an import comes to: a box of words, and the base that the form then has. No gradio here."""

import re
from collections.abc import Sequence
from pathlib import Path

from workbench.config.llamafactory import Imported, import_text
from workbench.errors import UserError
from workbench.storage import files
from workbench.ui.catalogue import say
from workbench.ui.notes import note, told
from workbench.ui.tabs.train import base as bases
from workbench.ui.tabs.train.base import Base

LISTED = 100  # keys that an import could not take over


def imported_of(text, given: Sequence[str] | None = ()) -> Imported:
    """What a pasted text says. Files that it names are looked for among those that were given with it, by their names
    alone; where nothing was pasted, the only YAML file or script of them is the text.

    Raises:
        UserError: as `import_text`; a file cannot be read.
    """
    there = {Path(path).name: Path(path) for path in given or ()}

    def named(name: str) -> str | None:
        path = there.get(re.split(r"[/\\]", name)[-1])
        try:
            return files.read_text(path, files.MAX_YAML) if path else None
        except FileNotFoundError:  # what was uploaded is cleared away in time
            return None

    text = text or ""
    if not text.strip():
        whole = [name for name in there if not name.endswith(".json")] if len(there) > 1 else list(there)
        text = (named(whole[0]) or "") if len(whole) == 1 else ""
    return import_text(text, named)


def read(text, lang: str, given: Sequence[str] | None = ()) -> tuple[str, Base | None]:
    """`(a box with what was taken over, the base)` of a pasted text and the files given with it; None where it is
    nothing to train with."""
    try:
        imported = imported_of(text, given)
    except UserError as error:
        return note(told(error, lang), "bad"), None
    if imported.purpose != "train":
        message = say(f"imported_{imported.purpose}", lang, command=imported.command()) + _left_out(imported, lang)
        return note(message, "warn" if imported.lost else "ok"), None
    if not imported.values:
        return note(say("nothing_imported", lang), "bad"), None
    message = say("imported", lang, count=len(imported.values)) + _left_out(imported, lang)
    if imported.defaults:
        listed = "".join(f"\n• {key}: {value}" for key, value in imported.defaults.items())
        message += "\n" + say("import_defaults", lang) + listed
    base = Base("import", bases.import_name(imported.values), imported.defaults | imported.values)
    return note(message, "warn" if imported.left_out else "ok"), base


def _left_out(imported: Imported, lang: str) -> str:
    """Lines about what an import did not take over."""
    lines = [f"\n• {key or '…'} = {value}: {told(why, lang)}" for key, value, why in imported.left_out[:LISTED]]
    return "\n" + say("left_out", lang) + "".join(lines) if lines else ""
