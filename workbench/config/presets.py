"""Presets: YAML run configs with a header that says what they are for."""

from dataclasses import dataclass
from pathlib import Path

from workbench.config.run_config import parse_yaml
from workbench.storage.workspace import PRESETS

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


def read_preset(path: Path) -> Preset:
    """A preset from its file. Raises UserError for broken YAML."""
    text = path.read_text(encoding="utf-8")
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
    )


def list_presets() -> list[Preset]:
    """All presets, the default first."""
    presets = [read_preset(path) for path in sorted(PRESETS.glob("*.yaml"))]
    return sorted(presets, key=lambda preset: preset.name != DEFAULT)
