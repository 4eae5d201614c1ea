"""The command line of another engine as a child: which program, with which options and environment. No torch here."""

import json
import os
import shutil
from pathlib import Path

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.storage import files
from workbench.storage.workspace import CODE

TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
# where the program is, when it is not on the PATH: set by who owns the machine, never by the page
VARIABLES = {"vllm": "WORKBENCH_VLLM", "sglang": "WORKBENCH_SGLANG"}
KEYS = ("WORKBENCH_API_KEY", "WORKBENCH_ENGINE_KEY")  # of ours, which a child has no use for
# what vLLM's --max-lora-rank takes: https://docs.vllm.ai/en/latest/cli/serve/
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_COMMON_RANK = 64  # adapters that are loaded later should fit, too


def find_program(engine: str) -> str:
    """The program that serves `engine` (`vllm` or `sglang`). Raises UserError where it is not installed."""
    named = os.environ.get(VARIABLES[engine], "")
    if found := shutil.which(named or engine):
        return found
    raise UserError(
        "engine_program_missing", engine=TITLES[engine], program=named or engine, variable=VARIABLES[engine]
    )


def command_line(
    config: EngineConfig, program: str, model: str, name: str, adapters: dict[str, Path], port: int
) -> list[str]:
    """How `config.engine` is started.

    Args:
        model: a folder or a hub id.
        name: of the base model, in its API.
        adapters: names and folders of LoRA adapters.

    Raises:
        UserError: an adapter's rank is larger than the engine takes.
    """
    return (_vllm if config.engine == "vllm" else _sglang)(config, program, model, name, adapters, port)


def _vllm(config, program, model, name, adapters, port) -> list[str]:
    # https://docs.vllm.ai/en/latest/cli/serve/
    line = [program, "serve", model, "--host", "127.0.0.1", "--port", port, "--served-model-name", name]
    line += ["--tensor-parallel-size", config.tensor_parallel_size, "--revision", config.model_revision]
    line += _given(config, "--dtype", "--gpu-memory-utilization", "--max-model-len")
    if adapters:
        modules = [json.dumps({"name": one, "path": str(folder)}) for one, folder in adapters.items()]
        line += ["--enable-lora", "--max-lora-rank", _rank(adapters), "--lora-modules", *modules]
    return [str(part) for part in line]


def _sglang(config, program, model, name, adapters, port) -> list[str]:
    # https://docs.sglang.io/advanced_features/server_arguments.html
    python = Path(program).name.startswith("python")
    line = [program, *(("-m", "sglang.launch_server") if python else ("serve",)), "--model-path", model]
    line += ["--host", "127.0.0.1", "--port", port, "--served-model-name", name]
    line += ["--tp-size", config.tensor_parallel_size, "--revision", config.model_revision]
    line += _given(config, "--dtype", "--mem-fraction-static", "--context-length")
    if adapters:
        paths = [f"{one}={folder}" for one, folder in adapters.items()]
        line += ["--enable-lora", "--max-lora-rank", _rank(adapters), "--lora-paths", *paths]
    return [str(part) for part in line]


def _given(config: EngineConfig, dtype: str, memory: str, length: str) -> list:
    """The options that were set, under the engine's own names."""
    line: list = [] if config.infer_dtype == "auto" else [dtype, config.infer_dtype]
    line += [] if config.gpu_memory_utilization is None else [memory, config.gpu_memory_utilization]
    line += [] if config.max_model_len is None else [length, config.max_model_len]
    return line + (["--trust-remote-code"] if config.trust_remote_code else [])


def _rank(adapters: dict[str, Path]) -> int:
    """The largest rank to make room for."""
    highest = _COMMON_RANK
    for name, folder in adapters.items():
        config = files.read_object(folder / "adapter_config.json")
        patterns = config.get("rank_pattern")
        ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
        rank = max((one for one in ranks if isinstance(one, int)), default=0)
        if rank > RANKS[-1]:
            raise UserError("engine_rank_too_large", name=name, rank=rank, most=RANKS[-1])
        highest = max(highest, rank)
    return next(rank for rank in RANKS if rank >= highest)


def child_environment(config: EngineConfig, key: str, adapters: bool) -> dict[str, str]:
    """The environment of a child: without our keys and our package, with `key` where it reads one there."""
    env = {name: value for name, value in os.environ.items() if name not in KEYS}
    paths = [path for path in env.pop("PYTHONPATH", "").split(os.pathsep) if path and Path(path).resolve() != CODE]
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    if config.devices != "auto":
        env["CUDA_VISIBLE_DEVICES"] = "" if config.devices == "cpu" else config.devices
    env |= {"PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1"}
    if config.engine == "vllm":
        env |= {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}
        if adapters:  # without it there is no route that loads one; the key keeps others from it
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    else:
        env["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "1"  # before temperature, as ours are
    return env
