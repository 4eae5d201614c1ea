"""Options that many commands have."""

from pathlib import Path
from typing import Annotated

import typer

WORKSPACE = Path("workspace")
WorkspaceOption = Annotated[Path, typer.Option("--workspace", help="Folder with runs and models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
LoadingOption = Annotated[list[str] | None, typer.Option("--set", help="A loading option: --set quantization_bit=4.")]
