"""`deepspeed` of a run: what of a config of DeepSpeed is handed to it. The rest of such a file is a run's options."""

from typing import Any

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

# of `zero_optimization`, what a run hands to DeepSpeed: numbers and switches, none of which names a file or a program
_NUMBERS = (
    "allgather_bucket_size", "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "sub_group_size",
)  # fmt: skip
_SWITCHES = (
    "overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions", "round_robin_gradients",
)  # fmt: skip


def zero_of(text: str) -> dict[str, Any]:
    """`zero_optimization` of a config of DeepSpeed (`deepspeed` of a run): its stage, 1 to 3, sizes, switches, and what
    is kept in host memory.

    Raises:
        UserError: no JSON object, another stage, or another device than cpu.
    """
    if len(text) > files.MAX_YAML:
        raise files.Unreadable("deepspeed", Message("has_more_mib", most=files.MAX_YAML >> 20))
    config = files.parse_json(text, "deepspeed")
    if not isinstance(config, dict):
        raise UserError("deepspeed_wrong", problem=Message("not_json_object"))
    zero = block_of(config, "zero_optimization", "deepspeed_wrong")
    stage = zero.get("stage", 0)
    if not isinstance(stage, int) or isinstance(stage, bool) or not 1 <= stage <= 3:
        raise UserError("deepspeed_wrong", problem=Message("zero_no_stage_here", stage=files.shown(stage, 40)))
    kept: dict[str, Any] = {"stage": stage}
    for key in _NUMBERS:
        value = zero.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 40:
            kept[key] = int(value)
        elif value == "auto" and stage == 3 and key.startswith(("reduce", "stage3_p")):  # that transformers fills in
            kept[key] = value
    kept |= {key: zero[key] for key in _SWITCHES if isinstance(zero.get(key), bool)}
    for key in ("offload_optimizer", "offload_param"):
        device = block_of(zero, key, "deepspeed_wrong").get("device", "none")
        if device not in ("none", "cpu", None):
            problem = Message("zero_no_device", key=key, device=files.shown(device, 40))
            raise UserError("deepspeed_wrong", problem=problem)
        if device == "cpu":
            kept[key] = {"device": "cpu", "pin_memory": zero[key].get("pin_memory") is True}
    return kept


def block_of(config: dict[str, Any], key: str, code: str = "import_deepspeed") -> dict[str, Any]:
    """An object in another. Raises UserError: it is something else."""
    value = config.get(key)
    if value is None or value == "auto":
        return {}
    if not isinstance(value, dict):
        raise UserError(code, problem=Message("zero_no_block", key=key, value=files.shown(value, 40)))
    return value
