"""Base and adapters as one model on the disk (PEFT's merge)."""

import shutil
from collections.abc import Callable
from pathlib import Path

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.models.demo import Progress
from workbench.models.load import load_model, load_tokenizer
from workbench.models.locate import check_folder, locate_adapter
from workbench.storage.workspace import Workspace, slug


def export(
    config: EngineConfig,
    adapters: dict[str, float],
    name: str,
    workspace: Workspace,
    progress: Progress,
    log: Callable[[str], None],
) -> Path:
    """Write `models/<name>` in the workspace: the base in its own precision, plus each adapter times its weight.

    The folder appears whole or not at all. Quantized weights cannot take an adapter in without loss, so the base is
    loaded unquantized.

    Raises:
        UserError: the name is taken, an adapter does not fit, or the disk is full.
    """
    import torch
    from peft import PeftModel

    workspace.check_writable()
    target = workspace.models / slug(name)
    if target.exists():
        raise UserError(f"There is a model named {target.name} already. Choose another name.")
    folders = {adapter: locate_adapter(adapter, workspace) for adapter in adapters}
    for folder in folders.values():
        check_folder(folder)
    if not folders:
        raise UserError("Name at least one adapter to merge.")
    config = config.model_copy(update={"quantization_bit": None})
    tokenizer = load_tokenizer(config, workspace, progress)
    dtype = torch.bfloat16 if config.infer_dtype == "auto" else getattr(torch, config.infer_dtype)
    model = load_model(config, workspace, dtype=dtype, split=False, progress=progress, log=log)
    try:
        tuned = None
        for number, folder in enumerate(folders.values()):
            if tuned is None:
                tuned = PeftModel.from_pretrained(model, str(folder), adapter_name="adapter_0")
            else:
                tuned.load_adapter(str(folder), adapter_name=f"adapter_{number}")
        weights = list(adapters.values())
        if weights != [1.0]:
            tuned.add_weighted_adapter(
                [f"adapter_{i}" for i in range(len(weights))], weights, "sum_", combination_type="cat"
            )
            tuned.set_adapter("sum_")
        merged = tuned.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"These adapters cannot be merged into this model: {' '.join(str(error).split())[:300]}"
        ) from None
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    except OSError as error:
        raise UserError(
            f"The model could not be written: {error.strerror or error}. Make room and export again."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
