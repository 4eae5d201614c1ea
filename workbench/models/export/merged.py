"""Base and adapters as one model on the disk, in the base's own precision."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress, watch_tqdm
from workbench.models.export.card import write_card
from workbench.models.export.in_place import InPlace
from workbench.models.export.source import (
    check_unquantized,
    ends_of,
    exported_tokenizer,
    own_dtype,
    read_json,
    source_folder,
)
from workbench.models.export.target import check_room, export_target, written_whole
from workbench.models.load import load_model
from workbench.models.merging import merge_into_base
from workbench.models.new_tokens import grow
from workbench.models.rope import set_rope_scaling
from workbench.storage.workspace import Workspace

SHARD = "5GB"  # of a model that had to be loaded; else the shards are the base's


def export(
    config: EngineConfig,
    adapters: dict[str, float],
    name: str,
    workspace: Workspace,
    progress: Progress,
    log: Callable[[str], None],
    set_template: Callable[[Any, str, str], None],
) -> Path:
    """Write `models/<name>` in the workspace: the base in its own precision, plus each adapter times its weight.
    Without adapters it is a copy of the model alone, such as of a run that trained all weights.

    With it go the tokenizer and the chat template of the (first) adapter's run, the tokens at which its answers end,
    and a model card. The folder appears whole or not at all.

    Args:
        set_template: gives a tokenizer the chat template of a name, where there is none beside the adapter, and the
            choice of `enable_thinking`.

    Raises:
        UserError: the name is taken, an adapter does not fit, the base is quantized, or the disk is full.
    """
    target, folders = export_target(name, adapters, workspace)
    source = source_folder(config, workspace, progress)
    model_name = config.model_name_or_path or ""
    check_unquantized(source, model_name)
    tokenizer = exported_tokenizer(config, next(iter(folders.values()), None), workspace, progress, set_template)
    weights = {folders[key]: weight for key, weight in adapters.items()}
    with written_whole(target) as partial:
        write_merged(partial, config, source, weights, tokenizer, workspace, progress, log)
        write_card(partial, target.name, "safetensors", model_name, source, adapters, workspace)
    return target


def write_merged(
    folder: Path,
    config: EngineConfig,
    source: Path,
    adapters: dict[Path, float],
    tokenizer: Any,
    workspace: Workspace,
    progress: Progress,
    log: Callable[[str], None],
) -> None:
    """Write weights, config and tokenizer of a merged model into an empty folder. Raises as `export`."""
    planned = InPlace.plan(source, adapters) if config.infer_dtype == "auto" else None
    ends = ends_of(config, tokenizer, workspace, progress)
    if planned is None:
        log("The model is loaded to be written: its adapters, its files or the precision need that.")
        _write_loaded(folder, config, source, adapters, ends, len(tokenizer), workspace, progress, log)
    else:
        planned.write(folder, progress)
        _write_beside(folder, config, source, ends, log)
    tokenizer.save_pretrained(folder)


def _write_beside(folder: Path, config: EngineConfig, source: Path, ends: list[int], log) -> None:
    """The base's config, index and code, with the tokens at which answers end and the RoPE scaling of the options."""
    for file in [*source.glob("*.safetensors.index.json"), *source.glob("*.py")]:
        shutil.copyfile(file, folder / file.name)
    settings = read_json(source / "config.json")
    if config.rope_scaling != "none":
        from transformers import AutoConfig

        own = AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
        log(set_rope_scaling(own, config.rope_scaling, config.rope_factor))
        settings = own.to_dict()
    for name, values in (
        ("config.json", settings),
        ("generation_config.json", read_json(source / "generation_config.json")),
    ):
        text = json.dumps(values | {"eos_token_id": ends}, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _write_loaded(
    folder: Path,
    config: EngineConfig,
    source: Path,
    adapters: dict[Path, float],
    ends,
    tokens,
    workspace,
    progress,
    log,
) -> None:
    """The same by loading the model, for adapters of every kind that PEFT merges (memory: the whole model)."""
    import torch

    check_room(sum(file.stat().st_size for file in source.glob("*.safetensors")), folder)
    dtype = own_dtype(source, config.trust_remote_code) if config.infer_dtype == "auto" else None
    dtype = dtype or getattr(torch, config.infer_dtype)
    whole = config.model_copy(update={"quantization_bit": None, "weights_on": "card"})
    model = load_model(whole, workspace, dtype=dtype, split=False, progress=progress, log=log)
    grow(model, tokens, log)
    names = [f"adapter_{number}" for number in range(len(adapters))]
    try:
        tuned = None
        for adapter_name, adapter in zip(names, adapters, strict=True):
            tuned = with_adapter(model, tuned, adapter, adapter_name)
        merged = merge_into_base(tuned, names, list(adapters.values())) if tuned is not None else model
    except UserError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise UserError("adapters_unfit", problem=" ".join(str(error).split())[:300]) from None
    merged.generation_config.eos_token_id = ends  # so that it stops as in chat, everywhere
    merged.config.eos_token_id = ends
    with watch_tqdm(lambda what, share: progress(Message("export_writing"), share)):
        merged.save_pretrained(folder, max_shard_size=SHARD)


def with_adapter(model, tuned, folder: Path, name: str):
    """`model` with one more adapter. Raises UserError: it has parts that this model has no place for, which PEFT tells
    as a warning."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if tuned is None:
            tuned = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        unknown = tuned.load_adapter(str(folder), adapter_name=name).unexpected_keys
    lost = [key for key in unknown if ".modules_to_save." not in key]  # these PEFT takes and calls unexpected, too
    if lost:
        raise UserError("adapter_unfit", folder=folder, problem=lost[0])
    return tuned
