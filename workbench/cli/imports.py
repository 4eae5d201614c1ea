"""Turn LLaMA-Factory's commands and files into ours, on the command line."""

import errno
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import JsonOption, tell
from workbench.errors import UserError
from workbench.messages.message import Message, stored

MAX_NAMED = 64 << 20  # bytes of a file that an import names


def add_commands(app: typer.Typer) -> None:
    """Put this module's command into the command line."""
    app.command("import")(import_)


def named_file(name: str, source: str) -> str | None:
    """The text of a file that an imported command names: seen from here, or from the command's file or a folder above
    it."""
    given = Path(source) if source != "-" and len(source) < 1000 and "\n" not in source else None
    folders = [Path()] + (list(given.resolve().parents)[:6] if given and given.is_file() else [])
    for folder in folders:
        try:
            if (folder / name).is_file() and (folder / name).stat().st_size <= MAX_NAMED:
                return (folder / name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError("file_not_text", file=folder / name, problem=error) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise UserError("file_not_text", file=folder / name, problem=error) from None
    return None


def import_(
    source: Annotated[
        str,
        typer.Argument(help="A whole llamafactory-cli command, a file with one, a YAML file, or - for stdin."),
    ],
    json_: JsonOption = False,
):
    """Turn a LLaMA-Factory command or YAML into a config: YAML on stdout, what was left out on stderr."""
    from workbench.config.llamafactory import import_text
    from workbench.config.run_config import to_yaml

    if source == "-":
        text = sys.stdin.read()
    elif len(source) < 1000 and "\n" not in source and Path(source).is_file():
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("file_not_text", file=source, problem=error) from None
    else:
        text = source
    result = import_text(text, lambda name: named_file(name, source))
    if json_:
        print(
            json.dumps(asdict(result) | {"messages": stored([why for *_, why in result.left_out])}, ensure_ascii=False)
        )
        return
    if result.purpose != "train":
        tell(Message("for_chatting" if result.purpose == "chat" else "for_exporting", command=result.command()))
    else:
        print(to_yaml(result.values), end="")
    if result.defaults:
        tell(Message("defaults_heading"))
        print(to_yaml(result.defaults), end="")
    for key, value, why in result.left_out:
        tell(Message("not_taken_over", key=key or Message("import_text"), value=value, why=why), file=sys.stderr)
