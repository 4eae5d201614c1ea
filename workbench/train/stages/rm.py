"""A reward model: a number for each conversation, higher for the chosen answer of a pair than for the rejected one."""

import functools

import torch
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from workbench.config.options import RunConfig
from workbench.models.aux_loss import has_own_balance_loss
from workbench.train.fast.loss import last_hidden_state
from workbench.train.stages.base import Stage
from workbench.train.stages.preference_losses import reward_objective
from workbench.train.stages.preferences import PreferenceTrainer, check_balance


class RewardModelTrainer(PreferenceTrainer):
    """The score is that of the last token of a conversation, as transformers' models for sequence classification have
    it."""

    _name, _tag_names, _template_file = RewardTrainer._name, RewardTrainer._tag_names, RewardTrainer._template_file

    def prepare_forward(self, causal) -> None:
        score_in_forward(causal)

    def scores(self, model, inputs: dict, bounded: dict) -> tuple[Tensor, Tensor]:
        if bounded:
            ends = inputs["bounds"][1 : len(inputs["shares"]) + 1] - 1
        else:
            mask = inputs["attention_mask"]
            ends = mask.sum(1) - 1 + torch.arange(len(mask), device=mask.device) * mask.shape[1]
        rest = {name: inputs[name] for name in ("attention_mask", "position_ids") if name in inputs}
        scores = model(input_ids=inputs["input_ids"], ends=ends, **rest, **bounded).logits
        return scores, torch.ones_like(scores)


def score_in_forward(model) -> None:
    """Let `model.forward` take `ends`: then `logits` are the scores, float32 [ends], of the tokens at these places of
    the flattened batch."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    plain = model.forward

    @functools.wraps(plain)
    def forward(*args, ends=None, bounds=None, longest=0, **inputs):
        if ends is None:
            return plain(*args, **inputs)
        hidden = last_hidden_state(model, bounds, longest, **inputs).flatten(0, 1)
        with torch.autocast(hidden.device.type, enabled=False):
            scores = model.score(hidden[ends.to(hidden.device).long()].float())
        return SequenceClassifierOutput(logits=scores.squeeze(-1))

    model.forward = forward


def own_arguments(config: RunConfig, causal) -> dict:
    check_balance(config, has_own_balance_loss(causal.config))
    return {"max_length": None}


STAGE = Stage("rm", RewardModelTrainer, RewardConfig, own_arguments, lambda config: {"objective": reward_objective()})
