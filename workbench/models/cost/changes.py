"""Changes of a run's options that save memory, and how much each saves."""

from collections.abc import Callable
from dataclasses import dataclass

from workbench.config.conflicts import conflicts
from workbench.config.options import RunConfig
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.cost.adapters import EIGHT_BIT
from workbench.models.cost.constants import MIB
from workbench.models.cost.parts import Estimate

LEAST = 50 * MIB  # smaller savings are not worth a word
MOST = 3
_SHORTEST = 256  # tokens that a row keeps
_SMALL_RANK = 8


@dataclass(frozen=True)
class Change:
    """`options` that are set, and the bytes that this saves. `fits`: the run fits with this change alone."""

    options: dict
    saving: int
    fits: bool


def candidates(config: RunConfig, anatomy: Anatomy, cards: int = 1) -> list[dict]:
    """Changes of the options that can save memory, each a few options that belong together."""
    c, found = config, []
    if c.finetuning_type in ("full", "freeze"):
        found.append({"finetuning_type": "lora", "quantization_bit": 4, "bf16": c.bf16, "pure_bf16": False})
        if not c.pure_bf16 and not c.fp16:
            found.append({"pure_bf16": True})
    elif c.quantization_bit != 4:
        found.append({"quantization_bit": 4})
    elif not c.double_quantization:
        found.append({"double_quantization": True})
    if c.per_device_train_batch_size > 1:  # as many rows a step as before
        half = c.per_device_train_batch_size // 2
        accumulated = -(-c.per_device_train_batch_size * c.gradient_accumulation_steps // half)
        found.append({"per_device_train_batch_size": half, "gradient_accumulation_steps": accumulated})
    longest = c.cutoff_len or anatomy.sizes.context
    if longest >= 2 * _SHORTEST:
        found.append({"cutoff_len": longest // 2})
    if c.disable_gradient_checkpointing:
        found.append({"disable_gradient_checkpointing": False})
    if c.activation_memory != "least":
        found.append({"activation_memory": "least"})
    if c.finetuning_type == "freeze" and abs(c.freeze_trainable_layers) > 1:
        found.append({"freeze_trainable_layers": c.freeze_trainable_layers // 2 or 1})
    if c.finetuning_type == "lora":
        if c.lora_rank > _SMALL_RANK:
            found.append({"lora_rank": max(_SMALL_RANK, c.lora_rank // 2)})
        attention = [one.name for one in anatomy.linears() if one.component == "attention"]
        if c.lora_target.strip().lower() == "all" and len(attention) < len(anatomy.linears()):
            found.append({"lora_target": ",".join(attention)})
        if c.additional_target:
            found.append({"additional_target": None})
    if c.optim not in (EIGHT_BIT, "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit", "sgd"):
        found.append({"optim": EIGHT_BIT})
    if c.eval_strategy != "no" and c.per_device_eval_batch_size > 1:
        found.append({"per_device_eval_batch_size": 1})
    if c.flash_attn in ("eager", "disabled"):
        found.append({"flash_attn": "auto"})
    if cards > 1 and c.device_map == "none":
        found.append({"device_map": "auto"})
    return found


def best(
    config: RunConfig,
    anatomy: Anatomy,
    now: Estimate,
    estimate: Callable[[RunConfig], Estimate],
    memory: float,
    cards: int,
) -> list[Change]:
    """The changes that save most, the largest saving first, each on its own.

    Args:
        now: the estimate without a change.
        estimate: the estimate of other options.
        memory: bytes of the device.
    """
    found = []
    for options in candidates(config, anatomy, cards):
        changed = config.model_copy(update=options)
        if conflicts(changed) and not conflicts(config):
            continue
        then = estimate(changed)
        saving = now.total - then.total
        if saving >= LEAST:
            found.append(Change(options, saving, then.total <= memory))
    return sorted(found, key=lambda change: -change.saving)[:MOST]
