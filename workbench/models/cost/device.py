"""The machine at hand, as the driver's own tool describes it: no torch here. And the sizes of cards that are asked
about."""

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from workbench.models.cost.constants import GIB, MIB

SIZES = (8, 12, 16, 24, 40, 48, 80, 141)  # GB, as cards are sold
_TOLD = 0.985  # of which the driver shows as much, in GiB
# Operations a second in 16 bits, without sparsity, from the makers' data sheets
_PEAK = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "A40": 150e12,
    "A6000": 155e12,
    "RTX 6000 Ada": 364e12,
    "5090": 210e12,
    "4090": 165e12,
    "4080": 97e12,
    "3090": 71e12,
    "V100": 112e12,
    "T4": 65e12,
}
_CORE = 55e9  # operations a second of a CPU's core in 32 bits: 108 GFLOP/s of the demo on 2 cores


@dataclass(frozen=True)
class Device:
    """`memory`: bytes of one; `count` of this kind; `watts`: its power limit (0: not told). `gpu`: else the host."""

    name: str
    memory: int
    gpu: bool
    count: int = 1
    watts: float = 0.0

    @property
    def peak(self) -> float:
        """Operations a second in 16 bits (of the host in 32); 0 for a card that is not in the table."""
        if not self.gpu:
            return _CORE * self.count
        found = [name for name in _PEAK if name.lower() in self.name.lower()]
        return _PEAK[max(found, key=len)] if found else 0.0


def card_memory(size: int) -> int:
    """Bytes of a card that is sold with so many GB."""
    return int(size * _TOLD * GIB)


@functools.cache
def cards() -> tuple[Device, ...]:
    """The GPUs of this machine, each as a device of its own; asked once in a process."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,power.limit", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in output.splitlines():
        name, memory, watts = ([*line.split(","), "", ""])[:3]
        try:
            found.append(Device(name.strip(), int(float(memory) * MIB), True, 1, _number(watts)))
        except ValueError:
            continue
    return tuple(found)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def host() -> Device:
    """The machine's memory, or what its control group may take of it."""
    memory = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        memory = min(memory, int(limit)) if limit.isdigit() else memory
    except OSError:
        pass
    return Device("CPU", memory, False, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def device_for(devices: str) -> Device:
    """What `devices` of a run or a chat means here; `count` GPUs where it names several. The smallest of them."""
    here = cards()
    if devices == "cpu" or not here:
        return host()
    if devices in ("auto", "all"):
        chosen = list(here)
    else:
        numbers = [int(part) for part in devices.split(",") if part.strip().isdigit()]
        chosen = [here[number] for number in numbers if number < len(here)] or [here[0]]
    least = min(chosen, key=lambda card: card.memory)
    return Device(least.name, least.memory, True, len(chosen), least.watts)
