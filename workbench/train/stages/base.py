"""What every stage needs of its trainer: a mixin over a trainer of TRL, and the record by which the registry knows a
stage."""

import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from transformers.trainer_utils import rotate_checkpoints

from workbench.config.options import RunConfig
from workbench.models.aux_loss import Balance
from workbench.models.host_weights import host_weights_of
from workbench.runs.run import write_manifest
from workbench.train import ranks
from workbench.train.fast.rows import IGNORE, RowBatch, collate
from workbench.train.fast.strategy import PlainStep, StepStrategy
from workbench.train.float32_weights import Float32Weights, without_copies
from workbench.train.metrics_log import log


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        trainer: a `WorkbenchTrainer` over the trainer of TRL that computes this stage's loss.
        arguments: that trainer's `TrainingArguments`.
        own_arguments: from the run's options and the causal model, the arguments that only this stage has.
        trainer_options: from the run's options, what only this trainer is made with.
    """

    name: str
    trainer: type
    arguments: type
    own_arguments: Callable[[RunConfig, torch.nn.Module], dict]
    trainer_options: Callable[[RunConfig], dict] = lambda config: {}


class WorkbenchTrainer:
    """A mixin in front of a `transformers.Trainer` with these changes.

    Adapters are float32, as PEFT and LLaMA-Factory have them; TRL keeps those of a quantized model in bfloat16.
    (Optimizer steps can be smaller than bfloat16 resolves, fp16 training needs float32, and CPUs without bfloat16
    instructions compute ten times faster with it.)

    A checkpoint gets its name when all of its files are on the disk. LoRA+ groups are PEFT's. Tokens are counted where
    they are. A step goes through `step_strategy`. Where that cuts micro-batches by tokens, the dataloader gives out
    rows; all micro-batches of an optimizer step are made of them in `get_batch_samples` and go through
    `training_step` at once, in the place of the first batch.

    Several processes (`ranks.py`) then get the same rows, those of the step as one process would have them, and each
    takes its share of their tokens; accelerate does not wrap the model, since gradients are added up once in a step.
    Where batches are padded rows, they are accelerate's, and so is the wrapped model.
    """

    def __init__(
        self,
        *args,
        loraplus_lr_ratio: float | None = None,
        own_optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        float32_weights: bool = False,
        step_strategy: StepStrategy | None = None,
        balance: Balance | None = None,
        **kwargs,
    ):
        self.loraplus_lr_ratio, self.balance = loraplus_lr_ratio, balance
        self.own_optimizer, self.float32_weights = own_optimizer, float32_weights
        self.step_strategy = step_strategy or PlainStep()
        self._saving_in: Path | None = None
        self._eval_of_each: list[tuple[float, float]] | None = None  # sum of losses, and number of tokens
        super().__init__(*args, **kwargs)
        self.model.train()  # a model under new adapters says that it is training while its own modules are not
        # a recorded step must not use what an earlier one has cast
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        for name, parameter in self.model.named_parameters():
            adapter = "lora_" in name or "oft_" in name
            wider = adapter or self.args.fp16 or parameter.device.type == "cpu"
            if parameter.requires_grad and wider and not self.is_deepspeed_enabled:
                parameter.data = parameter.data.to(torch.float32)
        self._seen_tokens = {}  # device -> tokens trained on so far, counted where they are
        if not self.is_deepspeed_enabled:  # which does so itself, and may have put only a part into each process
            ranks.copy_from_first(p for p in self.model.parameters() if p.requires_grad)
        self._flos_per_token = None

    def _get_output_dir(self, trial):
        return str(self._saving_in or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial):
        """A checkpoint gets its name when all its files are on the disk: a kill while saving leaves none that looks
        whole.

        Every process writes its own part; the first one makes it whole.
        """
        folder, first = Path(self.args.output_dir), self.is_world_process_zero()
        self._saving_in = folder / ".saving"
        name = f"checkpoint-{self.state.global_step}"
        if first:
            shutil.rmtree(self._saving_in, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            best = self.state.best_model_checkpoint
            moved = bool(best) and Path(best).parent == self._saving_in
            if moved:
                self.state.best_model_checkpoint = str(folder / Path(best).name)
            self.accelerator.wait_for_everyone()
            if first:
                self._publish(self._saving_in / name, folder / name, state_changed=moved)
        finally:
            if first:
                shutil.rmtree(self._saving_in, ignore_errors=True)
            self._saving_in = None
        if first:
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )
        self.accelerator.wait_for_everyone()

    def _publish(self, fresh: Path, target: Path, *, state_changed: bool) -> None:
        if state_changed:
            self.state.save_to_json(str(fresh / "trainer_state.json"))
        write_manifest(fresh)
        if target.exists():  # at no moment is there none
            os.rename(target, fresh.parent / "old")
        os.rename(fresh, target)

    def _finalize_training(self, *args, **kwargs):
        # with a limit of 1 transformers would now delete all but the best checkpoint, the one that Stop has just saved
        # too
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def create_optimizer(self, *args, **kwargs):
        if self.own_optimizer and self.optimizer is None:
            self.optimizer = self.own_optimizer(self)
        if self.loraplus_lr_ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = create_loraplus_optimizer(
                self.model, cls, loraplus_lr_ratio=self.loraplus_lr_ratio, **options
            )
        optimizer = super().create_optimizer(*args, **kwargs)
        in_half = any(p.requires_grad and p.dtype is torch.bfloat16 for p in self.model.parameters())
        if self.float32_weights and in_half and not isinstance(optimizer, Float32Weights):
            self.optimizer = optimizer = Float32Weights(optimizer)
            log(f"Float32 copies of {sum(copy.numel() for copy in optimizer.copies):,} bfloat16 weights are stepped.")
        elif not self.is_deepspeed_enabled:  # a run may go on with pure_bf16, or on the CPU
            optimizer.register_load_state_dict_pre_hook(lambda _, state: without_copies(state))
        return optimizer

    def get_train_dataloader(self):
        if self.step_strategy.shapes is None:
            return super().get_train_dataloader()
        padded, rows = self.data_collator, self._train_batch_size
        self.data_collator, self._train_batch_size = collate, rows * ranks.count()
        try:
            loader = super().get_train_dataloader()
        finally:
            self.data_collator, self._train_batch_size = padded, rows
        if ranks.count() > 1:  # as transformers does for a sampler that knows of the processes
            loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
            loader.batch_sampler.even_batches = False
        return loader

    def _prepare_for_training(self, *args, **kwargs):
        prepare = self.accelerator.prepare_model
        asked: dict = {}
        if self.step_strategy.shapes is not None and ranks.count() > 1:
            asked["evaluation_mode"] = True  # not wrapped
        if host_weights_of(self.model) is not None:
            asked["device_placement"] = False  # all is where it is to be; a CPU with a number is another device
        self.accelerator.prepare_model = lambda model, **options: prepare(model, **(options | asked))
        try:
            return super()._prepare_for_training(*args, **kwargs)
        finally:
            self.accelerator.prepare_model = prepare

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or "rows" not in batches[0]:
            return batches, count
        rows = [batch["rows"] for batch in batches]
        cut = self.step_strategy.arrange(self, rows)
        entries = [{"micro_batches": [], "tokens": batch.tokens} for batch in rows]
        entries[0] |= {"micro_batches": cut, "first": True}
        return entries, torch.tensor(sum(map(self.counted, rows)))

    def counted(self, batch: RowBatch) -> int:
        """What the loss of a step is divided by, of one batch: trained tokens."""
        return batch.trained

    def training_step(self, model, inputs, num_items_in_batch=None):
        if "micro_batches" in inputs:
            return self._joined_step(inputs, num_items_in_batch)
        if not self.step_strategy.takes(inputs) or self.aux_loss_enabled:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self.model.training:
            self.model.train()
        inputs = self._prepare_inputs(inputs)
        self.count_tokens(inputs)
        return self.step_strategy.step(self, inputs, num_items_in_batch)

    def _joined_step(self, inputs, num_items_in_batch) -> torch.Tensor:
        """The share of a step's loss that these micro-batches have; none of them is 0."""
        if not self.model.training:
            self.model.train()
        self._seen_tokens["cpu"] = self._seen_tokens.get("cpu", 0) + inputs["tokens"]
        loss = torch.zeros((), device=self.args.device)
        for micro_batch in inputs["micro_batches"]:
            loss += self.step_strategy.step(self, micro_batch, num_items_in_batch)
        if inputs.get("first"):
            ranks.add_up_gradients(self.model.parameters())
        return loss * ranks.count()  # of the shares of a loss transformers logs the mean

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        """Of several datasets, also the loss over all: the mean over their trained tokens."""
        if not isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            return super().evaluate(eval_dataset, *args, **kwargs)
        self._eval_of_each = parts = []
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        self._eval_of_each = None
        if tokens := sum(count for _, count in parts):
            metrics["eval_loss"] = sum(total for total, _ in parts) / tokens
            self.log({name: value for name, value in metrics.items() if name.endswith("_loss")})
            # those of each dataset could not tell what is best
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """As transformers', but the loss is the mean over all trained tokens. Its own is that of the batches,
        which depends on how rows fall into batches."""
        self._eval_sums = torch.zeros(2, dtype=torch.float64)  # of the losses, of the tokens
        rows = getattr(dataloader, "dataset", None)
        self._eval_rows, self._eval_batches = len(rows) if hasattr(rows, "__len__") else sys.maxsize, 0
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        losses, tokens = self.accelerator.reduce(self._eval_sums.to(self.args.device, torch.float32)).tolist()
        if tokens and f"{metric_key_prefix}_loss" in output.metrics:
            output.metrics[f"{metric_key_prefix}_loss"] = losses / tokens
            if self._eval_of_each is not None:
                self._eval_of_each.append((losses, tokens))
        return output

    def real_rows(self, rows: int) -> int:
        """How many of the rows of this process's next evaluation batch count: accelerate fills up the last ones with
        rows from the start, so that all processes have as many batches."""
        at, self._eval_batches = self._eval_batches, self._eval_batches + 1
        if ranks.count() == 1:
            return rows
        first = (at * ranks.count() + ranks.rank()) * self.args.eval_batch_size
        return min(rows, max(0, self._eval_rows - first))

    def _leave_out_fillers(self, inputs: dict) -> None:
        """Of a batch of padded rows [rows, length], or of rows laid end to end [1, tokens], only those that count."""
        labels, places = inputs["labels"], inputs.get("position_ids")
        starts = None if places is None or len(labels) > 1 else (places[0] == 0).nonzero()[:, 0].tolist()
        rows = len(labels) if starts is None else len(starts)
        if (real := self.real_rows(rows)) == rows:
            return
        if starts is None:
            labels[real:] = IGNORE
        else:
            labels[:, starts[real] :] = IGNORE

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if "labels" in inputs:
            self._leave_out_fillers(inputs)
        trained = int((inputs["labels"][:, 1:] != -100).sum()) if "labels" in inputs else 0
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None and math.isfinite(mean := float(loss.mean())):
            self._eval_sums += torch.tensor([mean * trained, trained], dtype=torch.float64)
        return loss, logits, labels

    def _get_num_items_in_batch(self, batch_samples, device):
        if batch_samples and "rows" in batch_samples[0]:
            return None
        # counted and kept on the CPU: moving a number to the GPU waits for all that the GPU still has to do
        return super()._get_num_items_in_batch(
            batch_samples, torch.device("cpu") if self.step_strategy.counts_on_cpu else device
        )

    def loss_of(self, inputs: dict) -> torch.Tensor:
        """Forward pass of a step that may be recorded: no waiting for the GPU, shapes known in advance. A stage with a
        fast step has one."""
        raise NotImplementedError

    def balance_scale(self, share: float | None = None) -> torch.Tensor | float:
        """What the balance loss of one micro-batch counts in the gradients of a step, a fp16 scaler's factor
        included. The share is that of one of a step's padded batches if none is given."""
        if share is None:
            share = 1 / getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        scaler = self.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return share
        return scaler.scale(torch.full((), share, device=self.args.device))

    def tokens_so_far(self) -> int:
        """Tokens that were trained on, by all processes."""
        own = int(sum(int(n) for n in self._seen_tokens.values()))
        return own if self.step_strategy.shapes is not None else sum(ranks.gathered(own))

    def count_tokens(self, inputs) -> None:
        mask = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
        device = inputs["input_ids"].device
        self._seen_tokens[device] = self._seen_tokens.get(device, 0) + tokens

    def log(self, logs, start_time=None):
        if not self.aux_loss_enabled:
            self._total_train_tokens = self.tokens_so_far()
            self._metrics["train" if self.model.training else "eval"]["num_tokens"] = [self._total_train_tokens]
        if self.balance is not None and "loss" in logs:
            total, count = map(sum, zip(*ranks.gathered(self.balance.take()), strict=True))
            if count:
                logs["aux_loss"] = total / count
        if not math.isfinite(logs.get("loss", 0.0)):
            self._tr_loss.zero_()  # transformers takes the sum away from itself, which leaves NaN in all that follow
        super().log(logs, start_time)

    def floating_point_ops(self, inputs) -> float:
        """As transformers estimates it, which counts all parameters in every step; here once."""
        if self._flos_per_token is None:
            self._flos_per_token = super().floating_point_ops({"input_ids": torch.empty(1, 1)})
        return self._flos_per_token * (inputs["tokens"] if "tokens" in inputs else inputs["input_ids"].numel())
