"""A reward model made of a causal one: the same layers, and a head that gives one number instead of logits."""

from pathlib import Path

from workbench.errors import UserError
from workbench.storage import files

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


def check_answers(folder: Path) -> None:
    """Raise UserError for an adapter that is a reward model's: it scores answers, and gives none."""
    try:
        task = files.read_object(folder / "adapter_config.json").get("task_type")
    except (OSError, files.Unreadable):
        return
    if task == "SEQ_CLS":
        raise UserError("adapter_scores", folder=folder)
