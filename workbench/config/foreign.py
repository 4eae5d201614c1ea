"""LLaMA-Factory's keys and defaults that are not ours: what they mean for an import.

Names and defaults are those of LLaMA-Factory 0.9.4 (`src/llamafactory/hparams`) and of transformers' TrainingArguments.
"""

import re
from typing import Any

# its defaults for what a file or command leaves out, where a run depends on them
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 500,
    "save_steps": 500,
    "seed": 42,
    "val_size": 0.0,
    "cutoff_len": 2048,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "packing": False,
    "neat_packing": False,
    "mask_history": False,
    "train_on_prompt": False,
    "plot_loss": False,
    "flash_attn": "auto",
}

STAGES = {
    "pt": "pre-training",
    "rm": "reward modelling",
    "ppo": "PPO",
    "dpo": "preference training (DPO)",
    "kto": "preference training (KTO)",
}
# what a command of its is for; `train` is the rest
COMMANDS = {"chat": "chat", "webchat": "chat", "api": "chat", "export": "export", "eval": "eval"}
# templates of models that also take images, video or audio
MEDIA_TEMPLATES = re.compile(
    r"(^|_)(vl|omni|vision|audio|video)($|_)|llava|4v|4_5v|4_1v|mllama|pixtral|paligemma|minicpm_[ov]|intern_s1|dots_ocr"
    r"|kimi_vl|phi4_mm|gemma3n|voxtral"
)

# keys that change what is learned and cannot be done here: what they ask for
CHANGING = {
    "add_tokens": "new tokens",
    "add_special_tokens": "new tokens",
    "new_special_tokens_config": "new tokens",
    "resize_vocab": "a larger vocabulary",
    "split_special_tokens": "special tokens as text",
    "train_from_scratch": "random weights to start from",
    "shift_attn": "shifted attention (LongLoRA)",
    "mixture_of_depths": "mixture of depths",
    "upcast_layernorm": "layer norms in float32",
    "upcast_lmhead_output": "logits in float32",
    "pure_bf16": "adapters in bfloat16",
    "fp8": "FP8",
    "fp8_enable_fsdp_float8_all_gather": "FP8",
    "use_galore": "GaLore",
    "use_apollo": "APOLLO",
    "use_badam": "BAdam",
    "use_adam_mini": "Adam-mini",
    "use_muon": "Muon",
    "use_llama_pro": "LLaMA Pro",
    "use_dft_loss": "the DFT loss",
    "use_eaft_loss": "the EAFT loss",
    "use_asft_loss": "the ASFT loss",
    "use_mca": "Megatron",
    "use_distributed_optimizer": "Megatron",
    "tensor_model_parallel_size": "Megatron",
    "pipeline_model_parallel_size": "Megatron",
    "expert_model_parallel_size": "Megatron",
    "pissa_init": "PiSSA",
    "pissa_convert": "PiSSA",
    "create_new_adapter": "a new adapter on a merged one",
    "module_dropout": "OFT",
    "disable_shuffling": "rows in their order",
    "tool_format": "another form of tool calls",
    "default_system": "a system text for all rows",
    "adam_epsilon": "another epsilon of Adam",
    "lr_scheduler_kwargs": "arguments of the scheduler",
    "optim_args": "arguments of the optimizer",
    "optim_target_modules": "an optimizer for some modules",
    "label_smoothing_factor": "label smoothing",
    "group_by_length": "rows grouped by length",
    "load_best_model_at_end": "the best checkpoint at the end",
    "data_seed": "a seed for the order of rows",
    "quantization_device_map": "a device map of the quantized model",
}
# values under which such a key changes nothing
_OFF = (None, False, 0, "", "false", "none", "null", "0", "no", "off")

# keys that change nothing of what a run on text learns
_SPEED = "how fast, not what: the fastest installed path is used"
_MEDIA = "only for images, video and audio"
_ANSWERS = "only for prediction; the Chat tab has its own settings"
HARMLESS = {
    "cache_dir": "the hub's own cache folder is used (HF_HOME)",
    "hf_hub_token": "log in with `hf auth login`",
    "ms_hub_token": "log in with `modelscope login`",
    "om_hub_token": "this hub is not supported",
    "low_cpu_mem_usage": "always so",
    "use_reentrant_gc": "how memory is saved, not what is learned",
    "print_param_status": "only what is logged",
    "offload_folder": "memory is managed by activation_memory and device_map",
    "use_kv_cache": _ANSWERS,
    "infer_dtype": _ANSWERS,
    "do_eval": "evaluation follows eval_strategy",
    "predict_with_generate": _ANSWERS,
    "compute_accuracy": "only what is logged",
    "include_effective_tokens_per_second": "tokens are always counted",
    "eval_on_each_dataset": "evaluation data are taken together",
    "eval_num_beams": _ANSWERS,
    "streaming": "rows are read as a stream",
    "buffer_size": "rows are read as a stream",
    "data_shared_file_system": "only with several machines",
    "media_dir": _MEDIA,
    "deepspeed": "runs here are on one GPU",
    "fsdp": "runs here are on one GPU",
    "fsdp_config": "runs here are on one GPU",
    "enable_liger_kernel": _SPEED,
    "use_unsloth": _SPEED,
    "use_liger_kernel": _SPEED,
    "use_cpu": "the device is what the machine has",
    "use_unsloth_gc": _SPEED,
    **dict.fromkeys(("use_kt", "cpu_infer", "chunk_size"), _SPEED),
    "use_v1_kernels": _SPEED,
    "torch_empty_cache_steps": _SPEED,
    "dataloader_pin_memory": _SPEED,
    "dataloader_persistent_workers": _SPEED,
    "gradient_checkpointing": "see activation_memory",
    "remove_unused_columns": "columns that are not used are never passed on",
    "log_level": "only what is logged",
    "disable_tqdm": "only what is logged",
    "push_to_hub": "nothing is uploaded; export the model and upload it yourself",
    "hub_model_id": "nothing is uploaded; export the model and upload it yourself",
    "hub_strategy": "nothing is uploaded; export the model and upload it yourself",
    "hub_private_repo": "nothing is uploaded; export the model and upload it yourself",
    "loraplus_lr_embedding": "embeddings are not trained with LoRA+",
    "ray_run_name": "runs here are on one machine",
    "ray_storage_path": "runs here are on one machine",
    "ray_num_workers": "runs here are on one machine",
    "resources_per_worker": "runs here are on one machine",
    "placement_strategy": "runs here are on one machine",
    "use_swanlab": "use report_to: swanlab",
    **dict.fromkeys(("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens"), _ANSWERS),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "skip_special_tokens", "generation_max_length"), _ANSWERS),
    **dict.fromkeys(("image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels"), _MEDIA),
    **dict.fromkeys(("video_fps", "video_maxlen", "image_do_pan_and_scan", "crop_to_patches"), _MEDIA),
    **dict.fromkeys(("use_audio_in_video", "audio_sampling_rate", "freeze_vision_tower"), _MEDIA),
    **dict.fromkeys(("freeze_multi_modal_projector", "freeze_language_model"), _MEDIA),
}
# of files for chatting and exporting: what changes nothing there
_GENERATION = "set it among the Chat tab's generation settings, or with a request"
FOR_ANSWERS = {
    "infer_backend": "the workbench's own engine answers",
    "finetuning_type": "told by the adapter",
    "stage": "told by the adapter",
    "use_cache": "always so",
    "export_size": "files of the size that safetensors writes by itself",
    "export_device": "merged where there is room",
    "export_legacy_format": "always safetensors",
    "export_hub_model_id": "nothing is uploaded; upload the folder yourself",
}
GENERATION = dict.fromkeys(
    ("do_sample", "temperature", "top_p", "top_k", "max_length", "max_new_tokens", "repetition_penalty"), _GENERATION
) | {"default_system": "give it as the Chat tab's system prompt"}
# keys that make LLaMA-Factory do less or more than a run here: taken over in part
OTHERWISE = {
    "tokenized_path": "LLaMA-Factory tokenizes and ends, the first time; here the run goes on to train, and the tokens"
    " are kept in the workspace",
}
# settings of something that is off: they say nothing alone
_PREFIXES = (
    "galore_",
    "apollo_",
    "badam_",
    "pissa_",
    "oft_",
    "pref_",
    "kto_",
    "ppo_",
    "dpo_",
    "simpo_",
    "ref_model",
    "reward_",
    "freeze_trainable_",
    "freeze_extra_",
    "swanlab_",
    "vllm_",
    "sglang_",
    "fp8_",
    "kt_",
    "export_",
)


def is_off(value) -> bool:
    """Whether this value of a key in `CHANGING` changes nothing."""
    return (value.strip().lower() if isinstance(value, str) else value) in _OFF


def harmless(key: str) -> str | None:
    """Why a key of LLaMA-Factory changes nothing of a run here, or None."""
    if key in HARMLESS:
        return HARMLESS[key]
    return "a setting of something that this run does not use" if key.startswith(_PREFIXES) else None
