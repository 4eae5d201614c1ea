"""How much memory a model takes, by arithmetic on its files. No torch here."""

import subprocess
from pathlib import Path

import psutil

from workbench.errors import UserError
from workbench.storage import files

_OF_16_BIT = {4: 0.32, 8: 0.55}  # what is left of 16-bit weights: embeddings and output head are not quantized
_BEYOND = 1.1  # buffers, KV cache of a conversation


def weights_gib(folder: Path) -> float:
    """GiB of a model folder's weight files; 0 for something that is not there."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30 if folder.is_dir() else 0.0


def loaded_gib(folder: Path, bits: int | None, on_gpu: bool) -> float:
    """About how many GiB a folder of weights takes when loaded; on the CPU unquantized weights become float32."""
    return weights_gib(folder) * _as_16_bit(folder) * _OF_16_BIT.get(bits, 1.0 if on_gpu else 2.0) * _BEYOND


def _as_16_bit(folder: Path) -> float:
    """How much of the files' size is left in 16 bits: half for float32 files."""
    try:
        config = files.read_object(folder / "config.json")
        return 0.5 if "float32" in (config.get("dtype"), config.get("torch_dtype")) else 1.0
    except (OSError, UserError):
        return 1.0


def free_gib(devices: str = "auto") -> tuple[float, bool]:
    """`(free GiB, whether that is a GPU's)`: of the named GPUs, or of the machine's memory."""
    if devices != "cpu":
        command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        if devices != "auto":
            command.append(f"--id={devices}")
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            free = [float(line) / 1024 for line in output.split()]
            if free:
                return (free[0] if devices == "auto" else sum(free)), True
        except (OSError, ValueError, subprocess.SubprocessError):
            pass
    return psutil.virtual_memory().available / 2**30, False
