"""A chat template with generation markers: its own, or TRL's marked version of it. Works without torch, too."""

import importlib.util
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class _WithoutTorch(PathFinder):
    """Finds all modules but torch."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] == "torch" else PathFinder.find_spec(fullname, path, target)


def without_torch() -> None:
    """Let this process do without torch, which costs seconds and 200 MB: tokenizers and templates need none.

    Call it before transformers is imported, which then takes torch for not installed.
    """
    if "torch" not in sys.modules:
        sys.meta_path[:] = [_WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def training_template(tokenizer) -> tuple[str, bool]:
    """`(template, whether it marks what the assistant wrote)` for a tokenizer with a template."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    if _MARKER.search(template):
        return template, True
    if not _trl_may_know(template):
        return template, False
    from trl.chat_template_utils import get_training_chat_template

    try:
        marked = get_training_chat_template(tokenizer)
    except Exception:  # no marked version is known for this template
        marked = None
    return (marked, True) if marked else (template, False)


def _trl_may_know(template: str) -> bool:
    """Whether a template is one of those that TRL ships, which it tells by their text; importing it to be told no costs
    half a second."""
    package = importlib.util.find_spec("trl")
    if package is None or not package.submodule_search_locations:
        return False
    folder = Path(package.submodule_search_locations[0]) / "chat_templates"
    files = list(folder.glob("*.jinja"))
    return not files or any(file.read_text(encoding="utf-8") == template for file in files)
