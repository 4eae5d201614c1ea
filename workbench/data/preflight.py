"""What can be found wrong with a run's model and data before anything is loaded. The page lets the data worker do
it."""

import importlib.util
from pathlib import Path

from workbench.config.conflicts import OPTIMIZERS, chosen_optimizer
from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.data import templates
from workbench.data.registry import DatasetInfo, select
from workbench.data.tokenized import is_tokenized, tokenized_folder
from workbench.data.validate import check_first_rows
from workbench.errors import UserError
from workbench.models.adapters import check_embeddings
from workbench.models.locate import adapter_kind, locate_adapter, locate_adapters, locate_model
from workbench.models.new_tokens import described_tokens
from workbench.models.reward import locate_reward_model
from workbench.storage import files
from workbench.storage.hub import check_upload
from workbench.storage.workspace import Workspace, dataset_folder


def _tied(folder: Path) -> bool:
    """Whether a model's config says that its embeddings are one matrix; False where it is not here yet."""
    try:
        return files.read_object(folder / "config.json").get("tie_word_embeddings") is True
    except (OSError, files.Unreadable):
        return False


def preflight(config: RunConfig, workspace: Workspace) -> None:
    """Everything about a run that can be found wrong without loading a model.

    Raises:
        UserError: a missing model, adapter or dataset, a missing package, an unreadable first row.
    """
    for info in check_names(config, workspace):
        if info.path and config.do_train:  # what is only answered may have rows without answers
            check_first_rows(info, skip_broken=config.skip_broken_rows)


def check_names(config: RunConfig, workspace: Workspace) -> list[DatasetInfo]:
    """What can be found wrong without opening a data file, in milliseconds; the datasets that the run reads.

    Raises:
        UserError: a missing model, adapter or dataset, a missing package.
    """
    folder = Path(locate_model(config.model_name_or_path or "", workspace))
    if config.finetuning_type in ("lora", "oft"):
        check_embeddings(config, _tied(folder))
        if config.new_tokens and not config.additional_target and _tied(folder):
            raise UserError("new_tokens_tied")
    for adapter in locate_adapters(config.adapter_name_or_path, workspace):
        if (kind := adapter_kind(adapter)) in ("lora", "oft") and kind != config.finetuning_type:
            raise UserError("adapter_other_kind", folder=adapter, kind=kind)
    described_tokens(config)
    if config.scores_answers:
        locate_reward_model(config.reward_model or "", workspace)
    if config.ref_model:
        locate_model(config.ref_model, workspace)
    if config.ref_model_adapters:
        locate_adapter(config.ref_model_adapters, workspace)
    templates.read(config.template)
    for name in split_names(config.report_to):
        if name not in ("none", "all") and importlib.util.find_spec(name) is None:
            raise UserError("reporter_missing", name=name)
    if config.push_to_hub:
        check_upload()
    module, package = OPTIMIZERS.get(chosen_optimizer(config), ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise UserError("optimizer_missing", option=f"use_{chosen_optimizer(config)}", package=package)
    if config.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise UserError("deepspeed_missing")
    kept = tokenized_folder(config, workspace)
    if kept is not None and is_tokenized(kept):
        return []
    if kept is not None and not config.dataset:
        raise UserError("tokenized_missing", folder=kept)
    folder = dataset_folder(config.dataset_dir, workspace)
    datasets = [
        info for names in (config.dataset, config.eval_dataset) for info in select(names or "", folder, workspace)
    ]
    return datasets
