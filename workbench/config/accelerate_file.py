"""A config file of accelerate as options: on which devices a run computes, and in which precision.

It says nothing of the model and the data. How it spreads weights over devices (FSDP, DeepSpeed) changes no result and
is listed; what would change one is listed as lost, or refused.
"""

from collections.abc import Callable
from typing import Any

from workbench.config import deepspeed_file, foreign
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

_WHERE = (
    "compute_environment", "debug", "downcast_bf16", "machine_rank", "main_training_function", "rdzv_backend",
    "same_network", "tpu_env", "tpu_use_cluster", "tpu_use_sudo", "main_process_ip", "main_process_port",
    "num_machines", "num_processes", "gpu_ids", "use_cpu", "mixed_precision", "distributed_type", "enable_cpu_affinity",
    "command_file", "commands", "tpu_name", "tpu_zone", "dynamo_config", "ipex_config", "fsdp_config", "mpirun_config",
)  # fmt: skip
_SPREAD = ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "FSDP", "DEEPSPEED")
# of `deepspeed_config`, what says where and how
_OF_DEEPSPEED = (
    "deepspeed_config_file", "zero_stage", "offload_optimizer_device", "offload_param_device", "zero3_init_flag",
    "zero3_save_16bit_model", "deepspeed_hostfile", "deepspeed_multinode_launcher", "offload_optimizer_nvme_path",
    "offload_param_nvme_path", "gradient_accumulation_steps", "gradient_clipping",
)  # fmt: skip
MOST = 1024  # devices


def is_form(values: dict) -> bool:
    """Whether these are the keys of such a file."""
    return "distributed_type" in values or "compute_environment" in values


def fill(imported, values: dict[str, Any], read: Callable[[str], str | None] = lambda name: None) -> None:
    """Put what a file says into an import.

    Args:
        read: the text of a file that it names, None where there is none or it may not be read.

    Raises:
        UserError: it computes in FP8, or spreads the model by Megatron; a number that is none; a broken config of
            DeepSpeed.
    """
    spread = str(values.get("distributed_type") or "NO").upper()
    precision = str(values.get("mixed_precision") or "no").lower()
    for key, value, wanted in (
        ("distributed_type", spread, "Megatron" if spread == "MEGATRON_LM" else ""),
        ("mixed_precision", precision, "FP8" if precision == "fp8" else ""),
    ):
        if wanted:
            raise UserError("import_changing", key=key, value=files.shown(value, 40), what=wanted)
    if precision in ("bf16", "fp16"):
        imported.values[precision] = True
    machines, processes = (_count(values, key) for key in ("num_machines", "num_processes"))
    _devices(imported, values, max(1, processes // machines))
    if machines > 1:
        imported.leave("num_machines", str(machines), Message("why_accelerate_machines"), lost=True)
    if spread not in _SPREAD:
        imported.leave("distributed_type", files.shown(spread, 40), Message("why_device"), lost=True)
    elif spread == "FSDP" or (spread == "DEEPSPEED" and not isinstance(values.get("deepspeed_config"), dict)):
        imported.leave("distributed_type", spread, Message("why_memory"))
    for key, value in values.items():
        if key == "deepspeed_config" and isinstance(value, dict):
            _deepspeed(imported, value, read)
        elif key == "kt_config" and isinstance(value, dict):
            backend = str(value.get("kt_backend") or "")
            lost = not backend.upper().endswith("BF16") and not foreign.is_off(value.get("enabled"))
            imported.leave(
                "kt_config", files.shown(backend), Message("why_kt_bits" if lost else "why_speed"), lost=lost
            )
        elif key not in _WHERE:
            imported.leave(str(key), files.shown(value), Message("why_no_option"), lost=True)


def _devices(imported, values: dict[str, Any], count: int) -> None:
    if values.get("use_cpu") is True:
        imported.values["devices"] = "cpu"
        return
    given = str(values.get("gpu_ids", "all")).replace(" ", "")
    if given not in ("all", "", "None"):
        imported.values["devices"] = given.strip(",")
    elif count > 1:
        imported.values["devices"] = ",".join(map(str, range(count)))


def _deepspeed(imported, values: dict[str, Any], read: Callable[[str], str | None]) -> None:
    """The block as what DeepSpeed itself would be given."""
    where = "deepspeed_config"
    for key, value in values.items():
        if key not in _OF_DEEPSPEED and not foreign.is_off(value):
            imported.leave(f"{where}.{key}", files.shown(value), Message("why_memory"))
    if (name := values.get("deepspeed_config_file")) not in (None, "none"):
        deepspeed_file.fill(imported, str(name), read, f"{where}.deepspeed_config_file")
        return
    zero: dict[str, Any] = {"stage": values.get("zero_stage", 2)}
    zero |= {f"offload_{what}": {"device": values.get(f"offload_{what}_device")} for what in ("optimizer", "param")}
    given: dict[str, Any] = {"zero_optimization": zero}
    given |= {key: values.get(key) for key in ("gradient_accumulation_steps", "gradient_clipping")}
    given = {key: value for key, value in given.items() if value != "none"}
    deepspeed_file.fill(imported, given, read, where)


def _count(values: dict[str, Any], key: str) -> int:
    value = values.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise UserError("import_accelerate_count", key=key, value=files.shown(value, 40), most=MOST)
    return value
