"""A model in 4 bits as bitsandbytes packs it: it loads in plain transformers, which finds the quantization in its
config."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress, watch_tqdm
from workbench.models.export.card import write_card
from workbench.models.export.merged import SHARD, write_merged
from workbench.models.export.source import (
    check_unquantized,
    empty_model,
    ends_of,
    exported_tokenizer,
    own_dtype,
    source_folder,
)
from workbench.models.export.target import check_room, export_target, written_whole
from workbench.models.load import load_model
from workbench.storage.workspace import Workspace

_SHARE = 0.35  # of a 16-bit model's bytes, 4-bit layers beside embeddings in 16 bits


def export_4bit(
    config: EngineConfig,
    adapters: dict[str, float],
    name: str,
    workspace: Workspace,
    progress: Progress,
    log: Callable[[str], None],
    set_template: Callable[[Any, str, str], None],
) -> Path:
    """Write `models/<name>`: the base, with adapters merged in before, packed by bitsandbytes as `quantization_type`
    and `double_quantization` say.

    Raises:
        UserError: as of `merged.export`; or a mixture of experts, which plain transformers does not load in 4 bits.
    """
    target, folders = export_target(name, adapters, workspace)
    source = source_folder(config, workspace, progress)
    model_name = config.model_name_or_path or ""
    check_unquantized(source, model_name)
    check_experts(source, model_name, config.trust_remote_code)
    tokenizer = exported_tokenizer(config, next(iter(folders.values()), None), workspace, progress, set_template)
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    check_room(int(size * (_SHARE + bool(folders))), workspace.models)
    dtype = own_dtype(source, config.trust_remote_code)
    with written_whole(target) as partial:
        packed_from = source
        if folders:
            packed_from = partial / "merged"
            packed_from.mkdir()
            weights = {folders[key]: weight for key, weight in adapters.items()}
            write_merged(packed_from, config, source, weights, tokenizer, workspace, progress, log)
        options = {
            "model_name_or_path": str(packed_from),
            "quantization_bit": 4,
            "keep_quantized": False,
            "weights_on": "card",
        }
        if folders:
            options["rope_scaling"] = "none"  # it is in the merged model's config
        packing = config.model_copy(update=options)
        model = load_model(packing, workspace, dtype=dtype, split=False, progress=progress, log=log)
        ends = ends_of(packing, tokenizer, workspace, progress)
        model.generation_config.eos_token_id = model.config.eos_token_id = ends
        with watch_tqdm(lambda what, share: progress(Message("export_writing"), share)):
            model.save_pretrained(partial, max_shard_size=SHARD)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(partial / "merged", ignore_errors=True)
        write_card(partial, target.name, "bnb-4bit", model_name, source, adapters, workspace)
    return target


def check_experts(source: Path, name: str, trust_remote_code: bool) -> None:
    """Raise UserError for a model that keeps the experts of a layer as one tensor: bitsandbytes' 4-bit loading in
    plain transformers leaves such tensors in 16 bits, and would not find packed ones."""
    model = empty_model(source, name, trust_remote_code)
    fused = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    if fused:
        share = fused / sum(p.numel() for p in model.parameters())
        raise UserError("export_4bit_experts", name=name, model=model.config.model_type, share=share)
