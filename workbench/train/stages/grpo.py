"""Group relative policy optimization (arXiv 2402.03300): the model answers a question several times, rewards tell which
answers were better than the others. TRL's own trainer; its steps write text, so they are not recorded."""

from trl import GRPOConfig, GRPOTrainer

from workbench.config.options import RunConfig
from workbench.models.aux_loss import has_own_balance_loss
from workbench.train.rewards import reward_functions
from workbench.train.stages.base import Stage, WorkbenchTrainer
from workbench.train.stages.preferences import check_balance

_NAMES = {"completions/mean_length": "completion_length"}


class GroupTrainer(WorkbenchTrainer, GRPOTrainer):
    """TRL's trainer, with checkpoints that are whole or not there.

    A question is asked as the workbench renders it, tools and earlier calls included (`data/prompts.py`); TRL knows
    only tools that it calls itself, the same for all rows.
    """

    def _generate_and_score_completions(self, inputs):
        self._rendered = [row["rendered"] for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts):
        if len(prompts) != len(self._rendered):
            raise RuntimeError("TRL asks other questions than those of its batch")
        return self.processing_class(self._rendered, add_special_tokens=False)["input_ids"], None, {}

    def evaluation_loop(self, *args, **kwargs):
        return GRPOTrainer.evaluation_loop(self, *args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        return GRPOTrainer.prediction_step(self, *args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        return GRPOTrainer.training_step(self, model, inputs, num_items_in_batch)

    def floating_point_ops(self, inputs) -> float:
        return 0.0  # the batch holds questions; how long the answers become is not known yet

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["prompt", "answer", "rendered", "question"]

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        for theirs, ours in _NAMES.items():
            if values := self._metrics[mode].get(theirs):
                self._metrics[mode][ours] = list(values)
        GRPOTrainer.log(self, logs, start_time)


def own_arguments(config: RunConfig, causal) -> dict:
    weights = [float(part) for part in (config.reward_weights or "").split(",") if part.strip()]
    return {
        "num_generations": config.num_generations,
        "max_completion_length": config.max_completion_length,
        "temperature": config.sampling_temperature,
        "beta": config.grpo_beta,
        "reward_weights": weights or None,
        "router_aux_loss_coef": check_balance(config, has_own_balance_loss(causal.config)),
    }


STAGE = Stage(
    "grpo", GroupTrainer, GRPOConfig, own_arguments, lambda config: {"reward_funcs": reward_functions(config)}
)
