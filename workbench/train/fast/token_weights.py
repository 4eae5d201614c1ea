"""Weights of a token's loss in supervised fine-tuning: DFT and EAFT. They are no part of the gradient."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.config.options import RunConfig
from workbench.train.fast.cross_entropy import CHUNK, CPU_CHUNK, adjusted

# (negative log-likelihoods [positions], then the arguments of `linear_nll`) -> weights, float32 [positions]
Weigh = Callable[[Tensor, Tensor, nn.Module, Tensor, float, float], Tensor]

TOP = 20  # likeliest tokens whose entropy EAFT takes
TOP_ENTROPY = 3.0  # about log(TOP): what it is divided by


def token_weights(config: RunConfig) -> Weigh | None:
    """How a run weighs its tokens; None where all count the same."""
    if config.use_dft_loss:
        return by_probability
    return by_entropy(config.eaft_alpha) if config.use_eaft_loss else None


def by_probability(nll: Tensor, *_) -> Tensor:
    """DFT (arXiv 2508.05629): the probability that the model gives to the token."""
    return torch.exp(-nll.detach())


def by_entropy(alpha: float) -> Weigh:
    """EAFT: the entropy of the likeliest tokens, among themselves, to the power of `alpha`: low where the model is
    sure, whatever the token is. The logits are computed once more, a chunk of positions at a time."""

    @torch.no_grad()
    def weigh(nll: Tensor, hidden: Tensor, head: nn.Module, targets: Tensor, scale: float, cap: float) -> Tensor:
        if type(head) is nn.Linear:
            hidden = hidden.to(head.weight.dtype)
        weights = torch.empty_like(nll)
        chunk = CHUNK if hidden.device.type == "cuda" else CPU_CHUNK
        for at in range(0, len(nll), chunk):
            logits = adjusted(head(hidden[at : at + chunk]).float(), scale, cap)
            log_p = logits.topk(min(TOP, logits.shape[-1])).values.log_softmax(-1)
            weights[at : at + chunk] = (-(log_p.exp() * log_p).sum(-1) / TOP_ENTROPY) ** alpha
        return weights

    return weigh
