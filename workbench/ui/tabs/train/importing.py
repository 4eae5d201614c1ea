"""What an import comes to: a box of words, and the base that the form then has. No gradio here."""

from workbench.config.llamafactory import Imported, import_text
from workbench.errors import UserError
from workbench.ui.catalogue import say
from workbench.ui.notes import note, told
from workbench.ui.tabs.train import base as bases
from workbench.ui.tabs.train.base import Base

LISTED = 100  # keys that an import could not take over


def read(text, lang: str) -> tuple[str, Base | None]:
    """`(a box with what was taken over, the base)` of a pasted text; None where it is nothing to train with."""
    try:
        imported = import_text(text)
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
