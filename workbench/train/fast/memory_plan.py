"""What a run keeps for the backward pass, from what a step was seen to need and what the GPU has."""

import torch

from workbench.config.options import RunConfig
from workbench.models.quantized.weights import keep_unpacked
from workbench.train.fast.compiled import decoder_layers, keep_layers
from workbench.train.fast.compiler_cache import Need
from workbench.train.fast.offload import Offload
from workbench.train.metrics_log import log

_GIB = 2**30
_RECORDED = 1.2  # what recordings hold of a step's memory: smaller ones do not fit without gaps into the largest one's


class MemoryPlan:
    """The stored activations of one model: `offload` are those of layers that are computed again, `kept` the others."""

    def __init__(self, config: RunConfig, causal, offload: Offload, kept: Offload):
        self._config, self._causal, self._offload, self._kept = config, causal, offload, kept

    def measured(self, before: int, standing: int, scale: float = 1.0) -> Need:
        """What the step that has just been made needed, for one of `scale` times its tokens.

        Args:
            before: bytes that were there before it.
            standing: bytes that an earlier one had left behind.
        """
        values = torch.cuda.max_memory_allocated() - before, self._offload.stored_bytes, self._kept.stored_bytes
        step, stored, kept = (int(value * scale) for value in values)
        return Need(standing, step, stored, kept)

    def lacking(self, need: Need, to_come: int) -> float:
        """The share of a step's memory, recorded, that is not there: 0 if it fits.

        Args:
            to_come: bytes that will be there before a step and are not yet.
        """
        recorded = max(1.0, need.step * _RECORDED)
        return max(0.0, (recorded - need.step - self._spare(need, to_come)) / recorded)

    def apply(self, need: Need, to_come: int) -> None:
        """Choose what is kept; says so in the log."""
        layers = len(decoder_layers(self._causal))
        spare = self._spare(need, to_come)
        peak = (torch.cuda.memory_allocated() + need.step) / _GIB
        log(f"A step needs {peak:.1f} GiB of GPU memory; layers are computed again in the backward pass.")
        step, stored, kept = (value / _GIB for value in (need.step, need.stored, need.kept))
        log(
            f"Beyond what stands: {step:.2f} GiB; its layers store {stored:.2f}, a layer that keeps all {kept:.2f} GiB."
        )
        from_host = self._config.weights_on == "host"  # larger micro-batches, for the same weights, are worth more
        if self._config.activation_memory == "least" or from_host or spare < need.stored:
            return
        self._offload.active = False
        spare -= need.stored
        more = need.kept - need.stored / max(1, layers - 1)  # what another layer takes if it is kept
        count = min(layers, 1 + int(max(0.0, spare) / max(1.0, more)))
        keep_layers(self._causal, count, self._kept)
        spare -= (count - 1) * more
        stays = self._config.weights_on not in ("host", "shared")
        unpacked = self._keep_unpacked(spare) if count == layers and stays else 0
        log(
            f"{count} of {layers} layers keep what they compute for the backward pass"
            + (f"; {unpacked} keep their experts unpacked." if unpacked else ".")
        )

    def _spare(self, need: Need, to_come: int) -> float:
        return memory_limit(self._config) - torch.cuda.memory_allocated() - to_come - need.step

    def _keep_unpacked(self, spare: float) -> int:
        from workbench.models.quantized.layout import is_fused_experts

        count = 0
        for module in self._causal.modules():
            if is_fused_experts(module) and hasattr(module, "packed_handle"):
                size = sum(
                    p.quant_state.shape.numel() * 2 for p in module._parameters.values() if hasattr(p, "quant_state")
                )
                if size > spare:
                    break
                spare -= keep_unpacked(module)
                count += 1
        return count


def memory_limit(config: RunConfig) -> float:
    """Bytes of GPU memory that this process may have allocated, with a margin for fragments."""
    free, _ = torch.cuda.mem_get_info()
    usable = free + torch.cuda.memory_reserved()
    if config.max_gpu_memory:
        usable = min(usable, config.max_gpu_memory * _GIB)
    return usable - max(0.4 * _GIB, 0.04 * usable)
