"""Presets: YAML run configs with a header that says what they are for. Some are bundled, others are the user's own."""

from dataclasses import dataclass
from pathlib import Path

from workbench.config.run_config import parse_yaml, to_yaml
from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.workspace import PRESETS, Workspace, slug

DEFAULT = "smollm2-demo"


@dataclass(frozen=True)
class Preset:
    """A preset: `name` of its file, the header's lines, and its option values."""

    name: str
    purpose: str
    memory: str
    command: str
    about_zh: str
    values: dict
    own: bool = False  # the user's, in the workspace


def read_preset(path: Path) -> Preset:
    """A preset from its file. Raises UserError for broken YAML."""
    text = files.read_text(path, files.MAX_YAML)
    header = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        key, _, value = line.lstrip("# ").partition(":")
        header[key.strip().lower()] = value.strip()
    return Preset(
        path.stem,
        header.get("purpose", ""),
        header.get("memory", ""),
        header.get("command", ""),
        header.get("用途", ""),
        parse_yaml(text, where=path.name),
        own=path.parent != PRESETS,
    )


def list_presets(workspace: Workspace | None = None) -> list[Preset]:
    """The workspace's own presets, then the bundled ones, of these the default first. Files that are none are left
    out."""
    own = []
    for path in sorted(workspace.presets.glob("*.yaml")) if workspace else ():
        try:
            own.append(read_preset(path))
        except (UserError, OSError):
            continue
    bundled = [read_preset(path) for path in sorted(PRESETS.glob("*.yaml"))]
    return own + sorted(bundled, key=lambda preset: preset.name != DEFAULT)


def config_file(config: Path, workspace: Workspace) -> Path:
    """The file that `config` names on the command line: a path, or else a preset's name."""
    if config.exists():
        return config
    named = [folder / f"{config}.yaml" for folder in (workspace.presets, PRESETS)]
    return next((path for path in named if path.is_file()), config)


def save_preset(workspace: Workspace, name: str, values: dict) -> str:
    """Keep option values as a preset of the workspace, in place of one of that name; returns the name as it is kept.

    Raises:
        UserError: no name, or that of a bundled preset.
    """
    workspace.check_writable()
    if not name.strip():
        raise UserError("preset_nameless")
    kept = slug(name)
    if (PRESETS / f"{kept}.yaml").exists():
        raise UserError("preset_bundled", name=kept)
    workspace.presets.mkdir(parents=True, exist_ok=True)
    files.write_atomically(workspace.presets / f"{kept}.yaml", to_yaml(values))
    return kept


def delete_preset(workspace: Workspace, name: str) -> None:
    """Delete a preset of the workspace. Raises UserError for any other."""
    workspace.check_writable()
    path = workspace.presets / f"{slug(name)}.yaml"
    if slug(name) != name or not path.is_file():
        raise UserError("preset_unknown", name=name)
    path.unlink()
