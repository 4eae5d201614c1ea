"""What a command says of processes and devices: `torchrun`, `accelerate launch`, `deepspeed`, and the environment of
`llamafactory-cli`. Here a run has one process on each of its `devices`."""

import re

from workbench.config import foreign
from workbench.config.option import split_names
from workbench.messages.message import Message
from workbench.storage import files

_PROCESSES = ("nproc_per_node", "num_processes", "num_gpus", "NPROC_PER_NODE")
_GPUS = ("gpu_ids", "CUDA_VISIBLE_DEVICES")
_HOSTS = ("nnodes", "num_machines", "num_nodes", "NNODES")
# where processes meet, which the workbench finds by itself
_MEETING = (
    "node_rank", "machine_rank", "master_addr", "master_port", "main_process_ip", "main_process_port", "rdzv_backend",
    "rdzv_endpoint", "rdzv_id", "rdzv_conf", "standalone", "max_restarts", "multi_gpu", "same_network", "NODE_RANK",
    "MASTER_ADDR", "MASTER_PORT", "FORCE_TORCHRUN", "dynamo_backend", "num_cpu_threads_per_process", "use_env",
)  # fmt: skip
KEYS = frozenset((*_PROCESSES, *_GPUS, *_HOSTS, *_MEETING))
MOST = 1024  # processes


def launch(values: dict[str, str]) -> tuple[str, list[tuple[str, str, Message, bool]]]:
    """`(devices, left out)` of what a command says: `devices` as an option, empty where nothing is said; what could not
    be taken over as `(key, value, why, lost)`.

    Args:
        values: options before the program and variables of the environment; those that are not in `KEYS` are left
            alone.
    """
    left = []
    for key in _HOSTS:
        if (given := values.get(key, "1")).strip() not in ("", "1", "1:1"):
            left.append((key, files.shown(given, 40), Message("why_accelerate_machines"), True))
    ids: list[str] = []
    for key in _GPUS:
        if key in values:
            given = values[key].replace(" ", "").strip(",")
            if re.fullmatch(r"\d+(,\d+)*", given):
                ids = ids or split_names(given)
            elif given not in ("all", ""):
                left.append((key, files.shown(given, 40), Message("why_environment"), False))
    for key in _PROCESSES:
        if key not in values:
            continue
        given = values[key].strip()
        if given in ("gpu", "auto"):
            return ",".join(ids) or "all", left
        if not given.isdigit() or not 1 <= int(given) <= MOST or (ids and int(given) > len(ids)):
            left.append((key, files.shown(given, 40), Message("why_processes"), True))
        else:
            return ",".join(ids[: int(given)] or map(str, range(int(given)))), left
    if not ids and not foreign.is_off(values.get("FORCE_TORCHRUN")):
        return "all", left
    return ",".join(ids), left
