"""How a run uses its GPU: 4-bit layers as single operators, compiled layers, recorded steps, and all of the memory.

What is stored and what is computed again is chosen from what the first steps were seen to need:

1. Every decoder layer is computed again in the backward pass, and what it stores goes to the host's memory.
2. If there is room, it stays on the GPU.
3. If there is more, one layer keeps all that it computed; from what that takes follows how many layers can.
4. The rest of the memory holds unpacked experts.

`activation_memory: least` stops at 1.
"""

import torch
from torch import nn

from workbench.models.compiled import compile_layers, decoder_layers, keep_layers
from workbench.models.linears import use_packed_linears
from workbench.models.offload import Offload
from workbench.models.packed import keep_unpacked
from workbench.options import RunConfig
from workbench.train.report import log, note_peak
from workbench.train.step_graph import StepGraphs, padded_length

COMPILE_FROM_STEPS = 200  # shorter runs would wait longer for the compiler than they save
_GIB = 2**30


class Speed:
    """The fast step of a run on one GPU.

    Attributes:
        compiled: the decoder layers are compiled (and take care of what gradient checkpointing is for).
        pads: batches are padded to lengths that can be recorded.
        mixed: something still runs as PEFT wrote it, with float32 adapters, and needs autocast.
    """

    def __init__(self, config: RunConfig, model, rows, total_steps: int):
        self._config = config
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._causal = causal
        _, others = use_packed_linears(model)
        self.mixed = others > 0 or config.quantization_bit != 4
        # Routers multiply in float32. TF32 holds their bfloat16 weights and inputs exactly and adds up in float32.
        torch.set_float32_matmul_precision("high")
        self.compiled = config.torch_compile == "on" or (
            config.torch_compile == "auto" and total_steps >= COMPILE_FROM_STEPS
        )
        random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self.pads = config.cuda_graphs == "on" or (config.cuda_graphs == "auto" and (self.compiled or not random))
        longest = max(len(row) for row in rows["input_ids"])
        longest = padded_length(longest) if self.pads else longest
        self._most_tokens = longest * config.per_device_train_batch_size
        self._offload = None
        if self.compiled:
            self._offload = Offload(torch.device("cuda", torch.cuda.current_device()), model.parameters())
            keep = config.disable_gradient_checkpointing
            count = compile_layers(causal, self._offload)
            if keep:
                keep_layers(causal, count)
            log(f"{count} layers will be compiled in the first step (about a minute; later runs reuse the result).")
        self._stage = "measure" if self.compiled and not config.disable_gradient_checkpointing else "done"
        self._steps = 0
        self._trainer = None
        self._graphs = None

    def step(self, trainer, inputs: dict) -> torch.Tensor:
        """One forward and backward pass; the detached loss."""
        if self._graphs is None:
            self._trainer = trainer
            trainable = [p for p in trainer.model.parameters() if p.requires_grad]
            self._graphs = StepGraphs(trainable, self._forward_and_backward)
            self._graphs.enabled = self.pads and self._stage == "done"
        self._steps += 1
        if self._stage == "done":
            loss = self._graphs.run(inputs)
            if self._graphs.problem:
                log(f"Steps cannot be recorded and run from Python instead: {self._graphs.problem}")
                self._graphs.problem = ""
            return loss
        note_peak()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = self._graphs.run(inputs)
        peak = torch.cuda.max_memory_allocated()
        # the first step of a kind compiles, and its memory is not that of a later one
        if self._steps % 2 == 0:
            self._plan(before, peak, inputs["input_ids"].numel())
            self._graphs.forget()
            self._graphs.enabled = self.pads and self._stage == "done"
        return loss

    def begin(self) -> None:
        """Before every forward pass."""
        if self._offload is not None:
            self._offload.begin()

    def _forward_and_backward(self, inputs: dict) -> torch.Tensor:
        loss = self._trainer.loss_of(inputs)
        self._trainer.accelerator.backward(loss)
        return loss.detach()

    def _plan(self, before: int, peak: int, tokens: int) -> None:
        scale = max(1.0, self._most_tokens / tokens)
        offload, layers = self._offload, decoder_layers(self._causal)
        spare = memory_limit(self._config) - before - (peak - before) * scale - self._optimiser_to_come()
        stored = offload.stored_bytes * scale
        if self._stage == "measure":
            self._stored = stored / len(layers)
            self._stage = "done"
            log(f"A step needs {peak / _GIB:.1f} GiB of GPU memory; layers are computed again in the backward pass.")
            if self._config.activation_memory == "least" or spare < stored:
                return
            offload.active = False
            if spare - stored > 12 * self._stored:
                keep_layers(self._causal, 1)
                self._stage = "keep"
            return
        kept = stored - self._stored * (len(layers) - 1)
        more = int(max(0, spare) / max(1.0, kept - self._stored))
        count = min(len(layers), 1 + more)
        keep_layers(self._causal, count)
        spare -= (count - 1) * (kept - self._stored)
        unpacked = self._keep_unpacked(spare) if count == len(layers) else 0
        self._stage = "done"
        log(f"{count} of {len(layers)} layers keep what they compute for the backward pass"
            + (f"; {unpacked} keep their experts unpacked." if unpacked else "."))  # fmt: skip

    def _keep_unpacked(self, spare: float) -> int:
        from workbench.models.quant4 import is_fused_experts

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

    def _optimiser_to_come(self) -> int:
        """Bytes that the optimiser will take with its first step, if that was not taken yet."""
        optimizer = self._trainer.optimizer
        if optimizer is not None and getattr(optimizer, "optimizer", optimizer).state:
            return 0
        return sum(2 * p.numel() * p.element_size() for p in self._trainer.model.parameters() if p.requires_grad)


def memory_limit(config: RunConfig) -> float:
    """Bytes of GPU memory that this process may have allocated, with a margin for fragments."""
    free, _ = torch.cuda.mem_get_info()
    usable = free + torch.cuda.memory_reserved()
    if config.max_gpu_memory:
        usable = min(usable, config.max_gpu_memory * _GIB)
    return usable - max(0.4 * _GIB, 0.04 * usable)
