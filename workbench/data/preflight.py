"""What can be found wrong with a run's model and data before anything is loaded. The page lets the data worker do
it."""

import importlib.util
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.config.run_config import split_names
from workbench.data import templates
from workbench.data.registry import DatasetInfo, select
from workbench.data.validate import check_first_rows
from workbench.errors import UserError
from workbench.models.adapters import check_embeddings
from workbench.models.locate import locate_adapter, locate_model
from workbench.storage import files
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
    if config.finetuning_type == "lora":
        check_embeddings(config, _tied(folder))
    if config.adapter_name_or_path:
        locate_adapter(config.adapter_name_or_path, workspace)
    templates.read(config.template)
    folder = dataset_folder(config.dataset_dir, workspace)
    datasets = [
        info for names in (config.dataset, config.eval_dataset) for info in select(names or "", folder, workspace)
    ]
    for name in split_names(config.report_to):
        if name not in ("none", "all") and importlib.util.find_spec(name) is None:
            raise UserError("reporter_missing", name=name)
    return datasets
