"""Direct preference optimization and its kin: of two answers, the chosen one becomes more likely."""

from trl import DPOConfig, DPOTrainer

from workbench.config.options import RunConfig
from workbench.models.aux_loss import has_own_balance_loss
from workbench.train.stages.base import Stage
from workbench.train.stages.preference_losses import pair_objective
from workbench.train.stages.preferences import PreferenceTrainer, check_balance


class PairTrainer(PreferenceTrainer):
    """Chosen and rejected answer go through the model in one pass."""

    _name, _tag_names, _paper = DPOTrainer._name, DPOTrainer._tag_names, DPOTrainer._paper


def own_arguments(config: RunConfig, causal) -> dict:
    return {
        "beta": config.pref_beta,
        "max_length": None,
        "router_aux_loss_coef": check_balance(config, has_own_balance_loss(causal.config)),
    }


STAGE = Stage("dpo", PairTrainer, DPOConfig, own_arguments, lambda config: {"objective": pair_objective(config)})
