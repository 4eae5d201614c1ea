"""How a mixture-of-experts model holds its experts, and whether `experts.py` can compute that in 4 bits. Told by
structure, not by name."""

import torch

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.quantized.weights import is_packed

EXPERT_PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
BLOCK = 64  # weights that share a scale in bitsandbytes' NF4


def is_fused_experts(module: torch.nn.Module) -> bool:
    """Whether `module` holds its experts as 3-D parameters `[E, out, in]` of the layout that `experts.py` computes."""
    return len(expert_parameters(module)) == 2 and hasattr(module, "down_proj") and hasattr(module, "_apply_gate")


def expert_parameters(module: torch.nn.Module) -> list[str]:
    """Names of the 3-D (or already packed) expert parameters that `module` itself owns."""
    own = module._parameters
    return [n for n in EXPERT_PARAMETERS if own.get(n) is not None and (own[n].dim() == 3 or is_packed(own[n]))]


def check_layout(name: str, module: torch.nn.Module) -> None:
    """Raise UserError for fused experts that `experts.py` does not compute."""
    problems = []
    if not getattr(module, "has_gate", True):
        problems.append(Message("no_gate"))
    if getattr(module, "has_bias", False):
        problems.append(Message("biases"))
    if getattr(module, "is_transposed", False):
        problems.append(Message("transposed"))
    if getattr(module, "has_post_expert_norm", False):
        problems.append(Message("norm_after_expert"))
    for parameter in expert_parameters(module):
        if module._parameters[parameter][0].numel() % BLOCK:
            problems.append(Message("odd_size", name=parameter, most=BLOCK))
    if problems:
        raise UserError("experts_layout", name=name, problems=problems)
