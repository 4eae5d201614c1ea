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
    if model.config.model_type == "deepseek_v2":
        from workbench.models import rotary

        rotary.install()
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    torch._functorch.config.activation_memory_budget = budget
    layers = decoder_layers(model)
    # A layer's modules and their attributes do not change while training, and checking them in every layer of every
    # step costs more than a short batch. Only dropout must tell training from evaluation.
    fixed = not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe} if fixed else None
    for layer in layers:
        layer.compile(options=options)
    return len(layers)
