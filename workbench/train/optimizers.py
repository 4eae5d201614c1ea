"""Optimizers beside those of `optim`: GaLore, APOLLO, BAdam, Adam-mini (their authors' packages) and Muon (PyTorch's).

Which parameters each of them takes, and the meaning of the options, are LLaMA-Factory's.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from workbench.config.conflicts import chosen_optimizer
from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.train.float32_weights import without_copies
from workbench.train.metrics_log import log


def own_optimizer(config: RunConfig) -> Callable[[Any], torch.optim.Optimizer] | None:
    """From a trainer, the optimizer that `use_…` asks for; None where `optim` says it.

    Raises (the function):
        UserError: names of layers that the model does not have.
    """
    chosen = chosen_optimizer(config)
    makers = {"galore": _galore, "apollo": _apollo, "badam": _badam, "adam_mini": _adam_mini, "muon": _muon}
    if not chosen:
        return None
    return lambda trainer: makers[chosen](trainer, config)


def target_parameters(model, wanted: str, option: str) -> list[nn.Parameter]:
    """Trained matrices of the linear layers that a list of names means; `all`: but for the output head.

    Raises:
        UserError: there are none.
    """
    head = model.get_output_embeddings()
    names = split_names(wanted)
    found, known = [], set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not module.weight.requires_grad or module.weight.ndim != 2:
            continue
        known.add(name.rpartition(".")[2])
        if (module is not head) if "all" in names else any(part in name for part in names):
            found.append(module.weight)
    if not found:
        raise UserError("optimizer_target", option=option, value=wanted, known=sorted(known))
    return list(dict.fromkeys(found))


def _low_rank(trainer, cls, options: dict, targets: list[nn.Parameter], projection: dict, layerwise: bool):
    """Groups of targets with `projection`, of other weights with decay, and of those without."""
    trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    decaying = set(trainer.get_decay_parameter_names(trainer.model))
    special = {id(p) for p in targets}
    decay = trainer.args.weight_decay
    groups = [
        {"params": [p for n, p in trained if id(p) not in special and n not in decaying], "weight_decay": 0.0},
        {"params": [p for n, p in trained if id(p) not in special and n in decaying], "weight_decay": decay},
        {"params": targets, "weight_decay": decay, **projection},
    ]
    if not layerwise:
        return cls([group for group in groups if group["params"]], **options)
    by_parameter = {p: cls([{**group, "params": [p]}], **options) for group in groups for p in group["params"]}

    def step(parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            by_parameter[parameter].step()
            by_parameter[parameter].zero_grad()

    for parameter in by_parameter:
        parameter.register_post_accumulate_grad_hook(step)
    log("Each layer's step is made in its way back: gradients have no norm to be logged or clipped.")
    return LayerWiseDummyOptimizer(lr=trainer.args.learning_rate, optimizer_dict=by_parameter)


def _galore(trainer, config: RunConfig):
    import galore_torch
    from galore_torch.galore_projector import GaLoreProjector

    torch.serialization.add_safe_globals([GaLoreProjector])  # a checkpoint's optimizer state holds them
    kinds = {"adamw_torch": "GaLoreAdamW", "adamw_torch_fused": "GaLoreAdamW", "adafactor": "GaLoreAdafactor"}
    cls = getattr(galore_torch, kinds.get(config.optim, "GaLoreAdamW8bit"))
    options = _base_options(trainer)
    if config.optim == "adafactor":
        options = {"lr": trainer.args.learning_rate, "scale_parameter": False, "relative_step": False}
    projection = {
        "rank": config.galore_rank,
        "update_proj_gap": config.galore_update_interval,
        "scale": config.galore_scale,
        "proj_type": config.galore_proj_type,
    }
    targets = target_parameters(trainer.model, config.galore_target, "galore_target")
    return _low_rank(trainer, cls, options, targets, projection, config.galore_layerwise)


def _apollo(trainer, config: RunConfig):
    from apollo_torch import APOLLOAdamW
    from apollo_torch.random_projector import GradientProjector
    from apollo_torch.svd_projector import GaLoreProjector

    torch.serialization.add_safe_globals([GradientProjector, GaLoreProjector])
    projection = {
        "rank": config.apollo_rank,
        "proj": config.apollo_proj,
        "proj_type": config.apollo_proj_type,
        "update_proj_gap": config.apollo_update_interval,
        "scale": config.apollo_scale,
        "scale_type": config.apollo_scale_type,
        "scale_front": config.apollo_scale_front,
    }
    targets = target_parameters(trainer.model, config.apollo_target, "apollo_target")
    return _low_rank(trainer, APOLLOAdamW, _base_options(trainer), targets, projection, config.apollo_layerwise)


def _base_options(trainer) -> dict:
    args = trainer.args
    return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}


def _badam(trainer, config: RunConfig):
    from badam import BAdamCallback, BlockOptimizer, BlockOptimizerRatio, clip_grad_norm_old_version

    named = list(trainer.model.named_parameters())
    decaying = set(trainer.get_decay_parameter_names(trainer.model))
    trained = [(name, p) for name, p in named if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name not in decaying], "weight_decay": 0.0},
        {"params": [p for name, p in trained if name in decaying], "weight_decay": trainer.args.weight_decay},
    ]
    cls, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
    trainer.accelerator.clip_grad_norm_ = MethodType(clip_grad_norm_old_version, trainer.accelerator)
    trainer.add_callback(BAdamCallback)
    if config.badam_mode == "ratio":
        return BlockOptimizerRatio(
            param_groups=groups,
            named_parameters_list=named,
            update_ratio=config.badam_update_ratio,
            mask_mode=config.badam_mask_mode,
            verbose=config.badam_verbose,
            include_embedding=False,
            **options,
        )
    return BlockOptimizer(
        base_optimizer=cls([group for group in groups if group["params"]], **options),
        named_parameters_list=named,
        block_prefix_list=None,
        switch_block_every=config.badam_switch_interval if config.badam_switch_interval > 0 else 2**62,
        start_block=config.badam_start_block,
        switch_mode=config.badam_switch_mode,
        verbose=config.badam_verbose,
    )


def _adam_mini(trainer, config: RunConfig):
    from adam_mini import Adam_mini

    sizes = trainer.model.config.get_text_config()
    return Adam_mini(
        named_parameters=[(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad],
        **_base_options(trainer),
        weight_decay=trainer.args.weight_decay,
        dim=sizes.hidden_size,
        n_heads=sizes.num_attention_heads,
        n_kv_heads=getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads,
        verbose=False,
    )


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one; their groups are its groups."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, without_copies(state_dict)["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def __getattribute__(self, name: str):
        if name == "state":  # what they keep of each parameter
            return {p: kept for part in object.__getattribute__(self, "parts") for p, kept in part.state.items()}
        return super().__getattribute__(name)


def _muon(trainer, config: RunConfig):
    """Muon for trained matrices but embeddings and the head, AdamW for the rest."""
    matrices, rest = [], []
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if plain else rest).append(parameter)
    args, parts = trainer.args, []
    if matrices:
        # steps as large as AdamW's (Moonshot's 0.2 √max), so that its learning rates fit
        options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        parts.append(torch.optim.Muon(matrices, **options))
    if rest:
        fused = next(iter(rest)).device.type == "cuda"
        parts.append(torch.optim.AdamW(rest, **_base_options(trainer), weight_decay=args.weight_decay, fused=fused))
    log(f"Muon for {len(matrices)} matrices, AdamW for {len(rest)} other parameters.")
    return Together(parts)
