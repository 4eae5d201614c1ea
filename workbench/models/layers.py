"""The decoder layers of a model."""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that transformers would checkpoint one by one, in the model's order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
