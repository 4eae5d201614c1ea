"""Small operations of models as one kernel each, for inference on GPUs: norms, rotary embeddings, gated layers."""

from torch import nn

from workbench.models.fused.mlps import use_fused_mlps
from workbench.models.fused.norms import use_fused_norms
from workbench.models.fused.rotary import use_fused_rotary


def use_fused(model: nn.Module) -> None:
    """Let `model` run them without gradients, where they compute what its own code does."""
    use_fused_norms(model)
    use_fused_mlps(model)
    use_fused_rotary(model)
