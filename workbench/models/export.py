"""Base and adapters as one model on the disk (PEFT's merge)."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.models.demo import Progress
from workbench.models.ends import end_tokens
from workbench.models.load import load_model, load_tokenizer
from workbench.models.locate import check_folder, locate_adapter, locate_model
from workbench.models.merging import merge_into_base
from workbench.models.new_tokens import grow
from workbench.models.reward import check_answers
from workbench.storage.hub import first_line
from workbench.storage.workspace import Workspace, slug


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

    With it go the tokenizer and the chat template of the (first) adapter's run, and the tokens at which its answers
    end. The folder appears whole or not at all. Quantized weights cannot take an adapter in without loss, so the base
    is loaded unquantized.

    Args:
        set_template: gives a tokenizer the chat template of a name, where there is none beside the adapter, and the
            choice of `enable_thinking`.

    Raises:
        UserError: the name is taken, an adapter does not fit, or the disk is full.
    """
    import torch
    from peft import PeftModel

    target, folders = export_target(name, adapters, workspace)
    if not folders:
        raise UserError("no_adapter_to_merge")
    config = config.model_copy(update={"quantization_bit": None})
    tokenizer = exported_tokenizer(config, next(iter(folders.values())), workspace, progress, set_template)
    dtype = _own_dtype(config, workspace) if config.infer_dtype == "auto" else getattr(torch, config.infer_dtype)
    model = load_model(config, workspace, dtype=dtype, split=False, progress=progress, log=log)
    grow(model, len(tokenizer), log)
    try:
        tuned = None
        for number, folder in enumerate(folders.values()):
            if tuned is None:
                tuned = PeftModel.from_pretrained(model, str(folder), adapter_name="adapter_0")
            else:
                tuned.load_adapter(str(folder), adapter_name=f"adapter_{number}")
        merged = merge_into_base(tuned, [f"adapter_{i}" for i in range(len(adapters))], list(adapters.values()))
    except UserError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise UserError("adapters_unfit", problem=" ".join(str(error).split())[:300]) from None
    merged.generation_config.eos_token_id = end_tokens(merged, tokenizer)  # so that it stops as in chat, everywhere
    merged.config.eos_token_id = merged.generation_config.eos_token_id
    with written_whole(target) as partial:
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return target


def export_target(name: str, adapters: Iterable[str], workspace: Workspace) -> tuple[Path, dict[str, Path]]:
    """The folder that an export will be, and those of its adapters.

    Raises:
        UserError: the name is taken, or an adapter is not there or a reward model's.
    """
    workspace.check_writable()
    target = workspace.models / slug(name)
    if target.exists():
        raise UserError("model_name_taken", name=target.name)
    folders = {adapter: locate_adapter(adapter, workspace) for adapter in adapters}
    for folder in folders.values():
        check_folder(folder)
        check_answers(folder)
    return target, folders


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """An empty folder to write to, which becomes `target` at the end, or is gone.

    Raises:
        UserError: the disk is full.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        partial.rename(target)
    except OSError as error:
        raise UserError("model_not_written", reason=error.strerror or error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def exported_tokenizer(
    config: EngineConfig, adapter: Path | None, workspace: Workspace, progress: Progress, set_template: Callable
):
    """The tokenizer that the adapter was trained with, template included; the base's where there is none beside it."""
    if adapter and not (adapter / "tokenizer_config.json").is_file():
        adapter = adapter.parent  # of a checkpoint: its run
    if adapter and (adapter / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        check_folder(adapter)
        try:
            tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=config.trust_remote_code)
        except Exception as error:  # of a file that says what the libraries do not expect
            raise UserError("tokenizer_unreadable", folder=adapter, problem=first_line(error)) from None
        if tokenizer.chat_template:
            set_template(tokenizer, "auto", config.enable_thinking)
            return tokenizer
    tokenizer = load_tokenizer(config, workspace, progress)
    if config.template != "auto" or tokenizer.chat_template:
        set_template(tokenizer, config.template, config.enable_thinking)
    return tokenizer


def _own_dtype(config: EngineConfig, workspace: Workspace):
    """The base's own precision; bfloat16 where its config does not say."""
    import torch
    from transformers import AutoConfig

    source = locate_model(config.model_name_or_path or "", workspace)
    own = AutoConfig.from_pretrained(
        source, revision=config.model_revision, trust_remote_code=config.trust_remote_code
    ).dtype
    return own if isinstance(own, torch.dtype) else torch.bfloat16
