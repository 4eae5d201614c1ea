"""TRL's SFTTrainer, set up from a RunConfig, with what a small machine needs on top."""

import math
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import AutocastKwargs
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer

from workbench.config.options import RunConfig
from workbench.config.run_config import split_names
from workbench.errors import NothingLeft
from workbench.models.aux_loss import Balance, balance_routers, has_own_balance_loss
from workbench.runs.run import Run, write_manifest
from workbench.train.callbacks import EarlyStopping, LossWatch, Samples, check_space
from workbench.train.fast.cross_entropy import linear_cross_entropy, logit_adjustment
from workbench.train.fast.masks import one_sequence_per_row
from workbench.train.fast.step import Speed
from workbench.train.fast.step_graph import padded_length
from workbench.train.metrics_log import MetricsLog

_PLAIN_INPUTS = {"input_ids", "labels", "attention_mask"}


class WorkbenchTrainer(SFTTrainer):
    """SFTTrainer with these changes.

    TRL keeps the adapters of a quantised model in bfloat16; here they are float32, as PEFT and LLaMA-Factory have them
    (their optimiser steps can be smaller than bfloat16 resolves, fp16 training needs them so, and CPUs without bfloat16
    instructions compute ten times faster with them).

    TRL's fused output head computes the logits twice and waits for the GPU in every step. Here it is `models/head.py`.

    With `speed`, a step may be replayed from a recording, and its batch is padded to a length that has one.
    """

    def __init__(
        self, *args, loraplus_lr_ratio=None, speed: Speed | None = None, balance: Balance | None = None, **kwargs
    ):
        self.loraplus_lr_ratio, self.speed, self.balance = loraplus_lr_ratio, speed, balance
        self._saving_in: Path | None = None
        super().__init__(*args, **kwargs)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and ("lora_" in name or self.args.fp16 or parameter.device.type == "cpu"):
                parameter.data = parameter.data.to(torch.float32)
        self._seen_tokens = {}  # device -> tokens trained on so far, counted where they are
        self._flos_per_token = None

    def _get_output_dir(self, trial):
        return str(self._saving_in or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial):
        """A checkpoint gets its name when all its files are on the disk: a kill while saving leaves none that looks whole."""
        folder = Path(self.args.output_dir)
        self._saving_in = folder / ".saving"
        name = f"checkpoint-{self.state.global_step}"
        shutil.rmtree(self._saving_in, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            fresh = self._saving_in / name
            best = self.state.best_model_checkpoint
            if best and Path(best).parent == self._saving_in:
                self.state.best_model_checkpoint = str(folder / Path(best).name)
                self.state.save_to_json(str(fresh / "trainer_state.json"))
            write_manifest(fresh)
            if (folder / name).exists():  # at no moment is there none
                os.rename(folder / name, self._saving_in / "old")
            os.rename(fresh, folder / name)
        finally:
            shutil.rmtree(self._saving_in, ignore_errors=True)
            self._saving_in = None
        rotate_checkpoints(
            output_dir=str(folder), save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint, use_mtime=False)  # fmt: skip

    def _finalize_training(self, *args, **kwargs):
        # with a limit of 1 transformers would now delete all but the best checkpoint, the one that Stop has just saved too
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def create_optimizer(self, *args, **kwargs):
        if self.loraplus_lr_ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = create_loraplus_optimizer(
                self.model, cls, loraplus_lr_ratio=self.loraplus_lr_ratio, **options
            )
        return super().create_optimizer(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.speed is None or not set(inputs) <= _PLAIN_INPUTS or self.aux_loss_enabled:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self.model.training:
            self.model.train()
        inputs = self._prepare_inputs(inputs)
        self._count_tokens(inputs)
        length = inputs["input_ids"].shape[1]
        missing = padded_length(length) - length if self.speed.pads else 0
        labels = inputs["labels"]
        if num_items_in_batch is None:
            count = labels[:, 1:].ne(-100).sum().clamp(min=1)
            scale = 1 / (count * self.current_gradient_accumulation_steps)
        else:
            scale = torch.full((), 1 / max(1, int(num_items_in_batch)), device=labels.device)
        padded = {
            "input_ids": F.pad(inputs["input_ids"], (0, missing)),
            "labels": F.pad(labels, (0, missing), value=-100),
            "scale": scale,
        }
        if self.balance is not None:
            padded["counted"] = F.pad(_counted(inputs), (0, missing))
        return self.speed.step(self, padded)

    def _get_num_items_in_batch(self, batch_samples, device):
        # counted and kept on the CPU: moving a number to the GPU waits for all that the GPU still has to do
        return super()._get_num_items_in_batch(batch_samples, torch.device("cpu") if self.speed is not None else device)

    def loss_of(self, inputs: dict) -> torch.Tensor:
        """Forward pass of a step that may be recorded: no waiting for the GPU, shapes known in advance."""
        self.speed.begin()
        if self.balance is not None:
            self.balance.begin(inputs["counted"], self._balance_scale())
        return self._summed_loss(inputs["input_ids"], inputs["labels"]) * inputs["scale"]

    def _balance_scale(self) -> torch.Tensor | float:
        """What the balance loss of one micro-batch counts in the gradients of a step, a fp16 scaler's factor included."""
        share = 1 / getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        scaler = self.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return share
        return scaler.scale(torch.full((), share, device=self.args.device))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.speed is not None:
            self.speed.begin()
        if return_outputs or self.aux_loss_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.balance is not None and self.model.training:
            positions = inputs.get("position_ids")
            starts = None if positions is None else positions == 0
            self.balance.begin(_counted(inputs), self._balance_scale(), starts)
        labels = inputs["labels"]
        rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "labels")}
        loss = self._summed_loss(inputs["input_ids"], labels, **rest)
        if self.model.training:
            self._count_tokens(inputs)
        count = labels[:, 1:].ne(-100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.clamp(min=1).to(loss.device)

    def _summed_loss(self, input_ids, labels, **rest) -> torch.Tensor:
        base = self.accelerator.unwrap_model(self.model)
        causal = base.get_base_model() if hasattr(base, "get_base_model") else base
        on_gpu = input_ids.device.type == "cuda"
        masks = nullcontext()
        if on_gpu and set(rest) <= {"attention_mask"}:
            rest, masks = {}, one_sequence_per_row()  # padding is on the right, where no token looks
        with (
            masks,
            self.accelerator.autocast(AutocastKwargs(cache_enabled=False)),
        ):  # a recorded step must not use a cache
            hidden = causal.base_model(input_ids=input_ids, use_cache=False, **rest).last_hidden_state
        head = causal.get_output_embeddings()
        hidden, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        if not on_gpu or not self.model.training or self.speed is None:  # leave out what is not trained on
            chosen = targets != -100
            hidden, targets = hidden[chosen], targets[chosen]
        return linear_cross_entropy(hidden.to(head.weight.device), head, targets.to(head.weight.device),
                                    *logit_adjustment(causal.config))  # fmt: skip

    def _count_tokens(self, inputs) -> None:
        mask = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
        place = inputs["input_ids"].device
        self._seen_tokens[place] = self._seen_tokens.get(place, 0) + tokens

    def log(self, logs, start_time=None):
        if not self.aux_loss_enabled:
            self._total_train_tokens = int(sum(int(n) for n in self._seen_tokens.values()))
            self._metrics["train" if self.model.training else "eval"]["num_tokens"] = [self._total_train_tokens]
        if self.balance is not None and "loss" in logs and (balance := self.balance.take()) is not None:
            logs["aux_loss"] = balance
        if not math.isfinite(logs.get("loss", 0.0)):
            self._tr_loss.zero_()  # transformers takes the sum away from itself, which leaves NaN in all that follow
        super().log(logs, start_time)

    def floating_point_ops(self, inputs) -> float:
        """As transformers estimates it, which counts all parameters in every step; here once."""
        tokens = inputs["input_ids"].numel()
        if self._flos_per_token is None:
            self._flos_per_token = super().floating_point_ops(inputs) / max(1, tokens)
        return self._flos_per_token * tokens


def _counted(inputs) -> torch.Tensor:
    """[batch, length], 0 for padding."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask


class ReportCallback(TrainerCallback):
    """Writes the run's files while training, and obeys a request to stop."""

    def __init__(self, run: Run, stop):
        self.run, self.stop = run, stop
        self.metrics = MetricsLog(run)
        self._written = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.metrics = MetricsLog(self.run)
        self.metrics.first_step = state.global_step
        self.run.update(step=state.global_step, total_steps=state.max_steps, heartbeat=time.time())
        if 0 < state.max_steps <= state.global_step:
            raise NothingLeft

    def on_step_begin(self, args, state, control, **kwargs):
        self.metrics.step_began()

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the GPU may be steps behind
            self.metrics.pause()
        if self.stop.requested and not control.should_training_stop:
            control.should_save = control.should_training_stop = True
            self.run.update(state="stopping", step=state.global_step, heartbeat=time.time())
        elif time.monotonic() - self._written > 1.0:
            self._written = time.monotonic()
            self.run.update(step=state.global_step, heartbeat=time.time())

        if control.should_save:  # the sum since the last line is not part of a checkpoint
            control.should_log = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stop.requested:  # the checkpoint is saved already
            control.should_save = control.should_evaluate = control.should_log = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and ("loss" in logs or "eval_loss" in logs):
            self.metrics.write(logs, state.global_step, state.max_steps, state.epoch or 0.0)


def build_trainer(
    run: Run, config: RunConfig, model, tokenizer, train_rows, eval_rows, dtype, stop
) -> WorkbenchTrainer:
    """The trainer for a run; `dtype` is what the model computes in."""
    cuda = torch.cuda.is_available()
    steps = math.ceil(len(train_rows) / (config.per_device_train_batch_size * config.gradient_accumulation_steps))
    total = config.max_steps if config.max_steps > 0 else math.ceil(steps * config.num_train_epochs)
    scheduler = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": max(1, total // 10)},
    }.get(config.lr_scheduler_type)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    own_balance = has_own_balance_loss(causal.config)
    balance = (
        balance_routers(causal, config.moe_aux_loss_coef) if config.moe_aux_loss_coef and not own_balance else None
    )
    speed = Speed(config, model, train_rows, total) if cuda and config.device_map == "none" else None
    check_space(run, config, model, total)
    callbacks = [ReportCallback(run, stop), LossWatch(config.learning_rate)]
    if config.early_stopping_steps:
        callbacks.append(EarlyStopping(early_stopping_patience=config.early_stopping_steps))
    if config.sample_prompts:
        callbacks.append(Samples(run, config, tokenizer))
    reporters = [name for name in split_names(config.report_to) if name != "none"]
    arguments = SFTConfig(
        output_dir=str(run.path),
        run_name=config.run_name or run.id,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps if config.max_steps > 0 else -1,
        lr_scheduler_type=config.lr_scheduler_type,
        lr_scheduler_kwargs=scheduler,
        warmup_steps=config.warmup_steps or config.warmup_ratio,
        # the same arithmetic in one kernel
        optim="adamw_torch_fused" if cuda and config.optim == "adamw_torch" else config.optim,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        router_aux_loss_coef=(config.moe_aux_loss_coef or 0.0) if own_balance else None,
        neftune_noise_alpha=config.neftune_noise_alpha or None,
        seed=config.seed,
        data_seed=config.seed,
        fp16=cuda and dtype is torch.float16,
        # a 4-bit model is in bfloat16 as it is; autocast would only take its float32 parts (routers) down to that
        bf16=cuda and dtype is torch.bfloat16 and (speed is None or speed.mixed),
        use_cpu=not cuda,
        gradient_checkpointing=not config.disable_gradient_checkpointing and not (speed and speed.compiled),
        # `load_data` has tokenised, cut and packed the rows; what TRL still needs to know of packing is how to collate them
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=config.cutoff_len or None,
        packing=config.packing or config.neat_packing,
        eval_packing=False,
        eval_strategy=config.eval_strategy,
        eval_steps=config.eval_steps or config.logging_steps,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a loss that is not a number, and waits for the GPU in every step
        save_strategy=config.save_strategy,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        metric_for_best_model="eval_loss" if config.eval_strategy != "no" else None,
        greater_is_better=False if config.eval_strategy != "no" else None,
        report_to=reporters or "none",
        accelerator_config={
            "non_blocking": True
        },  # the copy of a batch to the GPU must not wait for the step before it
        dataloader_num_workers=config.dataloader_num_workers,
        disable_tqdm=True,
    )
    trainer = WorkbenchTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=callbacks,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        speed=speed,
        balance=balance,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
