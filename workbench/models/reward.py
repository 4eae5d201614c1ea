"""A reward model made of a causal one: the same layers, and a head that gives one number instead of logits."""

import re
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.config.run_config import load_run_config
from workbench.errors import UserError
from workbench.runs.run import run_named
from workbench.storage import files
from workbench.storage.workspace import Workspace, expanded

_OF_LOADING = (
    "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method", "hf_quantizer", "hf_device_map",
    "name_or_path",
)  # fmt: skip


def reward_model(causal, seed: int):
    """transformers' model for sequence classification over the layers of `causal`, with one score. Its new head `score`
    is float32, drawn with `seed`.

    Raises:
        UserError: transformers has no such model for this architecture.
    """
    import torch
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as MAPPING

    config = causal.config
    if type(config) not in MAPPING:
        raise UserError("reward_unknown", model=config.model_type)
    config.num_labels = 1
    prefix, layers = causal.base_model_prefix, causal.base_model
    with torch.device("meta"):
        model = MAPPING[type(config)](config)
    if model.base_model_prefix != prefix or not hasattr(model, "score"):
        raise UserError("reward_unknown", model=config.model_type)
    setattr(model, prefix, layers)
    head = torch.nn.Linear(model.score.in_features, 1, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02), generator=generator)
    model.score = head.to(next(layers.parameters()).device)
    for name in _OF_LOADING:
        if hasattr(causal, name):
            setattr(model, name, getattr(causal, name))
    return model.train(causal.training)


def locate_reward_model(name: str, workspace: Workspace) -> tuple[Path, RunConfig]:
    """The folder of a reward model and the options that it was trained with: a run of stage rm, one of its checkpoints,
    or a folder with PEFT's adapter or transformers' model for sequence classification.

    Raises:
        UserError: there is none, or it writes answers instead of scoring them.
    """
    run_id, _, checkpoint = name.partition("/")
    run = run_named(workspace, run_id)
    folder = expanded(name, "reward_model")
    if run is not None and not (folder / "config.json").is_file() and re.fullmatch(r"(checkpoint-\d+)?", checkpoint):
        folder = run.path / checkpoint
    if not any((folder / file).is_file() for file in ("adapter_config.json", "config.json")):
        raise UserError("reward_model_missing", name=name)
    try:
        adapter = files.read_object(folder / "adapter_config.json")
    except FileNotFoundError:
        adapter = None
    except files.Unreadable as error:
        raise UserError("reward_model_unreadable", name=name, problem=error.reason) from None
    if not (adapter.get("task_type") == "SEQ_CLS" if adapter is not None else _classifies(folder)):
        raise UserError("reward_model_answers", name=name)
    for of_run in (folder, folder.parent):
        if (of_run / "run.yaml").is_file():
            options = load_run_config(of_run / "run.yaml")
            if adapter is None:
                options = options.model_copy(update={"model_name_or_path": str(folder), "quantization_bit": None})
            return folder, options
    base = str(adapter.get("base_model_name_or_path") or "") if adapter is not None else str(folder)
    return folder, RunConfig(model_name_or_path=base, stage="rm", cutoff_len=0)


def _classifies(folder: Path) -> bool:
    try:
        names = files.read_object(folder / "config.json").get("architectures")
    except (OSError, files.Unreadable):
        return False
    return any(str(name).endswith("ForSequenceClassification") for name in names or [])


def check_answers(folder: Path) -> None:
    """Raise UserError for an adapter that is a reward model's: it scores answers, and gives none."""
    try:
        task = files.read_object(folder / "adapter_config.json").get("task_type")
    except (OSError, files.Unreadable):
        return
    if task == "SEQ_CLS":
        raise UserError("adapter_scores", folder=folder)
