"""LLaMA-Factory's keys and defaults that are not ours: what they mean for an import.

Names and defaults are those of LLaMA-Factory 0.9.4 (`src/llamafactory/hparams`) and of transformers' TrainingArguments.
Words are codes of `workbench.messages.imports`.
"""

import re
from typing import Any

from workbench.messages.message import CATALOGUE, Message

# of predictions, which it draws
PREDICTION_DEFAULTS: dict[str, Any] = {"max_new_tokens": 1024, "temperature": 0.95, "top_p": 0.7}
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

STAGES = {"ppo": "stage_ppo"}  # that are not offered
# what a command of its is for; `train` is the rest
COMMANDS = {"chat": "chat", "webchat": "chat", "api": "chat", "export": "export", "merge": "export", "eval": "eval"}
# templates of models that also take images, video or audio
MEDIA_TEMPLATES = re.compile(
    r"(^|_)(vl|omni|vision|audio|video)($|_)|llava|4v|4_5v|4_1v|mllama|pixtral|paligemma|minicpm_[ov]|intern_s1|dots_ocr"
    r"|kimi_vl|phi4_mm|gemma3n|voxtral"
)

# keys that change what is learned and cannot be done here: what they ask for, a code or a name
CHANGING = {
    "split_special_tokens": "asks_special_text",
    "train_from_scratch": "asks_scratch",
    "shift_attn": "asks_shifted",
    "mixture_of_depths": "asks_depths",
    "upcast_layernorm": "asks_norms",
    "upcast_lmhead_output": "asks_logits",
    "pure_bf16": "asks_bf16_adapters",
    "fp8": "FP8",
    "fp8_enable_fsdp_float8_all_gather": "FP8",
    "pref_bco_weight": "BCO",
    "use_mca": "Megatron",
    "use_distributed_optimizer": "Megatron",
    "tensor_model_parallel_size": "Megatron",
    "pipeline_model_parallel_size": "Megatron",
    "expert_model_parallel_size": "Megatron",
    "tool_format": "asks_tool_form",
    "default_system": "asks_system",
    "adam_epsilon": "asks_epsilon",
    "lr_scheduler_kwargs": "asks_scheduler",
    "optim_args": "asks_optimizer",
    "optim_target_modules": "asks_some_modules",
    "label_smoothing_factor": "asks_smoothing",
    "group_by_length": "asks_grouping",
    "data_seed": "asks_data_seed",
    "quantization_device_map": "asks_device_map",
}
# values under which such a key changes nothing
_OFF = (None, False, 0, "", "false", "none", "null", "0", "no", "off")

# keys that change nothing of what a run on text learns
_SPEED = "why_speed"
_MEDIA = "why_media"
_ANSWERS = "why_prediction"
HARMLESS = {
    "cache_dir": "why_hub_cache",
    "hf_hub_token": "why_hf_login",
    "ms_hub_token": "why_ms_login",
    "om_hub_token": "why_no_hub",
    "low_cpu_mem_usage": "why_always",
    "use_reentrant_gc": "why_memory",
    "print_param_status": "why_logged",
    "offload_folder": "why_offload",
    "use_kv_cache": _ANSWERS,
    "infer_dtype": _ANSWERS,
    "do_eval": "why_eval_strategy",
    "compute_accuracy": "why_logged",
    "include_effective_tokens_per_second": "why_counted",
    "eval_num_beams": _ANSWERS,
    "data_shared_file_system": "why_machines",
    "media_dir": _MEDIA,
    "deepspeed": "why_one_gpu",
    "fsdp": "why_one_gpu",
    "fsdp_config": "why_one_gpu",
    "enable_liger_kernel": _SPEED,
    "use_unsloth": _SPEED,
    "use_liger_kernel": _SPEED,
    "use_cpu": "why_device",
    "use_unsloth_gc": _SPEED,
    **dict.fromkeys(("use_kt", "cpu_infer", "chunk_size"), _SPEED),
    "use_v1_kernels": _SPEED,
    "torch_empty_cache_steps": _SPEED,
    "dataloader_pin_memory": _SPEED,
    "dataloader_persistent_workers": _SPEED,
    "gradient_checkpointing": "why_activation",
    "remove_unused_columns": "why_columns",
    "log_level": "why_logged",
    "disable_tqdm": "why_logged",
    "loraplus_lr_embedding": "why_embeddings",
    "ray_run_name": "why_one_machine",
    "ray_storage_path": "why_one_machine",
    "ray_num_workers": "why_one_machine",
    "resources_per_worker": "why_one_machine",
    "placement_strategy": "why_one_machine",
    "use_swanlab": "why_swanlab",
    **dict.fromkeys(("do_sample", "top_k", "num_beams"), _ANSWERS),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "skip_special_tokens", "generation_max_length"), _ANSWERS),
    **dict.fromkeys(("image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels"), _MEDIA),
    **dict.fromkeys(("video_fps", "video_maxlen", "image_do_pan_and_scan", "crop_to_patches"), _MEDIA),
    **dict.fromkeys(("use_audio_in_video", "audio_sampling_rate", "freeze_vision_tower"), _MEDIA),
    **dict.fromkeys(("freeze_multi_modal_projector", "freeze_language_model"), _MEDIA),
}
# of files for chatting and exporting: what changes nothing there
_GENERATION = "why_generation"
FOR_ANSWERS = {
    "infer_backend": "why_own_engine",
    "finetuning_type": "why_adapter_tells",
    "stage": "why_adapter_tells",
    "use_cache": "why_always",
    "export_size": "why_file_size",
    "export_device": "why_merge_place",
    "export_legacy_format": "why_safetensors",
    "export_hub_model_id": "why_upload_folder",
}
GENERATION = dict.fromkeys(
    ("do_sample", "temperature", "top_p", "top_k", "max_length", "max_new_tokens", "repetition_penalty"), _GENERATION
) | {"default_system": "why_system_prompt"}
# settings of something that is off: they say nothing alone
_PREFIXES = (
    "pref_",
    "kto_",
    "ppo_",
    "dpo_",
    "simpo_",
    "ref_model",
    "reward_",
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
        return Message(HARMLESS[key])
    return Message("why_unused") if key.startswith(_PREFIXES) else None


def asked(key: str) -> str:
    """What a key in `CHANGING` asks for, in words."""
    return Message(CHANGING[key]) if CHANGING[key] in CATALOGUE else CHANGING[key]
