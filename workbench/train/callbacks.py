"""What happens beside the steps of a run: its files, a loss that goes wrong, answers to sample prompts, room on the
disk."""

import json
import math
import shutil
import statistics
import time
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from workbench.config.conflicts import keeps_float32
from workbench.config.options import RunConfig
from workbench.errors import NothingLeft, UserError
from workbench.messages.message import Message
from workbench.models.ends import end_tokens
from workbench.models.host_weights import host_weights_of
from workbench.runs.run import Run
from workbench.train import ranks
from workbench.train.metrics_log import MetricsLog, log, own_devices

_GIB = 2**30
_LOOK_BACK = 5  # logged losses whose mean is compared
_DIVERGED = 3.0  # times the lowest such mean, and one more


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
        self.stop.requested = ranks.agree(self.stop.requested)  # all of them stop after the same step
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
        if not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        devices = ranks.gathered(own_devices())
        if state.is_world_process_zero:
            self.metrics.write(logs, state.global_step, state.max_steps, state.epoch or 0.0, devices)


class EarlyStopping(EarlyStoppingCallback):
    """transformers', which forgets over a resume how many evaluations were without progress."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(stored, dict):
            self.early_stopping_patience_counter = stored["attributes"]["early_stopping_patience_counter"]

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if "eval_loss" in (metrics or {}):  # not of one of several datasets
            super().on_evaluate(args, state, control, metrics=metrics, **kwargs)


class LossWatch(TrainerCallback):
    """Ends a run whose loss is not a number, twice in a row, or has grown far above what it was (`UserError`)."""

    def __init__(self, learning_rate: float):
        self._rate, self._losses, self._bad = learning_rate, [], 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        advice = Message("loss_advice", rate=self._rate)
        self._bad = 0 if math.isfinite(loss) else self._bad + 1
        if self._bad >= 2:
            raise UserError("loss_nan", step=state.global_step - args.logging_steps, advice=advice)
        if self._bad:
            control.should_save = False  # no checkpoint of weights that may be broken
            return
        self._losses.append(loss)
        if len(self._losses) < 2 * _LOOK_BACK:
            return
        means = [statistics.fmean(self._losses[i : i + _LOOK_BACK]) for i in range(len(self._losses) - _LOOK_BACK + 1)]
        lowest = min(means)
        self._losses = self._losses[-200:]
        if means[-1] > _DIVERGED * lowest + 1:
            raise UserError("loss_diverges", loss=means[-1], step=state.global_step, lowest=lowest, advice=advice)

    def on_train_end(self, args, state, control, **kwargs):
        if self._bad:
            raise UserError("loss_nan_end")


class Samples(TrainerCallback):
    """At each evaluation (or, without any, each checkpoint) the model answers the run's sample prompts, greedily.

    One line for each answer goes to `samples.jsonl`: `current_steps`, `prompt`, `answer`.
    """

    def __init__(self, run: Run, config: RunConfig, tokenizer):
        self._run, self._file = run, run.path / "samples.jsonl"
        self._prompts = [line.strip() for line in (config.sample_prompts or "").splitlines() if line.strip()]
        self._length, self._tokenizer = config.sample_max_new_tokens, tokenizer
        self._evaluates = config.eval_strategy != "no"

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._answer(model, 0)

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        if "eval_loss" in (metrics or {}):  # not of one of several datasets
            self._answer(model, state.global_step)

    def on_save(self, args, state, control, model=None, **kwargs):
        if not self._evaluates:
            self._answer(model, state.global_step)

    def _answer(self, model, step: int) -> None:
        together = (weights := host_weights_of(model)) is not None and weights.shared  # gathered by all at once
        if not (self._run.writes or together):
            return
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                for prompt in self._prompts:
                    ids = self._tokenizer.apply_chat_template(
                        [{"role": "user", "content": prompt}],
                        add_generation_prompt=True,
                        return_tensors="pt",
                        return_dict=True,
                    ).to(model.device)
                    out = model.generate(
                        **ids,
                        max_new_tokens=self._length,
                        do_sample=False,
                        synced_gpus=together,
                        pad_token_id=self._tokenizer.pad_token_id,
                        eos_token_id=end_tokens(model, self._tokenizer),  # where chat stops, too
                    )
                    if not self._run.writes:
                        continue
                    answer = self._tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
                    with open(self._file, "a", encoding="utf-8") as file:
                        row = {"current_steps": step, "prompt": prompt, "answer": answer}
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        finally:
            model.train(training)
        log(f"Answered {len(self._prompts)} sample prompts at step {step}.")


def check_space(run: Run, config: RunConfig, model, total_steps: int) -> None:
    """Say so if the checkpoints of a run will not fit on the disk.

    A checkpoint holds the trained weights, their float32 copies, and for AdamW two moments of each (one to four bytes a
    value).

    Raises:
        UserError: not even two fit, one being saved while the last is still there.
    """
    sizes = [(getattr(p, "ds_numel", p.numel()), p.element_size()) for p in model.parameters() if p.requires_grad]
    weights = sum(count * each for count, each in sizes)
    moments = sum(count for count, _ in sizes) * (2 if "8bit" in config.optim else 8)
    copies = sum(4 * count for count, each in sizes if each == 2) if keeps_float32(config) else 0
    one = weights + copies + (moments if "adam" in config.optim else 0) + (8 << 20)
    count = 1
    if config.save_strategy == "steps":
        count = math.ceil(total_steps / config.every("save_steps", total_steps))
    elif config.save_strategy == "epoch":
        count = math.ceil(config.num_train_epochs)
    count = min(count, (config.save_total_limit or count) + 1)
    free = shutil.disk_usage(Path(run.path)).free
    need = Message("checkpoints_need", count=count, size=one / _GIB)
    if free < 2 * one:
        raise UserError("disk_too_small", free=free / _GIB, need=need)
    if free < count * one + weights:
        warning = Message("disk_may_fill", free=free / _GIB, need=need)
        log(f"Warning: {warning}")
        run.warn(warning)
