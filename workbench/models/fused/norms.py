"""RMS norms as one kernel where a model has a dozen small operations for them; for inference on a GPU with Triton."""

import torch
from torch import Tensor, nn

from workbench.models.quantized.weights import on_gpu


def use_fused_norms(model: nn.Module) -> int:
    """Let RMS norms of `model` run as one kernel without gradients; returns how many. Which modules are such norms is
    found by trying one of each class and width."""
    same: dict[tuple, bool] = {}
    count = 0
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not type(module).__name__.endswith("RMSNorm") or weight is None or eps is None or weight.dim() != 1:
            continue
        kind = type(module), weight.shape[0], weight.dtype, eps
        if kind not in same:
            same[kind] = on_gpu(weight) and _same(module, weight, eps)
        if same[kind]:
            _fuse(module, eps)
            count += 1
    return count


def _fuse(module: nn.Module, eps: float) -> None:
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not x.is_cuda:
            return plain(x)
        from workbench.models.fused.kernels import rms_norm

        return rms_norm(x, module.weight, eps)

    module.forward = forward


def _same(module: nn.Module, weight: Tensor, eps: float) -> bool:
    """Whether the module computes what the kernel does, to the last digits of its dtype."""
    from workbench.models.fused.kernels import rms_norm

    generator = torch.Generator(device=weight.device).manual_seed(0)
    x = torch.randn(3, weight.shape[0], dtype=weight.dtype, device=weight.device, generator=generator)
    with torch.no_grad():
        want = module(x)
        found = rms_norm(x, weight, eps)
    allowed = 4 * torch.finfo(weight.dtype).eps
    return found.dtype is want.dtype and bool(torch.allclose(found.float(), want.float(), rtol=allowed, atol=allowed))
