"""An adapter alone, in PEFT's form, with the tokenizer and the template that it was trained with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress
from workbench.models.export.card import write_card
from workbench.models.export.in_place import InPlace
from workbench.models.export.merged import with_adapter
from workbench.models.export.source import empty_model, exported_tokenizer, read_json, source_folder
from workbench.models.export.target import check_room, export_target, written_whole
from workbench.storage.workspace import Workspace

_FILES = ("adapter_model.safetensors",)


def export_lora(
    config: EngineConfig,
    adapters: dict[str, float],
    name: str,
    workspace: Workspace,
    progress: Progress,
    log: Callable[[str], None],
    set_template: Callable[[Any, str, str], None],
) -> Path:
    """Write `models/<name>`: one adapter as `PeftModel.from_pretrained` takes it, which names its base.

    Raises:
        UserError: not one adapter with weight 1; as of `merged.export`.
    """
    target, folders = export_target(name, adapters, workspace)
    if list(adapters.values()) != [1.0]:
        raise UserError("export_one_adapter")
    (folder,) = folders.values()
    source = source_folder(config, workspace, progress)
    _check_fits(folder, source, config)
    tokenizer = exported_tokenizer(config, folder, workspace, progress, set_template)
    model_name = config.model_name_or_path or ""
    check_room(sum((folder / file).stat().st_size for file in _FILES), workspace.models)
    progress(Message("export_writing"), 0.0)
    with written_whole(target) as partial:
        for file in _FILES:
            shutil.copyfile(folder / file, partial / file)
        values = read_json(folder / "adapter_config.json")
        values["base_model_name_or_path"] = model_name if "/" in model_name else str(source)
        text = json.dumps(values, indent=2, ensure_ascii=False)
        (partial / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        tokenizer.save_pretrained(partial)
        write_card(partial, target.name, "lora", model_name, source, adapters, workspace)
    return target


def _check_fits(folder: Path, source: Path, config: EngineConfig) -> None:
    """Raise UserError for an adapter of another base: by the names and shapes in the files, else by PEFT on a model
    without weights."""
    if InPlace.plan(source, {folder: 1.0}) is None:
        model = empty_model(source, config.model_name_or_path or "", config.trust_remote_code)
        try:
            with_adapter(model, None, folder, "adapter")
        except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
            raise UserError("adapter_unfit", folder=folder, problem=" ".join(str(error).split())[:300]) from None
