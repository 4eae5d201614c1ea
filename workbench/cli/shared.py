"""Options that many commands have, and the language that they print in."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from workbench.messages.message import Message, told

WORKSPACE = Path("workspace")
WorkspaceOption = Annotated[Path, typer.Option("--workspace", help="Folder with runs and models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
LoadingOption = Annotated[list[str] | None, typer.Option("--set", help="A loading option: --set quantization_bit=4.")]

_language = "en"


class Language(StrEnum):
    """The languages of what is printed."""

    en = "en"
    zh = "zh"


def from_environment() -> str:
    """The language that the terminal asks for: Chinese where it says so, else English."""
    asked = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "zh" if asked.lower().startswith("zh") else "en"


def speak(language: str) -> None:
    """Print in this language from now on."""
    global _language
    _language = language


def language() -> str:
    """The language of what is printed: `en` or `zh`."""
    return _language


def told_here(text: str) -> str:
    """A message in the language of what is printed."""
    return told(text, _language)


def tell(text: str, file=None) -> None:
    """Print a message in that language."""
    print(told_here(text), file=file or sys.stdout)


def check_run(config, workspace) -> None:
    """Look at a run before it is made; prints what may go wrong. Raises UserError: it cannot go well."""
    from workbench.data.preflight import preflight
    from workbench.train.devices import check_devices
    from workbench.train.estimates.check import check_start

    preflight(config, workspace)
    check_devices(config)
    for warning in check_start(config, workspace):
        tell(Message("warning_line", warning=warning), file=sys.stderr)
