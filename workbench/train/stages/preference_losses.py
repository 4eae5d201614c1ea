"""Losses of preferences, from the log-probabilities of answers: DPO (arXiv 2305.18290), its kin, KTO (2402.01306).

They are computed for all units of a micro-batch at once, two conversations each. A micro-batch may have room for more
units than it has; `real` marks those that count. Nothing waits for the GPU, so that a step can be recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.config.options import RunConfig


@dataclass
class Answers:
    """The trained answers of some units, all of shape [units, 2].

    Attributes:
        logps: summed log-probabilities. counts: tokens. references: `logps` of the reference model.
        wanted: 1 where an answer is wanted, else 0.
        real: [units], 0 for room that is not used.
    """

    logps: Tensor
    counts: Tensor
    references: Tensor
    wanted: Tensor
    real: Tensor

    def means(self) -> Tensor:
        """Log-probabilities per token, [units, 2]; -1 where there is nothing."""
        return torch.where(self.real.unsqueeze(1) > 0, self.logps / self.counts.clamp(min=1), -1.0)


# what a loss gives: that of each unit [units], and its measures [measures, units]
Losses = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss with the names of what it measures beside. `compute` returns `Losses`."""

    measures: tuple[str, ...]
    compute: Callable[[Answers], Losses]

    def summed(self, answers: Answers) -> Losses:
        """The loss summed over real units, a scalar; the sums of its measures, detached, and the number of units
        behind them."""
        losses, measures = self.compute(answers)
        real = answers.real > 0
        loss = torch.where(real, losses, 0.0).sum()
        measures = torch.where(real, measures.detach(), 0.0).sum(1)
        return loss, torch.cat([measures, answers.real.sum().unsqueeze(0)])


PAIR_MEASURES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def pair_objective(config: RunConfig) -> Objective:
    """The loss of `pref_loss` over pairs, the chosen answer first. Formulas as in TRL; ORPO (2403.07691), SimPO
    (2405.14734) and the averages of IPO (2310.12036) as in LLaMA-Factory."""
    beta, smoothing = config.pref_beta, config.dpo_label_smoothing

    def compute(answers: Answers) -> Losses:
        means = answers.means()
        free = config.pref_loss in ("orpo", "simpo")
        scores = means if free else answers.logps - answers.references
        margin = scores[:, 0] - scores[:, 1]
        if config.pref_loss == "sigmoid":
            losses = -F.logsigmoid(beta * margin) * (1 - smoothing) - F.logsigmoid(-beta * margin) * smoothing
        elif config.pref_loss == "hinge":
            losses = torch.relu(1 - beta * margin)
        elif config.pref_loss == "ipo":
            by_token = scores / answers.counts.clamp(min=1)
            losses = (by_token[:, 0] - by_token[:, 1] - 1 / (2 * beta)) ** 2
        elif config.pref_loss == "simpo":
            losses = -F.logsigmoid(beta * margin - config.simpo_gamma)
        else:
            odds = means - torch.log1p(-torch.exp(means.clamp(max=-1e-6)))
            losses = -means[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1])
        if config.pref_ftx:
            losses = losses - config.pref_ftx * means[:, 0]
        rewards = beta * scores
        better = (rewards[:, 0] > rewards[:, 1]).float()
        logps = answers.logps
        measured = (*rewards.T, better, rewards[:, 0] - rewards[:, 1], logps[:, 0], logps[:, 1])
        return losses, torch.stack(measured)

    return Objective(PAIR_MEASURES, compute)


LABELED_MEASURES = ("rewards/wanted", "rewards/unwanted", "wanted", "kl")


def labeled_objective(config: RunConfig) -> Objective:
    """KTO's loss over units of an answer and of one that belongs to another question; from the second ones, the KL
    term is estimated over the micro-batch."""
    beta = config.pref_beta

    def compute(answers: Answers) -> Losses:
        ratios = answers.logps - answers.references
        real, wanted = answers.real, answers.wanted[:, 0]
        count = real.sum().clamp(min=1)
        kl = ((ratios[:, 1].detach() * real).sum() / count).clamp(min=0)
        of_wanted = config.kto_chosen_weight * (1 - torch.sigmoid(beta * (ratios[:, 0] - kl)))
        of_others = config.kto_rejected_weight * (1 - torch.sigmoid(beta * (kl - ratios[:, 0])))
        losses = torch.where(wanted > 0, of_wanted, of_others)
        if config.pref_ftx:
            losses = losses - config.pref_ftx * wanted * answers.means()[:, 0]
        rewards = beta * ratios[:, 0]
        return losses, torch.stack((rewards * wanted, rewards * (1 - wanted), wanted, kl.expand_as(rewards)))

    return Objective(LABELED_MEASURES, compute)


def reward_objective() -> Objective:
    """The loss of a reward model over pairs of scores (Bradley-Terry), the chosen one first; scores are where
    log-probabilities are otherwise."""

    def compute(answers: Answers) -> Losses:
        chosen, rejected = answers.logps.T
        measured = (chosen, rejected, (chosen > rejected).float(), chosen - rejected)
        return -F.logsigmoid(chosen - rejected), torch.stack(measured)

    return Objective(PAIR_MEASURES[:4], compute)
