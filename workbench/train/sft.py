"""TRL's SFTTrainer, set up from a RunConfig, with what a small machine needs on top."""

import math
import time

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from workbench.config import split_names
from workbench.options import RunConfig
from workbench.runs import Run
from workbench.train.report import MetricsLog, log

_COMPILE_FROM_STEPS = 200  # shorter runs would wait longer for the compiler than they save
_LOSS_CHUNK = 512  # trained positions whose logits exist at the same time on the CPU


class WorkbenchTrainer(SFTTrainer):
    """SFTTrainer with two changes.

    TRL keeps the adapters of a quantised model in bfloat16. fp16 training needs them in float32 (gradient scaling),
    and a CPU without bfloat16 instructions computes them ten times faster so.

    TRL's fused output head scores every position on the CPU; here only those that are trained on are scored.
    """

    def __init__(self, *args, adapter_dtype=None, loraplus_lr_ratio=None, **kwargs):
        self.loraplus_lr_ratio = loraplus_lr_ratio
        super().__init__(*args, **kwargs)
        if adapter_dtype is not None:
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(adapter_dtype)

    def create_optimizer(self, *args, **kwargs):
        if self.loraplus_lr_ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = create_loraplus_optimizer(
                self.model, cls, loraplus_lr_ratio=self.loraplus_lr_ratio, **options
            )
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if inputs["input_ids"].device.type != "cpu" or return_outputs or self.aux_loss_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        base = self.accelerator.unwrap_model(model)
        causal = base.get_base_model() if hasattr(base, "get_base_model") else base
        hidden = causal.base_model(
            **{k: v for k, v in inputs.items() if k != "labels"} | {"use_cache": False}
        ).last_hidden_state
        targets = labels[:, 1:]
        mask = targets != -100
        loss = chunked_nll(hidden[:, :-1][mask], causal.get_output_embeddings(), targets[mask])
        if model.training:
            self._total_train_tokens += (
                int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else labels.numel()
            )
        self._metrics["train" if model.training else "eval"]["num_tokens"] = [self._total_train_tokens]
        count = mask.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.clamp(min=1)


def chunked_nll(hidden: torch.Tensor, head: torch.nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood without all logits at once.

    Args:
        hidden: [positions, hidden_size].
        head: the output projection, hidden_size -> vocabulary.
        targets: [positions], token ids.

    Returns:
        A scalar in float32. Each chunk's logits are computed again in the backward pass.
    """

    def nll(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(head(part).float(), wanted, reduction="sum")

    if len(targets) <= _LOSS_CHUNK:
        return nll(hidden, targets)
    parts = zip(hidden.split(_LOSS_CHUNK), targets.split(_LOSS_CHUNK), strict=True)
    return torch.stack([torch.utils.checkpoint.checkpoint(nll, *part, use_reentrant=False) for part in parts]).sum()


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

    def on_step_begin(self, args, state, control, **kwargs):
        self.metrics.step_began()

    def on_step_end(self, args, state, control, **kwargs):
        self.metrics.step_ended()
        if self.stop.requested and not control.should_training_stop:
            control.should_save = control.should_training_stop = True
            self.run.update(state="stopping", step=state.global_step, heartbeat=time.time())
        elif time.monotonic() - self._written > 1.0:
            self._written = time.monotonic()
            self.run.update(step=state.global_step, heartbeat=time.time())

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
    compiled = cuda and (
        config.torch_compile == "on" or (config.torch_compile == "auto" and total >= _COMPILE_FROM_STEPS)
    )
    if compiled:
        from workbench.models.compiled import compile_layers

        budget = 1.0 if config.disable_gradient_checkpointing else config.activation_memory_budget
        count = compile_layers(model, budget)
        log(f"{count} layers will be compiled in the first step (about a minute; later runs reuse the result).")
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
        optim=config.optim,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        neftune_noise_alpha=config.neftune_noise_alpha or None,
        seed=config.seed,
        data_seed=config.seed,
        fp16=cuda and dtype is torch.float16,
        bf16=cuda and dtype is torch.bfloat16,
        use_cpu=not cuda,
        gradient_checkpointing=not config.disable_gradient_checkpointing and not compiled,
        max_length=config.cutoff_len or None,
        packing=config.packing or config.neat_packing,
        eval_packing=False,
        eval_strategy=config.eval_strategy,
        eval_steps=config.eval_steps or config.logging_steps,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        save_strategy=config.save_strategy,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        report_to=reporters or "none",
        dataloader_num_workers=config.dataloader_num_workers,
        dataset_num_proc=config.preprocessing_num_workers,
        disable_tqdm=True,
    )
    trainer = WorkbenchTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=[ReportCallback(run, stop)],
        adapter_dtype=None if cuda and dtype is torch.bfloat16 else torch.float32,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
