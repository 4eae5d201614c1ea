"""Full tuning whose weights, gradients and optimizer states are spread over the devices: ZeRO, as DeepSpeed does it and
transformers and accelerate run it. Steps are transformers' own."""

import logging
import os

import torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from workbench.config.options import RunConfig
from workbench.config.zero import zero_of
from workbench.runs import job
from workbench.train import ranks

_kept: list[HfDeepSpeedConfig] = []  # transformers knows of it as long as somebody holds it


def settings(config: RunConfig, dtype: torch.dtype) -> dict:
    """DeepSpeed's own config of a run. `dtype` is what the model computes in."""
    cuda = torch.cuda.is_available()
    zero = zero_of(config.deepspeed or "")
    if zero["stage"] == 3:  # else a checkpoint would have no weights that anything else reads
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": cuda and dtype is torch.bfloat16},
        "fp16": {"enabled": cuda and dtype is torch.float16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would have to be compiled; torch's AdamW computes on the CPU, too
        "steps_per_print": 10**9,
    }


def begin(config: RunConfig, dtype: torch.dtype) -> None:
    """Before the model is loaded: transformers then lets each process keep only its part (stage 3)."""
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if ranks.count() == 1:  # a group of one, which DeepSpeed cannot do without
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone | {"MASTER_PORT": str(job.free_port())})
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")
    _kept[:] = [HfDeepSpeedConfig(settings(config, dtype))]


def share_head(causal) -> None:
    """The loss multiplies by the head's weights without calling it (`fast/loss.py`): they are gathered with those that
    the model itself uses."""
    import deepspeed

    weight = causal.get_output_embeddings().weight
    if hasattr(weight, "ds_id"):
        deepspeed.zero.register_external_parameter(causal, weight)
