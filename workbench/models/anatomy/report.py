"""A model looked at: found by name, path or config alone, with all that its config and folder tell."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import get_args

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message, stored, told
from workbench.models.anatomy import bundled, cache, compute, fields, rope
from workbench.models.anatomy.folder import Folder, look
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.anatomy.sizes import Reading, read_sizes
from workbench.models.locate import check_other_forms
from workbench.storage import files
from workbench.storage.workspace import Workspace, expanded

MAX_CONFIG = 1 << 20  # bytes of a config.json
BLOCK = 64  # weights that share a scale in 4 bits: an expert's matrix must be a multiple of it
STAGES = get_args(RunConfig.model_fields["stage"].annotation)


@dataclass
class Found:
    """A config and where it is from: `bundled`, `folder`, `file` or `given` (its text). `path`: of folder or file."""

    name: str
    config: dict
    source: str
    path: Path | None = None


def find(name: str, workspace: Workspace) -> Found:
    """The model that a name or path means: a model of the workspace, a folder, a `.json` file, a bundled config.

    Raises:
        UserError: there is none; the path is outside of what a page's user may read; the file is no config.
    """
    name = name.strip()
    path = expanded(name, "model")
    short = name.rstrip("/").split("/")[-1]
    local = workspace.models / short
    plain = bool(short) and not path.is_absolute() and ".." not in path.parts
    if plain and (local / "config.json").is_file():
        path = local
    elif plain and local.is_dir():
        check_other_forms(local)
    if workspace.confined and path != local and name and (path.is_absolute() or ".." in path.parts or path.exists()):
        path = workspace.inside(path if path.is_absolute() else Path.cwd() / path, what="model")
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            check_other_forms(path)
            raise UserError("anatomy_no_config", folder=path)
        return Found(path.name, _read(path / "config.json"), "folder", path)
    if path.suffix == ".json" and path.is_file():
        return Found(path.name, _read(path), "file", path)
    if known := bundled.find(name):
        return Found(known, bundled.configs()[known], "bundled")
    raise UserError("anatomy_not_found", name=name[:100], known=list(bundled.ORDER))


def given(text: bytes | str, name: str = "config.json") -> Found:
    """A config from its text. Raises UserError: it is too long, or no JSON object."""
    if len(text) > MAX_CONFIG:
        raise UserError("anatomy_too_long", most=MAX_CONFIG >> 10)
    value = files.parse_json(text)
    if not isinstance(value, dict):
        raise UserError("anatomy_not_object", file=name[:80])
    return Found(name[:80], value, "given")


def _read(path: Path) -> dict:
    try:
        return files.read_object(path, MAX_CONFIG)
    except OSError as error:
        raise UserError("cannot_be_read", what=path, reason=error.strerror or str(error)) from None


@dataclass
class Report:
    """All of one model. `anatomy` and `rotary` are None where the config does not tell; `problems` say why."""

    found: Found
    reading: Reading
    anatomy: Anatomy | None = None
    rotary: rope.Rope | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folder: Folder | None = None

    @cached_property
    def siblings(self) -> list[str]:
        """Bundled models to put beside it."""
        return bundled.siblings(self.found.config.get("model_type"), self.found.name)

    @cached_property
    def fields(self) -> list[fields.Field]:
        return fields.fields(self.found.config, self.siblings)

    @property
    def context(self) -> int:
        """Tokens of the longest text that the model is meant for; 0: not said."""
        return self.anatomy.sizes.context if self.anatomy else 0

    @property
    def four_bit(self) -> tuple[bool | None, str]:
        """Whether it can be loaded in 4 bits here (None: cannot be told), and why not."""
        quantized = self.found.config.get("quantization_config")
        if isinstance(quantized, dict):
            method = str(quantized.get("quant_method") or "")[:40]
            if method == "bitsandbytes":
                return True, ""
            return False, Message("anatomy_quantized", method=method)
        if self.anatomy is None:
            return None, ""
        experts = self.anatomy.sizes.experts
        if experts and self.anatomy.sizes.family.sinks:
            return False, Message("anatomy_experts_odd")
        if experts and experts.size * self.anatomy.sizes.hidden % BLOCK:
            return False, Message("anatomy_experts_block", most=BLOCK)
        return True, ""


def report(found: Found) -> Report:
    """Look at a model. Raises nothing for what is wrong in its config or folder: that is among the problems."""
    reading = read_sizes(found.config)
    result = Report(found, reading, problems=list(reading.problems), notes=list(reading.notes))
    if reading.sizes is not None:
        result.anatomy = Anatomy(reading.sizes)
        result.rotary, told_of_rope = rope.read_rope(found.config, reading.sizes)
        result.notes += told_of_rope
    if found.source == "folder" and found.path is not None:
        result.folder = folder = look(found.path)
        result.problems += folder.problems
        if not folder.weight_files and not folder.problems:
            result.notes.append(Message("anatomy_weights_none"))
        if result.anatomy and folder.weights and folder.weights != result.anatomy.total:
            fewer = folder.weights < result.anatomy.total
            code = "anatomy_weights_fewer" if fewer else "anatomy_weights_more"
            message = Message(code, found=folder.weights, wanted=result.anatomy.total)
            (result.problems if fewer else result.notes).append(message)
    return result


def as_json(result: Report, lang: str = "en") -> dict:
    """A report as JSON can hold it; sentences in `lang`, with their codes beside."""
    found, anatomy = result.found, result.anatomy
    values: dict = {
        "name": found.name,
        "source": found.source,
        "path": str(found.path or ""),
        "model_type": found.config.get("model_type"),
        "problems": [told(text, lang) for text in result.problems],
        "notes": [told(text, lang) for text in result.notes],
        "messages": stored([*result.problems, *result.notes]),
        "parameters": None,
        "layers": [],
        "cache": None,
        "flops": None,
        "rope": None,
        "lora_targets": [],
        "four_bit": result.four_bit[0],
        "stages": list(STAGES),
    }
    if anatomy is not None:
        values |= _derived(result, anatomy)
    if folder := result.folder:
        values["folder"] = {
            "bytes": folder.bytes,
            "weight_files": folder.weight_files,
            "weight_bytes": folder.weight_bytes,
            "weights": folder.weights,
            "whole": folder.whole,
            "template": folder.template,
            "license": folder.license,
            "gated": folder.gated,
            "code": folder.code,
        }
    index = 1 if lang == "zh" else 0
    values["fields"] = [
        {
            "name": f.name,
            "group": f.group,
            "value": f.value,
            "meaning": f.meaning[index],
            "effect": f.effect[index],
            "siblings": dict(zip(result.siblings, f.siblings, strict=True)),
        }
        for f in result.fields
    ]
    return values


def _derived(result: Report, anatomy: Anatomy) -> dict:
    sizes, context = anatomy.sizes, result.context
    values: dict = {
        "parameters": {
            "total": anatomy.total,
            "active": anatomy.active,
            "multiplied": anatomy.multiplied,
            "tied": sizes.tied,
            "by_component": anatomy.by_component(),
            "active_by_component": anatomy.by_component(active=True),
        },
        "layers": [
            {"numbers": list(one.numbers), "mixture": one.mixture, "window": one.window, "parameters": one.count}
            for one in anatomy.layers
        ],
        "cache": {
            "bits": cache.BITS,
            "elements_per_token_and_layer": cache.elements(sizes),
            "bytes_per_token": cache.cache_bytes(sizes, 1, windows=False),
            "context": context,
            "bytes_at_context": cache.cache_bytes(sizes, context) if context else None,
            "as": {
                v.kind: cache.cache_bytes(sizes, 1, per_layer=v.elements, windows=False) for v in cache.variants(sizes)
            },
        },
        "flops": {
            "per_token": compute.token_flops(anatomy),
            "per_token_at_context": compute.token_flops(anatomy, context) if context else None,
            "training_frozen_per_token": compute.FROZEN * compute.token_flops(anatomy),
        },
        "lora_targets": [
            {"name": one.name, "shape": [one.out_features, one.in_features], "count": one.count, "experts": one.experts}
            for one in anatomy.linears()
        ],
    }
    if result.rotary:
        one = result.rotary
        turns = rope.scaled(one, one.kind, one.factor, one.context)
        values["rope"] = {
            "theta": one.theta,
            "dims": one.dims,
            "kind": one.kind,
            "factor": one.factor,
            "original": one.original,
            "context": one.context,
            "wavelengths": [round(wave, 2) for wave in rope.wavelengths(turns)],
        }
    return values
