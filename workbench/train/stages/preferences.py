"""What the stages on preferences have in common: rows of two conversations, whose loss is a joint one."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.base_trainer import _BaseTrainer

from workbench.config.options import RunConfig
from workbench.train.fast.loss import counted_tokens, sum_loss_in_forward
from workbench.train.fast.rows import IGNORE, RowBatch
from workbench.train.stages.base import WorkbenchTrainer
from workbench.train.stages.preference_losses import Answers, Objective

COLUMNS = ["input_ids", "labels", "seq_lengths", "wanted", "references"]


class PaddedPairs:
    """A collator: the conversations of rows, one below the other, padded on the right."""

    def __init__(self, pad_token: int):
        self._pad = pad_token

    def __call__(self, examples) -> dict[str, Tensor]:
        parts = RowBatch(examples).parts

        def padded(arrays, value: int) -> Tensor:
            return pad_sequence([torch.from_numpy(array) for array in arrays], batch_first=True, padding_value=value)

        ids = [part.ids for part in parts]
        return {
            "input_ids": padded(ids, self._pad),
            "labels": padded([part.labels for part in parts], IGNORE),
            "attention_mask": padded([part.ids * 0 + 1 for part in parts], 0),
            "references": torch.tensor([part.reference for part in parts], dtype=torch.float32),
            "wanted": torch.tensor([part.wanted for part in parts], dtype=torch.float32),
        }


class PreferenceTrainer(WorkbenchTrainer, _BaseTrainer):
    """Trains with an `Objective`. Rows come from `load_data` with `references` (`train/references.py`).

    TRL's own trainers of these stages tokenize by themselves, hold a second adapter as the reference, and know only
    padded batches; the losses are the same (`tests/models/test_stages.py`).
    """

    def __init__(self, *args, objective: Objective, processing_class, **kwargs):
        pad = processing_class.pad_token_id
        self.objective = objective
        collator = PaddedPairs(processing_class.eos_token_id if pad is None else pad)
        self._metrics: dict = {"train": {}, "eval": {}}
        self.aux_loss_enabled = False
        super().__init__(*args, data_collator=collator, processing_class=processing_class, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the number of rows of a step
        # added to in place, by recorded steps too
        self._sums = {mode: torch.zeros(len(objective.measures) + 1, device=self.args.device) for mode in self._metrics}
        self.prepare_forward(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model)

    def prepare_forward(self, causal) -> None:
        """Let the model give what `scores` asks for."""
        sum_loss_in_forward(causal)

    def scores(self, model, inputs: dict, bounded: dict) -> tuple[Tensor, Tensor]:
        """`(log-probabilities, tokens)` of the trained answer of each conversation, [conversations]."""
        labels = inputs["labels"]
        static = self.step_strategy.static_shapes and self.model.training and bool(bounded)
        rest = {name: inputs[name] for name in ("attention_mask", "position_ids") if name in inputs}
        losses = model(
            input_ids=inputs["input_ids"], labels=labels, per_token=True, static_shapes=static, **rest, **bounded
        ).loss
        counted = (labels[:, 1:] != IGNORE).to(losses)
        if not bounded:
            return -losses.sum(1), counted.sum(1)
        most, segments = len(inputs["shares"]), inputs["segments"][1:].to(losses.device)

        def by_conversation(values: Tensor) -> Tensor:
            return values.new_zeros(most + 1).index_add(0, segments, values[0])[:most]

        return -by_conversation(losses), by_conversation(counted)

    def _loss(self, model, inputs: dict, bounded: dict) -> Tensor:
        """Summed over the units of a micro-batch; what it measures is noted."""
        logps, counts = self.scores(model, inputs, bounded)
        shares = inputs.get("shares")
        real = (torch.ones_like(logps) if shares is None else (shares > 0).to(logps)) * inputs.get("real", 1)
        columns = [
            values.to(logps).view(-1, 2) for values in (logps, counts, inputs["references"], inputs["wanted"], real)
        ]
        loss, sums = self.objective.summed(Answers(*columns[:4], columns[4][:, 0]))
        self._sums["train" if self.model.training else "eval"] += sums.to(self.args.device)
        return loss

    def loss_of(self, inputs: dict) -> Tensor:
        self.step_strategy.begin()
        if self.balance is not None:
            self.balance.begin_joined(inputs["segments"], inputs["shares"], self.balance_scale(1.0))
        bounded = {"bounds": inputs["bounds"], "longest": self.step_strategy.shapes.longest}
        return self._loss(self.model_wrapped, inputs, bounded) * inputs["scale"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.step_strategy.begin()
        if self.balance is not None and self.model.training:
            self.balance.begin(counted_tokens(inputs), self.balance_scale())
        loss = self._loss(model, inputs, {})
        if self.model.training:
            self.count_tokens(inputs)
        units = len(inputs["wanted"]) // 2 if num_items_in_batch is None else num_items_in_batch
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is that of all processes
        return loss / torch.as_tensor(units, device=loss.device).clamp(min=1)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        units = self.real_rows(len(inputs["wanted"]) // 2)
        inputs["real"] = (torch.arange(len(inputs["wanted"])) < 2 * units).to(inputs["wanted"])
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        # the loss is the sum over those that count, divided by all
        total = float(loss) * (len(inputs["wanted"]) // 2)
        self._eval_sums += torch.tensor([total, units], dtype=torch.float64)
        return loss, None, None

    def counted(self, batch: RowBatch) -> int:
        return batch.rows

    def _get_num_items_in_batch(self, batch_samples, device):
        if batch_samples and "rows" in batch_samples[0]:
            return None
        count = torch.tensor(sum(len(batch["wanted"]) // 2 for batch in batch_samples), device=device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count.to(self.args.device)).sum()
        return count

    def _set_signature_columns_if_needed(self):
        self._signature_columns = COLUMNS

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        *sums, count = self.accelerator.reduce(self._sums[mode]).tolist()
        self._sums[mode].zero_()
        if count:
            prefix = "" if mode == "train" else "eval_"
            logs |= {f"{prefix}{name}": value for name, value in self.means(sums, count).items()}
        if mode == "train":
            logs["num_tokens"] = self.tokens_so_far()
        super().log(logs, start_time)

    def means(self, sums: list[float], count: float) -> dict[str, float]:
        """The measures of `count` units by name, from their sums."""
        return {name: value / count for name, value in zip(self.objective.measures, sums, strict=True)}


def check_balance(config: RunConfig, own_balance: bool) -> float:
    """The coefficient of transformers' own balance loss in these stages: none. Raises UserError where one is asked
    for."""
    from workbench.errors import UserError

    if config.moe_aux_loss_coef and own_balance:
        raise UserError("balance_in_stage", stage=config.stage)
    return 0.0
