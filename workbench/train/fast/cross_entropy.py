"""The output head and its loss without all logits at once.

Logits exist for a chunk of positions at a time. With a frozen head their gradient is known as soon as they are: it
overwrites them and goes back through the head at once, so no logits are kept and none are computed twice.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.models.host_weights import bring
from workbench.models.quantized.weights import on_gpu

CHUNK = 2048  # positions whose logits exist at the same time on a GPU: 400 MiB at a vocabulary of 102,400
CPU_CHUNK = 512


def linear_cross_entropy(
    hidden: Tensor, head: nn.Module, targets: Tensor, scale: float = 1.0, cap: float = 0.0
) -> Tensor:
    """Summed negative log-likelihood, a float32 scalar. Arguments as of `linear_nll`."""
    return linear_nll(hidden, head, targets, scale, cap).sum()


def linear_nll(hidden: Tensor, head: nn.Module, targets: Tensor, scale: float = 1.0, cap: float = 0.0) -> Tensor:
    """Negative log-likelihood of each target, float32 [positions].

    Args:
        hidden: [positions, hidden_size]. targets: [positions], token ids; a negative one is not counted.
        head: the output projection, hidden_size -> vocabulary.
        scale, cap: logits become `cap * tanh(scale * logits / cap)`; cap 0 for none.
    """
    frozen = type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())
    if frozen:
        bring(head)
        return _FrozenHead.apply(hidden, head.weight, head.bias, targets, scale, cap)
    chunk = CHUNK if hidden.device.type == "cuda" else CPU_CHUNK

    def nll(part: Tensor, wanted: Tensor) -> Tensor:
        logits = adjusted(_logits(head, part).float(), scale, cap)
        return F.cross_entropy(logits, wanted, reduction="none", ignore_index=-100)

    parts = zip(hidden.split(chunk), targets.clamp(min=-100).split(chunk), strict=True)
    return torch.cat([torch.utils.checkpoint.checkpoint(nll, *part, use_reentrant=False) for part in parts])


def _logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """`head(hidden)`. Without calling a plain one: how many chunks there are depends on a process's own rows, and each
    call of a module of which processes keep parts is a gathering that all must take part in (ZeRO-3). Its weights are
    here as long as the model's own forward pass goes on (`train/zero.py`)."""
    return F.linear(hidden, head.weight, head.bias) if type(head) is nn.Linear else head(hidden)


def logit_adjustment(config) -> tuple[float, float]:
    """`(scale, cap)` that a model applies to its logits: Cohere, Granite, MiniCPM3, Falcon-H1, HyperCLOVA X, Gemma."""
    config = config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or 0.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name)), cap
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        return float(divisor if config.model_type == "hyperclovax" else 1 / divisor), cap
    return 1.0, cap


def adjusted(logits: Tensor, scale: float, cap: float) -> Tensor:
    """`logits` as the model adjusts them: `cap * tanh(scale * logits / cap)`; cap 0 for none."""
    if scale != 1.0:
        logits = logits * scale
    return cap * torch.tanh(logits / cap) if cap else logits


def cross_entropy_(logits: Tensor, targets: Tensor, scale: float, cap: float) -> Tensor:
    """Negative log-likelihood of each row [N]; overwrites `logits` [N, V] with its gradient."""
    if on_gpu(logits):
        from workbench.models.quantized import kernels

        return kernels.cross_entropy_(logits, targets, scale, cap)
    counted = targets >= 0
    z = adjusted(logits.float(), scale, cap)
    slope = scale * (1 - (z / cap) ** 2) if cap else scale
    log_p = z.log_softmax(-1)
    wanted = targets.clamp(min=0).unsqueeze(-1)
    losses = -log_p.gather(-1, wanted).squeeze(-1)
    grad = log_p.exp_().scatter_add_(-1, wanted, -torch.ones_like(wanted, dtype=log_p.dtype))
    logits.copy_(grad.mul_(slope).mul_(counted.unsqueeze(-1)))
    return losses * counted


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, scale, cap):
        chunk = CHUNK if hidden.device.type == "cuda" else CPU_CHUNK
        rows = hidden.to(weight.dtype)
        losses = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for at in range(0, len(targets), chunk):
            part = slice(at, at + chunk)
            logits = F.linear(rows[part], weight, bias)
            losses[part] = cross_entropy_(logits, targets[part], scale, cap)
            if grad is not None:
                torch.mm(logits, weight, out=grad[part])
            del logits
        ctx.save_for_backward(*(() if grad is None else (grad,)))
        ctx.dtype = hidden.dtype
        return losses

    @staticmethod
    def backward(ctx, grad_losses):
        (grad,) = ctx.saved_tensors
        return (grad * grad_losses.to(grad.dtype).unsqueeze(-1)).to(ctx.dtype), None, None, None, None, None
