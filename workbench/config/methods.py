"""Ways of tuning and optimizers: which a run has, and what does not go together."""

from workbench.config.names import split_names
from workbench.config.options import RunConfig
from workbench.messages.message import Message


def step_conflicts(c: RunConfig) -> list[Message]:
    """Of when a run logs, evaluates and saves."""
    found = []
    for name in ("eval_steps", "save_steps", "logging_steps"):
        value = getattr(c, name)
        if value is not None and value > 1 and value != int(value):
            found.append(Message("steps_not_whole", option=name, value=value))
    if c.eval_on_each_dataset and len(split_names(c.eval_dataset)) < 2:
        found.append(Message("each_of_several"))
    if not c.load_best_model_at_end:
        return found
    often, seldom = c.eval_steps or c.logging_steps, c.save_steps
    if c.eval_strategy == "no":
        found.append(Message("best_without_evaluation"))
    elif c.save_strategy != c.eval_strategy:
        found.append(Message("best_strategies", save=c.save_strategy, evaluate=c.eval_strategy))
    elif c.eval_strategy == "steps" and ((often < 1) != (seldom < 1) or seldom < often or not _divides(often, seldom)):
        found.append(Message("best_steps", save=seldom, evaluate=often))
    return found


def _divides(small: float, large: float) -> bool:
    return abs(large / small - round(large / small)) < 1e-9


def method_conflicts(c: RunConfig) -> list[Message]:
    """Of `finetuning_type` and what only some of its ways can do."""
    method, quantized = c.finetuning_type, c.quantization_bit is not None
    several = len(split_names(c.adapter_name_or_path)) > 1
    found = {
        "freeze_quantized": method == "freeze" and quantized,
        "freeze_adapter": method == "freeze" and bool(c.adapter_name_or_path),
        "freeze_nothing": c.freeze_trainable_layers == 0 and (method == "freeze" or c.use_llama_pro),
        "llama_pro_method": c.use_llama_pro and method not in ("freeze", "lora"),
        "oft_both_sizes": method == "oft" and c.oft_rank > 0 and c.oft_block_size not in (0, 32),
        "oft_no_size": method == "oft" and c.oft_rank == 0 and c.oft_block_size == 0,
        "loraplus_method": c.loraplus_lr_ratio is not None and method != "lora",
        "pissa_method": c.pissa_init and method != "lora",
        "pissa_quantized": c.pissa_init and quantized,
        "pissa_dora": c.pissa_init and c.use_dora,
        "pissa_adapter": c.pissa_init and bool(c.adapter_name_or_path) and not c.create_new_adapter,
        "new_adapter_of_none": c.create_new_adapter and not c.adapter_name_or_path,
        "new_adapter_method": method == "oft" and (c.create_new_adapter or several),
        "new_adapter_dora": c.use_dora and c.create_new_adapter,
        "streaming_steps": c.streaming and c.max_steps <= 0,
        "streaming_packing": c.streaming and (c.packing or c.neat_packing),
        "streaming_tokenized": c.streaming and bool(c.tokenized_path),
        "streaming_share": c.streaming and 0 < c.val_size < 1,
        "new_tokens_adapter": c.new_tokens and bool(c.adapter_name_or_path),
        "adapters_quantized": quantized and (several or (c.create_new_adapter and bool(c.adapter_name_or_path))),
    }
    return [Message(code) for code, wrong in found.items() if wrong]


# `use_…` and the package on PyPI that it needs: (name of the module, name of the package)
OPTIMIZERS = {
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "badam": ("badam", "badam"),
    "adam_mini": ("adam_mini", "adam-mini"),
    "muon": ("", ""),
}
_BASES = {  # `optim` that it can be built on, where it can be another than AdamW
    "galore": ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor"),
    "badam": ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"),
}


def chosen_optimizer(c: RunConfig) -> str:
    """`galore`, `apollo`, `badam`, `adam_mini` or `muon`; empty where `optim` alone says it."""
    return next((name for name in OPTIMIZERS if getattr(c, f"use_{name}")), "")


def layerwise(c: RunConfig) -> bool:
    """Whether each layer makes its step within the backward pass."""
    return (c.use_galore and c.galore_layerwise) or (c.use_apollo and c.apollo_layerwise)


def plain_steps(c: RunConfig) -> str:
    """Why the steps of a run must be transformers' own, as a message's code; empty where they need not be."""
    if layerwise(c):
        return "plain_layerwise"
    if c.streaming:
        return "plain_streaming"
    return "plain_badam" if c.use_badam else ""


def optimizer_conflicts(c: RunConfig) -> list[Message]:
    """Of the optimizers with options of their own."""
    used = [f"use_{name}" for name in OPTIMIZERS if getattr(c, f"use_{name}")]
    if not used:
        return []
    found, one = [], chosen_optimizer(c)
    if len(used) > 1:
        found.append(Message("optimizers_several", names=used))
    if c.loraplus_lr_ratio is not None:
        found.append(Message("optimizer_loraplus", name=used[0]))
    if one in ("galore", "apollo", "badam") and c.finetuning_type not in ("full", "freeze"):
        found.append(Message("optimizer_method", name=used[0]))
    bases = _BASES.get(one, ("adamw_torch", "adamw_torch_fused"))
    if c.optim not in bases:
        found.append(Message("optimizer_base", name=used[0], optim=c.optim, known=bases))
    if layerwise(c) and c.gradient_accumulation_steps > 1:
        found.append(Message("layerwise_accumulation", name=f"{one}_layerwise"))
    if layerwise(c) and c.fp16:
        found.append(Message("layerwise_fp16", name=f"{one}_layerwise"))
    return found
