"""The trainer of a run: its stage's, with the run's arguments, callbacks and way of making steps."""

import torch
from transformers.trainer_callback import PrinterCallback
from trl.trainer.utils import disable_dropout_in_model

from workbench.config.conflicts import chosen_optimizer, keeps_float32, layerwise, plain_steps
from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.aux_loss import balance_routers, has_own_balance_loss
from workbench.models.host_weights import host_weights_of
from workbench.models.quantized.experts import experts_in_halves
from workbench.models.tuning import rounds_steps
from workbench.runs.run import Run
from workbench.train import ranks
from workbench.train.arguments import common_arguments, total_steps
from workbench.train.callbacks import EarlyStopping, LossWatch, ReportCallback, Samples, check_space
from workbench.train.fast.step import FastStep
from workbench.train.fast.strategy import PlainStep, RowStep, StepStrategy, why_padded
from workbench.train.metrics_log import log
from workbench.train.optimizers import own_optimizer
from workbench.train.references import References
from workbench.train.rewards import Reward, reward_functions
from workbench.train.stages import stage
from workbench.train.stages.base import WorkbenchTrainer


def build_trainer(
    run: Run,
    config: RunConfig,
    model,
    tokenizer,
    train_rows,
    eval_rows,
    dtype: torch.dtype,
    stop,
    references: References | None = None,
    scores: Reward | None = None,
) -> WorkbenchTrainer:
    """The trainer for a run; `dtype` is what the model computes in. `references`: where the loss needs them;
    `scores`: a reward model, where answers are scored.

    Raises:
        UserError: the disk has no room for two checkpoints, there is no such stage, or an optimizer that several
            processes cannot share.
    """
    chosen = stage(config.stage)
    total = total_steps(config, 0 if config.streaming else len(train_rows))
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    balances = config.moe_aux_loss_coef and not has_own_balance_loss(causal.config)
    balance = balance_routers(causal, config.moe_aux_loss_coef) if balances else None
    whole = config.device_map == "none"  # the model is on one device

    def report(text: str) -> None:
        """What goes slower than it could: for the log and the run's page."""
        print(text, flush=True)  # each process for itself
        run.warn(text)

    if config.preferences:
        disable_dropout_in_model(model)  # two passes over an answer must give the same
        if config.lora_dropout:
            log(f"lora_dropout is off in stage {config.stage}: a reference must give the same twice.")
    if references and config.needs_reference and not references.other:
        train_rows, eval_rows = references.from_own(train_rows, eval_rows, model=model)
    plain = plain_steps(config)
    if ranks.count() > 1 and (layerwise(config) or config.use_badam):
        raise UserError("optimizer_alone", name=chosen_optimizer(config))
    apart = Message(plain) if plain else Message("model_split")
    weights = host_weights_of(causal)
    if weights is not None:
        place = "shared" if weights.shared else "host"
        config = config.model_copy(update={"weights_on": place, "cuda_graphs": "off"})
    padded = why_padded(config, causal) if whole and not plain else apart
    if ranks.count() > 1 and padded and not plain:  # accelerate's wrapped model knows nothing of recorded steps
        plain = padded = Message("padded_ranks", why=padded)
    strategy: StepStrategy
    if plain:
        strategy = PlainStep()
        report(Message("steps_plain", why=padded))
    elif torch.cuda.is_available() and whole:
        strategy = FastStep(config, model, train_rows, total, not padded, report)
    else:
        strategy = PlainStep() if padded else RowStep(config, train_rows)
    if padded and not plain:
        report(Message("rows_padded", why=padded))
    if rounds_steps(model, config):
        report(Message("whole_in_bf16"))
    if config.activation_memory == "least" and not getattr(strategy, "compiled", False):
        experts_in_halves(causal)  # compiled layers need as much elsewhere
    if weights is not None:
        seconds, gib = weights.bytes / weights.bandwidth, weights.bytes / 2**30
        told = {"gib": gib, "rate": weights.bandwidth / 1e9, "seconds": 2 * seconds}
        if weights.shared:
            report(Message("weights_shared", count=ranks.count(), **told))
        else:
            report(Message("weights_from_host", **told))
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(torch.backends.cuda.cudnn_sdp_enabled() and few_lengths(strategy))
    check_space(run, config, model, total)
    callbacks = [ReportCallback(run, stop), LossWatch(config.learning_rate)]
    if config.early_stopping_steps:
        callbacks.append(EarlyStopping(early_stopping_patience=config.early_stopping_steps))
    if config.sample_prompts:
        callbacks.append(Samples(run, config, tokenizer))
    arguments = common_arguments(run, config, total, dtype, strategy) | chosen.own_arguments(config, causal)
    options = chosen.trainer_options(config)
    if references and references.stays:
        options["held_to"] = references.model()
    if scores is not None:
        options["reward_funcs"] = reward_functions(config, scores)
    if config.deepspeed:
        from workbench.train import zero

        arguments["deepspeed"] = zero.settings(config, dtype)
        zero.share_head(causal)
    trainer = chosen.trainer(
        model=model,
        args=chosen.arguments(**arguments),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=callbacks,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        own_optimizer=own_optimizer(config),
        float32_weights=keeps_float32(config),
        step_strategy=strategy,
        balance=balance,
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def few_lengths(strategy: StepStrategy) -> bool:
    """Whether rows come in a few lengths only.

    cuDNN's attention, which PyTorch prefers on Hopper, is the quickest then. For each new length, of a batch or of an
    answer that is being written, it makes a plan (github.com/modelscope/FunASR/issues/3704), which here was seen as
    steps of 460 ms beside 110 with eager attention.
    """
    return strategy.shapes is None and bool(getattr(strategy, "pads", False))
