"""Combinations of a run's options that cannot work, found without loading anything."""

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.config.stage_options import REWARDS
from workbench.config.zero import zero_of
from workbench.errors import UserError
from workbench.messages.message import Message

REPORTERS = ("tensorboard", "wandb", "trackio", "swanlab")

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


def conflicts(config: RunConfig) -> list[Message]:
    """Sentences for combinations that cannot work, found without loading anything."""
    c, problems = config, []

    def check(wrong: bool, sentence: Message) -> None:
        if wrong:
            problems.append(sentence)

    if c.adapter_name_or_path and not c.model_name_or_path:
        problems.append(Message("adapter_without_base"))
    else:
        check(not c.model_name_or_path, Message("model_empty"))
    check(not c.dataset and not c.tokenized_path and c.do_train, Message("dataset_empty"))
    check(not c.do_train and not c.do_predict, Message("nothing_to_do"))
    check(c.do_predict and not (c.eval_dataset or (c.dataset and not c.do_train)), Message("predict_needs_dataset"))
    check(c.do_predict and c.stage == "rm", Message("predict_of_scores"))
    if not c.do_train:
        return problems
    check(c.fp16 and (c.bf16 or c.pure_bf16), Message("fp16_and_bf16"))
    check(c.pure_bf16 and c.finetuning_type not in ("full", "freeze"), Message("pure_bf16_method"))
    check(
        (c.packing or c.neat_packing) and c.cutoff_len == 0,
        Message("packing_without_length"),
    )
    try:
        shares = c.shares()
        check(
            bool(shares) and c.mix_strategy == "concat",
            Message("shares_but_concat"),
        )
        check(
            bool(shares) and len(shares) != len(split_names(c.dataset)),
            Message("shares_count"),
        )
    except ValueError:
        problems.append(Message("shares_wrong", value=c.interleave_probs))
    check(
        c.finetuning_type == "full" and c.quantization_bit is not None,
        Message("full_quantized"),
    )
    check(
        c.finetuning_type == "full" and bool(c.adapter_name_or_path),
        Message("full_adapter"),
    )
    problems += method_conflicts(c)
    problems += optimizer_conflicts(c)
    problems += loss_conflicts(c)
    check(c.train_on_prompt and c.mask_history, Message("prompt_and_history"))
    problems += _reward_conflicts(c)
    check(c.stage == "pt" and c.cutoff_len == 0, Message("pt_without_length"))
    check(c.stage == "rm" and bool(c.sample_prompts), Message("samples_of_scores"))
    check(c.dpo_label_smoothing > 0 and c.pref_loss != "sigmoid", Message("smoothing_of_sigmoid"))
    check(
        bool(c.ref_model or c.ref_model_adapters) and not c.has_reference,
        Message("reference_unused", stage=c.stage, loss=c.pref_loss),
    )
    check(c.val_size > 0 and bool(c.eval_dataset), Message("two_evaluations"))
    check(
        c.eval_strategy != "no" and not c.val_size and not c.eval_dataset,
        Message("nothing_to_evaluate", strategy=c.eval_strategy),
    )
    check(
        c.early_stopping_steps is not None and c.eval_strategy == "no",
        Message("stopping_without_evaluation"),
    )
    if c.weights_on == "host" and (what := why_on_card(c)):
        problems.append(Message("host_with", what=what))
    if c.weights_on == "shared" and (what := why_not_shared(c)):
        problems.append(Message("shared_with", what=what))
    problems += step_conflicts(c)
    problems += zero_conflicts(c)
    check(c.warmup_steps > 0 and c.warmup_ratio > 0, Message("two_warmups"))
    check(
        c.use_dora and c.loraplus_lr_ratio is not None,
        Message("dora_and_loraplus"),
    )
    for name in split_names(c.report_to):
        if name not in (*REPORTERS, "none", "all"):
            problems.append(Message("reporter_unknown", name=name, known=REPORTERS))
    for name in split_names(c.devices):
        if not (name.isdigit() or name in ("auto", "all", "cpu")):
            problems.append(Message("devices_wrong", value=c.devices))
            break
    names = split_names(c.devices)
    if (
        len(names) > 1
        and set(names) != {"cpu"}
        and (len(set(names)) < len(names) or {"auto", "all", "cpu"} & set(names))
    ):
        problems.append(Message("devices_mixed", value=c.devices))
    return problems


def loss_conflicts(c: RunConfig) -> list[Message]:
    """Of losses that weigh tokens."""
    used = [name for name in ("use_dft_loss", "use_eaft_loss", "use_asft_loss") if getattr(c, name)]
    found = [Message("weighed_twice", names=used)] if len(used) > 1 else []
    if used and c.stage != "sft":
        found.append(Message("weighed_stage", name=used[0], stage=c.stage))
    if used and c.moe_aux_loss_coef:
        found.append(Message("weighed_balance", name=used[0]))
    if c.use_asft_loss and c.pissa_init and not c.keeps_reference:
        found.append(Message("asft_pissa"))
    if c.use_asft_loss and c.new_tokens and c.keeps_reference:
        found.append(Message("asft_new_tokens"))
    return found


def optimizer_conflicts(c: RunConfig) -> list[Message]:
    """Of the optimizers with options of their own."""
    used = [f"use_{name}" for name in OPTIMIZERS if getattr(c, f"use_{name}")]
    if not used:
        return []
    found, one = [], chosen_optimizer(c)
    several = len(split_names(c.devices)) > 1  # what `all` are is seen when the run starts
    if several and c.device_map == "none" and (layerwise(c) or c.use_badam):
        found.append(Message("optimizer_alone", name=one))
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


def zero_conflicts(c: RunConfig) -> list[Message]:
    """Of `deepspeed`."""
    if not c.deepspeed:
        return []
    try:
        zero = zero_of(c.deepspeed)
    except UserError as error:
        return [Message("lines", problems=[error.message])]
    others = {
        f"finetuning_type: {c.finetuning_type}": c.finetuning_type != "full",
        f"stage: {c.stage}": c.stage not in ("sft", "pt"),
        f"optim: {c.optim}": c.optim not in ("adamw_torch", "adamw_torch_fused"),
        f"use_{chosen_optimizer(c)}": bool(chosen_optimizer(c)),
        "use_asft_loss": c.use_asft_loss,
        "moe_aux_loss_coef": bool(c.moe_aux_loss_coef),
        "neftune_noise_alpha": bool(c.neftune_noise_alpha),
        "device_map: auto": c.device_map == "auto",
        "streaming": c.streaming,
        "load_best_model_at_end": c.load_best_model_at_end,
        "new tokens": bool(c.new_tokens),
        "sample_prompts": bool(c.sample_prompts) and zero["stage"] == 3,
    }
    found = [option for option, wrong in others.items() if wrong]
    return [Message("zero_with", names=found)] if found else []


def plain_steps(c: RunConfig) -> str:
    """Why the steps of a run must be transformers' own, as a message's code; empty where they need not be."""
    return _plain(c)[0]


def _plain(c: RunConfig) -> tuple[str, str]:
    """`plain_steps`, and the option that asks for it."""
    found = (
        ("plain_grpo", "stage: grpo", c.stage == "grpo"),
        ("plain_zero", "deepspeed", bool(c.deepspeed)),
        ("plain_layerwise", f"{chosen_optimizer(c)}_layerwise", layerwise(c)),
        ("plain_streaming", "streaming", c.streaming),
        ("plain_asft", "use_asft_loss", c.use_asft_loss),
        ("plain_badam", "use_badam", c.use_badam),
    )
    return next(((code, option) for code, option, asked in found if asked), ("", ""))


def why_not_shared(c: RunConfig) -> str:
    """The option with which a run's weights cannot be divided among devices; empty where they can."""
    return _plain(c)[1] or why_on_card(c)  # of transformers' own steps devices may make different numbers


def why_on_card(c: RunConfig) -> str:
    """The option with which a run's weights cannot stream from host memory; empty where they can."""
    others = {
        f"finetuning_type: {c.finetuning_type}": c.finetuning_type not in ("lora", "oft"),
        "quantization_bit: 8": c.quantization_bit == 8,
        "device_map: auto": c.device_map == "auto",
        "cuda_graphs: on": c.cuda_graphs == "on",
        # these read or change the weights themselves
        "use_dora": c.use_dora,
        "pissa_init": c.pissa_init,
        "create_new_adapter": c.create_new_adapter,
        "several adapters in adapter_name_or_path": len(split_names(c.adapter_name_or_path)) > 1,
    }
    return next((option for option, found in others.items() if found), "")


def layerwise(c: RunConfig) -> bool:
    """Whether each layer makes its step within the backward pass."""
    return (c.use_galore and c.galore_layerwise) or (c.use_apollo and c.apollo_layerwise)


def keeps_float32(c: RunConfig) -> bool:
    """Whether weights that are trained in bfloat16 have float32 copies on which the optimizer steps."""
    return not (c.pure_bf16 or c.deepspeed or c.use_badam or layerwise(c))


def chosen_optimizer(c: RunConfig) -> str:
    """`galore`, `apollo`, `badam`, `adam_mini` or `muon`; empty where `optim` alone says it."""
    return next((name for name in OPTIMIZERS if getattr(c, f"use_{name}")), "")


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
        "streaming_stage": c.streaming and (c.preferences or c.stage == "grpo"),
        "tokenized_stage": bool(c.tokenized_path) and c.stage == "grpo",
        "streaming_share": c.streaming and 0 < c.val_size < 1,
        "described_by_none": c.init_special_tokens != "noise_init" and not c.new_special_tokens_config,
        "new_tokens_adapter": c.new_tokens and bool(c.adapter_name_or_path),
        "adapters_quantized": quantized and (several or (c.create_new_adapter and bool(c.adapter_name_or_path))),
    }
    return [Message(code) for code, wrong in found.items() if wrong]


def _divides(small: float, large: float) -> bool:
    return abs(large / small - round(large / small)) < 1e-9


def step_conflicts(c: RunConfig) -> list[Message]:
    """Of when a run logs, evaluates and saves."""
    found = []
    for name in ("eval_steps", "save_steps", "logging_steps"):
        value = getattr(c, name)
        if value is not None and value > 1 and not float(value).is_integer():
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


def _reward_conflicts(c: RunConfig) -> list[Message]:
    """What is wrong with the rewards of stage grpo; nothing for another stage."""
    if c.stage != "grpo":
        return []
    names, problems = split_names(c.reward_funcs), []
    if not names or (unknown := [name for name in names if name not in REWARDS]):
        problems.append(Message("reward_unknown_rule", names=unknown if names else ["–"], known=REWARDS))
    if c.per_device_train_batch_size * c.gradient_accumulation_steps % c.num_generations:
        batch = c.per_device_train_batch_size * c.gradient_accumulation_steps
        problems.append(Message("generations_batch", batch=batch, count=c.num_generations))
    if "regex" in names and not c.reward_regex:
        problems.append(Message("reward_needs", name="regex", option="reward_regex"))
    if "file" in names and not c.reward_file:
        problems.append(Message("reward_needs", name="file", option="reward_file"))
    if "model" in names and not c.reward_model:
        problems.append(Message("reward_needs", name="model", option="reward_model"))
    if c.reward_model and "model" not in names:
        problems.append(Message("reward_model_unused", model=c.reward_model))
    if "file" in names and c.reward_file and not c.trust_reward_code:
        problems.append(Message("reward_untrusted", file=c.reward_file))
    try:
        weights = [float(part) for part in split_names(c.reward_weights)]
    except ValueError:
        weights = [0.0] * (len(names) + 1)
    if weights and len(weights) != len(names):
        problems.append(Message("reward_weights_wrong", value=c.reward_weights, count=len(names)))
    return problems
