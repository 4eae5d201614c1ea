"""ASFT: DFT's loss plus how far each trained token's distribution is from a reference's.

A token's loss is `p·nll + alpha·KL(reference ‖ model)`, with `p` the probability that the model gives to the token,
which is no part of the gradient. The reference is the model without its adapters, or another that stays in memory.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from workbench.errors import UserError
from workbench.train.fast.cross_entropy import CHUNK, CPU_CHUNK, adjusted


class Held:
    """What a model is held to, and how closely.

    Args:
        alpha: weight of the divergence.
        causal: the model that is trained, without PEFT's wrapper.
        off: a context in which its adapters are off; the reference where there is no `other`.
        other: a causal model that is not trained.

    Raises:
        UserError: another model's vocabulary is not that of the trained one.
    """

    def __init__(
        self,
        alpha: float,
        causal: nn.Module,
        off: Callable[[], AbstractContextManager] = nullcontext,
        other: nn.Module | None = None,
    ):
        self.alpha, self._off, self._other = alpha, off, other
        if other is not None:
            other.eval().requires_grad_(False)
            rows = [plain_head(model).weight.shape[0] for model in (causal, other)]
            if rows[0] != rows[1]:
                raise UserError("asft_vocabulary", own=rows[0], other=rows[1])

    @torch.no_grad()
    def hidden(self, causal: nn.Module, last_hidden_state: Callable, **inputs) -> Tensor:
        """What the reference's layers make of the tokens, [rows, length, hidden_size]."""
        model = causal if self._other is None else self._other
        training = model.training
        with self._off() if self._other is None else nullcontext():
            model.eval()  # no dropout, and no noise on embeddings
            try:
                return last_hidden_state(model, **inputs)
            finally:
                model.train(training)

    def loss(
        self, reference: Tensor, hidden: Tensor, head: nn.Module, targets: Tensor, scale: float, cap: float, causal
    ) -> Tensor:
        """Summed over the trained positions, a float32 scalar.

        Args:
            reference, hidden: [positions, hidden_size]. targets: [positions]; a negative one is not counted.
            scale, cap: as of `cross_entropy.linear_nll`.
        """
        other = plain_head(causal if self._other is None else self._other)

        def part(hidden: Tensor, reference: Tensor, wanted: Tensor) -> Tensor:
            log_p = _log_p(head, hidden, scale, cap)
            with torch.no_grad():
                log_q = _log_p(other, reference, scale, cap)
            nll = -log_p.gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
            return ((nll * torch.exp(-nll.detach()) + self.alpha * divergence) * (wanted >= 0)).sum()

        chunk = CHUNK if hidden.device.type == "cuda" else CPU_CHUNK
        parts = zip(hidden.split(chunk), reference.to(hidden.device).split(chunk), targets.split(chunk), strict=True)
        sums = [checkpoint(part, *one, use_reentrant=False) for one in parts]
        return torch.stack(sums).sum() if sums else hidden.sum().float() * 0


def plain_head(causal: nn.Module) -> nn.Module:
    """The output head without what an adapter has put around it."""
    head = causal.get_output_embeddings()
    return getattr(head, "original_module", getattr(head, "base_layer", head))


def _log_p(head: nn.Module, hidden: Tensor, scale: float, cap: float) -> Tensor:
    if type(head) is nn.Linear:
        hidden = hidden.to(head.weight.dtype)
    return adjusted(head(hidden).float(), scale, cap).log_softmax(-1)
