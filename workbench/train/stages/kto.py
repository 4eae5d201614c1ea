"""Kahneman-Tversky optimization: answers are labeled wanted or not, one by one."""

from trl import KTOConfig, KTOTrainer

from workbench.config.options import RunConfig
from workbench.models.aux_loss import has_own_balance_loss
from workbench.train.stages.base import Stage
from workbench.train.stages.preference_losses import labeled_objective
from workbench.train.stages.preferences import PreferenceTrainer, check_balance


class LabelTrainer(PreferenceTrainer):
    """A row is an answer, and one that belongs to another question."""

    _name, _tag_names, _paper = KTOTrainer._name, KTOTrainer._tag_names, KTOTrainer._paper

    def means(self, sums, count):
        wanted_rewards, other_rewards, wanted, kl = sums
        found = {"kl": kl / count}
        if wanted:
            found["rewards/chosen"] = wanted_rewards / wanted
        if count > wanted:
            found["rewards/rejected"] = other_rewards / (count - wanted)
        if len(found) == 3:
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found


def own_arguments(config: RunConfig, causal) -> dict:
    return {
        "beta": config.pref_beta,
        "max_length": None,
        "desirable_weight": config.kto_chosen_weight,
        "undesirable_weight": config.kto_rejected_weight,
        "router_aux_loss_coef": check_balance(config, has_own_balance_loss(causal.config)),
    }


STAGE = Stage("kto", LabelTrainer, KTOConfig, own_arguments, lambda config: {"objective": labeled_objective(config)})
