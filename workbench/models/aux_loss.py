"""The load-balancing loss of DeepSeek's routers (arXiv 2401.06066, equations 12 to 14; 2405.04434, 2.2.2).

For each sequence of T tokens, with E experts of which a token chooses K, and scores s (the softmax of the logits):

    L = Σ_i f_i P_i,    f_i = E / (K T) · |tokens that chose i|,    P_i = 1/T Σ_t s_{t,i}

L is 1 where all experts do the same. f has no gradient, so that of the logits is known in closed form. It is added on
the way back through the routing weights: nothing of a layer's output changes, and layers that are compiled, computed
again or recorded need not know. transformers has this loss for other models, but not for deepseek_v2.
"""

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.models.quantized.weights import module_of, register


class Balance:
    """What the routers of a model need to know of the batch at hand, and what they found.

    Attributes:
        coef: α, the weight of the loss.
        by_sequence: whether f and P are of one sequence (DeepSeek's `seq_aux`) or of all tokens of the batch.
    """

    def __init__(self, coef: float, by_sequence: bool):
        self.coef, self.by_sequence = coef, by_sequence
        self._segment: Tensor | None = None
        self._segments = 1
        self._shares: Tensor | None = None
        self._scale: Tensor | float = 1.0
        self._sums: dict[torch.device, Tensor] = {}  # sum of L and how many it sums, on each device

    def begin(self, counted: Tensor, scale: Tensor | float, starts: Tensor | None = None) -> None:
        """Before a forward pass.

        Args:
            counted: [batch, length], 0 for padding.
            scale: of the whole loss; what the gradients of the other loss are multiplied with.
            starts: [batch, length] bool, where a new conversation starts in a packed row.
        """
        real, self._scale = counted != 0, scale
        if not self.by_sequence:
            segment, self._segments = torch.zeros_like(real, dtype=torch.long), 1
        elif starts is None:
            rows = torch.arange(real.shape[0], device=real.device)
            segment, self._segments = rows.unsqueeze(1).expand(real.shape), real.shape[0]
        else:
            segment = starts.flatten().cumsum(0).sub(1).clamp(min=0).view(real.shape)
            self._segments = max(1, int(starts.sum()))
        # padding goes to a segment of its own, behind the others
        self._segment = torch.where(real, segment, self._segments).flatten()
        self._shares = None

    def begin_joined(self, segments: Tensor, shares: Tensor, scale: Tensor | float) -> None:
        """Before a forward pass over conversations laid end to end.

        Args:
            segments: [length], the number of each token's conversation, len(shares) for padding.
            shares: of each conversation in the loss of a step; they add up to 1 over the step. If f and P are of all
                tokens of a batch, it has their sum.
            scale: as in `begin`.
        """
        if not self.by_sequence:
            segments, shares = (segments == len(shares)).long(), shares.sum().unsqueeze(0)
        self._segment, self._segments, self._shares, self._scale = segments, len(shares), shares, scale

    def take(self) -> tuple[float, float]:
        """The sum of L over routers and micro-batches since the last call, and their number."""
        total = sum((sums.cpu() for sums in self._sums.values()), torch.zeros(2))
        for sums in self._sums.values():
            sums.zero_()
        return float(total[0]), float(total[1])

    def gradient(self, logits: Tensor, index: Tensor) -> Tensor:
        """Of `coef · scale · L` with respect to the logits [N, E]; index [N, K] are the chosen experts."""
        scores = logits.softmax(-1, dtype=torch.float32)
        if self._segment is None or len(self._segment) != len(scores):
            return torch.zeros_like(logits)
        segment, count = self._segment.to(scores.device), self._segments
        chosen = torch.zeros_like(scores).scatter_(1, index, 1.0)

        def per_segment(values: Tensor) -> Tensor:
            return values.new_zeros(count + 1, *values.shape[1:]).index_add_(0, segment, values)

        tokens = per_segment(torch.ones_like(scores[:, 0])).clamp(min=1).unsqueeze(1)
        used = per_segment(chosen) * (scores.shape[1] / index.shape[1]) / tokens
        shares = scores.new_full((count,), 1 / count) if self._shares is None else self._shares.to(scores.device)
        loss = ((used * per_segment(scores) / tokens)[:count].sum(1) * shares).sum()
        sums = self._sums.get(scores.device)
        if sums is None:
            sums = self._sums[scores.device] = torch.zeros(2, device=scores.device)
        sums[0] += loss
        sums[1] += shares.sum()
        of_score = used / tokens * torch.nn.functional.pad(shares, (0, 1)).unsqueeze(1)
        of_score = of_score[segment]
        grad = scores * (of_score - (of_score * scores).sum(-1, keepdim=True))
        return (grad * (self.coef * self._scale)).to(logits.dtype)


@torch.library.custom_op("workbench::balance", mutates_args=())
def balance(weights: Tensor, logits: Tensor, index: Tensor, handle: Tensor) -> Tensor:
    """The routing weights as they are; on the way back, the logits get the gradient of the load-balancing loss."""
    return weights.clone()


@balance.register_fake
def _(weights, logits, index, handle):
    return torch.empty_like(weights)


@torch.library.custom_op("workbench::balance_gradient", mutates_args=())
def balance_gradient(logits: Tensor, index: Tensor, handle: Tensor) -> Tensor:
    """`Balance.gradient` of the router with this handle."""
    return module_of(handle).balance.gradient(logits, index)


@balance_gradient.register_fake
def _(logits, index, handle):
    return torch.empty_like(logits)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


balance.register_autograd(
    lambda ctx, grad: (grad, balance_gradient(*ctx.saved_tensors), None, None), setup_context=_setup
)


def has_own_balance_loss(config) -> bool:
    """Whether transformers computes a load-balancing loss for this model itself."""
    config = config.get_text_config()  # deepseek_v2 has only the first: its routers can be looked at, no more
    return hasattr(config, "output_router_logits") and hasattr(config, "router_aux_loss_coef")


def balance_routers(model, coef: float) -> Balance:
    """Apply the loss with weight `coef` to every router of `model`, sequence by sequence unless `seq_aux` is false.

    Raises:
        UserError: the model has no routers with a softmax gate.
    """
    state = Balance(coef, by_sequence=getattr(model.config, "seq_aux", True))
    routers = [
        module.gate
        for module in model.modules()
        if hasattr(module, "experts") and hasattr(getattr(module, "gate", None), "top_k")
    ]
    if not routers or not model.config.model_type.startswith("deepseek"):
        raise UserError("no_routers", model=model.config.model_type)
    for router in routers:
        register(router)
        router.balance = state
        router.register_forward_hook(_balanced)
    return state


def _balanced(router, inputs, output):
    logits, weights, index = output
    if not (router.training and torch.is_grad_enabled()):
        return output
    return logits, balance(weights, logits, index, router.packed_handle), index
