"""The run's options as `transformers.TrainingArguments`: those that every stage has."""

import math

import torch

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.runs.run import Run
from workbench.train import ranks
from workbench.train.fast.strategy import StepStrategy


def total_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of a run over so many rows."""
    rows_of_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * ranks.count()
    steps = math.ceil(rows / rows_of_step)
    return config.max_steps if config.max_steps > 0 else math.ceil(steps * config.num_train_epochs)


def save_steps(config: RunConfig, total: int) -> int:
    """Steps between checkpoints; where the best is taken at the end, a multiple of those between evaluations."""
    if not config.load_best_model_at_end:
        return config.every("save_steps", total)
    often = config.every("eval_steps", total)
    return often * max(1, round(config.save_steps / (config.eval_steps or config.logging_steps)))


def common_arguments(run: Run, config: RunConfig, total: int, dtype: torch.dtype, strategy: StepStrategy) -> dict:
    """Keyword arguments of any stage's `TrainingArguments`. `dtype` is what the model computes in, `total` the number
    of steps."""
    cuda = torch.cuda.is_available()
    scheduler = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": max(1, total // 10)},
    }.get(config.lr_scheduler_type)
    reporters = [name for name in split_names(config.report_to) if name != "none"]
    return {
        "output_dir": str(run.path),
        "run_name": config.run_name or run.id,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps if config.max_steps > 0 else -1,
        "lr_scheduler_type": config.lr_scheduler_type,
        "lr_scheduler_kwargs": scheduler,
        "warmup_steps": config.warmup_steps or config.warmup_ratio,
        # the same arithmetic in one kernel
        "optim": "adamw_torch_fused" if cuda and config.optim == "adamw_torch" else config.optim,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "neftune_noise_alpha": config.neftune_noise_alpha or None,
        "train_sampling_strategy": "sequential" if config.disable_shuffling else "random",
        "seed": config.seed,
        "data_seed": config.seed,
        "fp16": cuda and dtype is torch.float16,
        # a 4-bit model is in bfloat16 as it is; autocast would only take its float32 parts (routers) down to that
        "bf16": cuda and dtype is torch.bfloat16 and strategy.mixed,
        "use_cpu": not cuda,
        "gradient_checkpointing": not config.disable_gradient_checkpointing and not strategy.compiled,
        # asking for the state of random numbers is nothing that can be recorded
        "gradient_checkpointing_kwargs": {"use_reentrant": False, "preserve_rng_state": not strategy.replays},
        "eval_strategy": config.eval_strategy,
        "eval_steps": config.every("eval_steps", total),
        "logging_steps": config.every("logging_steps", total),
        "logging_first_step": True,
        # it would hide a loss that is not a number, and waits for the GPU in every step
        "logging_nan_inf_filter": False,
        "save_strategy": config.save_strategy,
        "save_steps": save_steps(config, total),
        "load_best_model_at_end": config.load_best_model_at_end,
        "save_total_limit": config.save_total_limit,
        "metric_for_best_model": "eval_loss" if config.eval_strategy != "no" else None,
        "greater_is_better": False if config.eval_strategy != "no" else None,
        "report_to": reporters or "none",
        "accelerator_config": {"non_blocking": True},  # copying a batch to the GPU must not wait for the step before it
        "ddp_backend": "gloo" if ranks.count() > 1 and not cuda else None,
        "dataloader_num_workers": config.dataloader_num_workers,
        "disable_tqdm": True,
    }
