"""Regional torch.compile: every decoder layer is compiled as one region, which fuses the elementwise half of a step.

In a compiled layer the choice of what is kept for the backward pass and what is computed again is made per operation,
not per layer: `activation_memory_budget` 0 keeps only a layer's input (as gradient checkpointing does, but operations
whose result nobody needs are left out), 1 keeps everything.
"""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model) -> list[torch.nn.Module]:
    """The layers that transformers would checkpoint one by one."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model, budget: float) -> int:
    """Compile every decoder layer of `model` in place; returns their number. Compilation happens with the first step."""
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    torch._functorch.config.activation_memory_budget = budget
    layers = decoder_layers(model)
    for layer in layers:
        layer.compile()
    return len(layers)
