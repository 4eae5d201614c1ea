"""The summed loss as part of the model's own forward pass.

Wrappers around a model (PEFT, DDP, FSDP, accelerate's autocast) act when its forward pass is called. So the loss is
computed inside it: called with `sum_loss=True`, the causal model returns the sum over the trained tokens instead of
logits, through the fused head of `cross_entropy.py`.
"""

import functools
from contextlib import nullcontext

import torch
from transformers.modeling_outputs import CausalLMOutput

from workbench.models.attention import bounds_arguments, no_masks
from workbench.train.fast.cross_entropy import linear_cross_entropy, linear_nll, logit_adjustment
from workbench.train.fast.held import Held
from workbench.train.fast.masks import one_sequence_per_row
from workbench.train.fast.token_weights import Weigh


def sum_loss_in_forward(causal) -> None:
    """Let `causal.forward` take `sum_loss=True`: then `loss` is the summed negative log-likelihood of `labels`, a
    float32 scalar.

    With `per_token`, `loss` is that of each position instead, [rows, length - 1], 0 where nothing is trained.

    With `weigh` (`token_weights.py`), each token's loss is multiplied by its weight before they are summed.

    With `held` (`held.py`), it is the summed loss against a reference, whose pass comes first.

    With `bounds` and `longest`, the row is of conversations laid end to end (`models/attention.py`).

    With `static_shapes`, untrained positions go through the head as well, so that every shape is known in advance and
    nothing waits for the GPU; otherwise they are left out.
    """
    plain = causal.forward
    if hasattr(plain, "sums_loss"):
        return

    @functools.wraps(plain)
    def forward(
        *args,
        sum_loss: bool = False,
        per_token: bool = False,
        weigh: Weigh | None = None,
        held: Held | None = None,
        static_shapes: bool = False,
        bounds=None,
        longest=0,
        **inputs,
    ):
        if not (sum_loss or per_token):
            return plain(*args, **inputs)
        labels = inputs.pop("labels")
        asked = labels.device
        reference = None
        if held is not None:
            reference = held.hidden(causal, last_hidden_state, bounds=bounds, longest=longest, **inputs)
            reference = reference[:, :-1].flatten(0, 1)
        hidden = last_hidden_state(causal, bounds, longest, **inputs)
        head = causal.get_output_embeddings()
        labels = labels.to(hidden.device)  # of a model that is split over several, the last one
        hidden, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        trained = None if static_shapes else targets != -100
        if trained is not None:
            hidden, targets = hidden[trained], targets[trained]
            reference = None if reference is None else reference[trained.to(reference.device)]
        device = head.weight.device
        with torch.autocast(device.type, enabled=False):  # the head computes in the dtype that it is in
            arguments = hidden.to(device), head, targets.to(device), *logit_adjustment(causal.config)
            if held is not None:
                loss = held.loss(reference, *arguments, causal=causal)
            elif weigh is not None:
                nll = linear_nll(*arguments)
                loss = (nll * weigh(nll.detach(), *arguments)).sum()
            else:
                loss = linear_nll(*arguments) if per_token else linear_cross_entropy(*arguments)
        if per_token:
            if trained is not None:
                loss = loss.new_zeros(trained.shape).masked_scatter(trained.to(device), loss)
            loss = loss.view(labels.shape[0], -1)
        return CausalLMOutput(loss=loss.to(asked))

    forward.sums_loss = True  # type: ignore[attr-defined]
    causal.forward = forward


def last_hidden_state(model, bounds, longest: int, *, input_ids, **inputs) -> torch.Tensor:
    """What the layers of `model` make of the tokens, [rows, length, hidden_size]. `bounds` and `longest` as in
    `sum_loss_in_forward`, None for rows of one conversation each."""
    rest = {name: value for name, value in inputs.items() if value is not None}
    masks = nullcontext()
    if bounds is not None:
        rest, masks = rest | bounds_arguments(bounds, longest), no_masks()
    elif input_ids.device.type == "cuda" and set(rest) <= {"attention_mask"}:
        rest, masks = {}, one_sequence_per_row()  # padding is on the right, where no token looks
    with masks:
        return model.base_model(input_ids=input_ids, use_cache=False, **rest).last_hidden_state


def counted_tokens(inputs) -> torch.Tensor:
    """[batch, length]: 1, and 0 for padding."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask
