"""Supervised fine-tuning, on TRL's `SFTTrainer`."""

from contextlib import nullcontext

import torch
from trl import SFTConfig, SFTTrainer

from workbench.config.options import RunConfig
from workbench.models.aux_loss import has_own_balance_loss
from workbench.train.fast.held import Held
from workbench.train.fast.loss import counted_tokens, sum_loss_in_forward
from workbench.train.fast.token_weights import Weigh, token_weights
from workbench.train.stages.base import Stage, WorkbenchTrainer


class SupervisedTrainer(WorkbenchTrainer, SFTTrainer):
    """The loss is summed inside the model's own forward pass (`fast/loss.py`): TRL's fused head computes the logits
    twice and waits for the GPU in every step.

    `weigh` weighs the tokens that are trained; an evaluation counts them all the same, so that its loss can be
    compared with that of other runs. `held_by` weighs the divergence from a reference beside it (ASFT), which is
    `held_to`, or the model without its adapters.
    """

    def __init__(self, *args, weigh: Weigh | None = None, held_by: float | None = None, held_to=None, **kwargs):
        self.weigh, self.held = weigh, None
        super().__init__(*args, **kwargs)
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        sum_loss_in_forward(causal)
        if held_by is not None:
            off = getattr(self.model, "disable_adapter", nullcontext)
            self.held = Held(held_by, causal, off, held_to)

    def loss_of(self, inputs: dict) -> torch.Tensor:
        self.step_strategy.begin()
        joined = {}
        if "bounds" in inputs:
            joined = {"position_ids": inputs["position_ids"], "bounds": inputs["bounds"]}
            joined["longest"] = self.step_strategy.shapes.longest
            if self.balance is not None:
                self.balance.begin_joined(inputs["segments"], inputs["shares"], self.balance_scale(1.0))
        elif self.balance is not None:
            self.balance.begin(inputs["counted"], self.balance_scale())
        loss = self._summed_loss(self.model_wrapped, inputs["input_ids"], inputs["labels"], **joined)
        return loss * inputs["scale"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.step_strategy.begin()
        if return_outputs or self.aux_loss_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.balance is not None and self.model.training:
            positions = inputs.get("position_ids")
            starts = None if positions is None else positions == 0
            self.balance.begin(counted_tokens(inputs), self.balance_scale(), starts)
        labels = inputs["labels"]
        rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "labels")}
        loss = self._summed_loss(model, inputs["input_ids"], labels, **rest)
        if self.model.training:
            self.count_tokens(inputs)
        count = labels[:, 1:].ne(-100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = (
                loss * self.accelerator.num_processes
            )  # the count is that of all processes, whose gradients are averaged
        return loss / count.clamp(min=1).to(loss.device)

    def _summed_loss(self, model, input_ids, labels, **rest) -> torch.Tensor:
        static = self.step_strategy.static_shapes and self.model.training
        if self.weigh is not None and self.model.training:
            rest["weigh"] = self.weigh
        if self.held is not None and self.model.training:
            rest["held"] = self.held
        return model(input_ids=input_ids, labels=labels, sum_loss=True, static_shapes=static, **rest).loss


def own_arguments(config: RunConfig, causal) -> dict:
    """`load_data` has tokenized, cut and packed the rows; what TRL still needs to know of packing is how to collate
    them."""
    return {
        "router_aux_loss_coef": (config.moe_aux_loss_coef or 0.0) if has_own_balance_loss(causal.config) else None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": config.cutoff_len or None,
        "packing": config.packs,
        "eval_packing": False,
    }


def own_options(config: RunConfig) -> dict:
    """How a run weighs its tokens."""
    return {"weigh": token_weights(config), "held_by": config.asft_alpha if config.use_asft_loss else None}


STAGE = Stage("sft", SupervisedTrainer, SFTConfig, own_arguments, own_options)
