"""How a run uses its GPU: 4-bit layers as single operators, compiled layers, recorded steps, and all of the memory.

What is stored and what is computed again is chosen from what the first steps were seen to need:

1. Every decoder layer is computed again in the backward pass, but for the last one, whose turn comes at once. What
   they store goes to the host's memory. (With LoRA on the experts, whose way back needs the most memory, `least`
   makes no exception of the last layer.)
2. If there is room, all this stays on the GPU.
3. If there is more, other layers keep all that they computed, too.
4. The rest of the memory holds unpacked experts.

`activation_memory: least` stops at 1.

With weights that come from elsewhere (`weights_on: host`, `shared`), steps are not recorded, and experts are not kept
unpacked. Where they come from the host, a layer stores its input only: what else came back from there would come in the
way of weights. Layers that are not compiled store theirs in the host's memory.

Where rows can be laid end to end (`rows.py`), all of that happens before the first step, with made-up tokens that train
nothing: compiling, measuring, and recording every shape that micro-batches will have. Otherwise batches are padded to a
few lengths, and each is recorded when it has come three times.
"""

import gc
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F

from workbench.config.options import RunConfig
from workbench.data.training_set import conversation_lengths, longest_row, together_in, unit_lengths
from workbench.messages.message import Message
from workbench.models.cost.placement import free_host
from workbench.models.cost.plan import worth_compiling
from workbench.models.quantized.linears import lora_of_linears, use_packed_linears
from workbench.models.quantized.weights import Casts
from workbench.train import ranks
from workbench.train.fast.compiled import compile_again, compile_layers, decoder_layers, keep_layers, store_layers
from workbench.train.fast.compiler_cache import Need, Needs, shape_key
from workbench.train.fast.loss import counted_tokens
from workbench.train.fast.memory_plan import MemoryPlan
from workbench.train.fast.offload import Offload
from workbench.train.fast.rows import IGNORE, Conversation, RowBatch, Shapes, chosen_shapes, conversations
from workbench.train.fast.step_graph import StepGraphs, padded_length
from workbench.train.fast.strategy import own_micro_batches, rows_at_once, scaled
from workbench.train.metrics_log import log, note_peak

OVERHEAD = 1400  # what a micro-batch costs beside its tokens, in tokens: unpacking weights, small kernels
LEFT_FREE = 4 << 30  # bytes of host memory beside what layers store there
_PLAIN_INPUTS = {"input_ids", "labels", "attention_mask"}


class FastStep:
    """The fast step of a run on one GPU.

    Attributes:
        compiled: the decoder layers are compiled (and take care of what gradient checkpointing is for).
        pads: batches are padded to lengths that can be recorded.
        mixed: something still runs as PEFT wrote it, with float32 adapters, and needs autocast.
    """

    static_shapes = True
    counts_on_cpu = True

    def __init__(self, config: RunConfig, model, rows, total_steps: int, joined: bool, report: Callable[[str], None]):
        self._config = config
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._causal = causal
        _, others = use_packed_linears(model)
        self.mixed = others > 0 or config.quantization_bit != 4
        # Routers multiply in float32. TF32 holds their bfloat16 weights and inputs exactly and adds up in float32.
        torch.set_float32_matmul_precision("high")
        longest = longest_row(rows)
        self.shapes: Shapes | None = None
        self._lengths = lengths = conversation_lengths(rows)
        self._together = together_in(rows)
        alike = len({padded_length(sum(row)) for row in lengths}) == 1 == max(map(len, lengths))
        streamed = config.weights_on in ("host", "shared")
        if joined and alike and not streamed and ranks.count() == 1:
            joined = False
            log("Rows are of one length: their batches need no padding.")
        if joined:
            budget = longest * rows_at_once(config)
            if config.weights_on == "host" and not config.disable_gradient_checkpointing:
                budget = max(longest, self._with_room_on_host(budget))
            self.shapes = self._shapes(lengths, budget)
        self._needs, self._key = Needs(), self._shape_key(model)
        rows_in_all = total_steps * config.per_device_train_batch_size * config.gradient_accumulation_steps
        tokens = sum(map(sum, lengths)) / len(lengths) * rows_in_all
        hidden = causal.config.get_text_config().hidden_size
        self.compiled = config.torch_compile == "on" or (
            config.torch_compile == "auto"
            and worth_compiling(tokens, len(decoder_layers(causal)), hidden, again=self._known() is not None)
        )
        if config.weights_on == "shared":
            self.compiled = ranks.agree(self.compiled)
        random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self.pads = config.cuda_graphs == "on" or (config.cuda_graphs == "auto" and (self.compiled or not random))
        self._report = report
        if self.pads and config.quantization_bit == 8:  # how many outliers there are decides the shapes of its products
            self.pads = False
            report(Message("steps_not_recorded_8bit"))
        self.replays = self.pads and not random
        if self.shapes is not None:
            self._most_tokens = self.shapes.sizes[-1]
        else:
            self._most_tokens = (padded_length(longest) if self.pads else longest) * config.per_device_train_batch_size
        self._offload = self._kept = self._casts = None
        self._planned = True
        if self.compiled or (streamed and not config.disable_gradient_checkpointing):
            device = torch.device("cuda", torch.cuda.current_device())
            self._offload = Offload(device, model.parameters(), exact=streamed)
        if streamed and not (self.compiled or config.disable_gradient_checkpointing):
            store_layers(causal, self._offload)
        if self.compiled:
            self._kept = Offload(device, model.parameters(), active=False)
            self._plan = MemoryPlan(config, causal, self._offload, self._kept)
            several = self.shapes is not None and len(self.shapes.sizes) > 1
            from_host = config.weights_on == "host"
            count = compile_layers(causal, self._offload, True if several else None, only_inputs=from_host)
            self._planned = config.disable_gradient_checkpointing
            on_experts = any(getattr(module, "packed_lora", None) for module in causal.modules())
            alone = on_experts and config.activation_memory == "least"
            keep_layers(causal, count if self._planned else int(not alone), self._kept)
            log(f"{count} layers will be compiled in the first step (about a minute; later runs reuse the result).")
        self._steps = 0
        self._trainer = None
        self._graphs = None
        self._unrecorded: list[int] = []

    def _shapes(self, lengths: list[list[int]], budget: int, count: int = 6, say: bool = True) -> Shapes:
        """Up to `count` sizes of micro-batches, for steps of this run's number of rows."""
        config = self._config
        units = unit_lengths(lengths, self._together)
        rows = min(len(lengths), config.per_device_train_batch_size * config.gradient_accumulation_steps)
        per_step = round(rows * len(units) / len(lengths))
        # with weights from host memory a micro-batch costs, beside its tokens, the copies of all layers
        overhead = budget if config.weights_on == "host" else OVERHEAD
        shapes = chosen_shapes(units, per_step, budget, overhead, count, config.seed, self._together)
        sizes = ", ".join(f"{size:,}" for size in shapes.sizes)
        if say:
            log(f"Rows are laid end to end, and each step is cut into micro-batches of {sizes} tokens.")
        return shapes

    def _with_room_on_host(self, budget: int) -> int:
        """Up to so many tokens of which the inputs of all layers fit into host memory beside the weights."""
        hidden = self._causal.config.get_text_config().hidden_size
        each = len(decoder_layers(self._causal)) * hidden * torch.get_autocast_dtype("cuda").itemsize
        most = int(max(0, free_host() - LEFT_FREE) // each)
        if most < budget:
            log(f"Beside the weights, host memory has room for what layers store of {most:,} tokens at a time.")
        return min(budget, most)

    def takes(self, inputs: dict) -> bool:
        return self.shapes is None and set(inputs) <= _PLAIN_INPUTS

    def step(self, trainer, inputs: dict, num_items_in_batch) -> torch.Tensor:
        """One forward and backward pass; the detached loss."""
        if self.shapes is not None:
            return self._joined_step(trainer, inputs, num_items_in_batch)
        inputs = self._padded(trainer, inputs, num_items_in_batch)
        if self._graphs is None:
            self._start(trainer)
        self._steps += 1
        if self._planned:
            loss = self._graphs.run(inputs)
            self._report_problem()
            return loss
        note_peak()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = self._graphs.run(inputs)
        if self._steps == 2:  # the first step compiles, and its memory is not that of a later one
            scale = max(1.0, self._most_tokens / inputs["input_ids"].numel())
            self._plan.apply(self._plan.measured(before, 0, scale), self._optimizer_to_come())
            self._planned = True
            self._graphs.forget()
            self._graphs.enabled = self.pads
        return loss

    def arrange(self, trainer, batches: list[RowBatch]) -> list[dict]:
        if self._graphs is None:
            self._start(trainer)
            self._prepare(trainer)
        while True:
            parts = own_micro_batches(self.shapes, conversations(batches), self._config.weights_on == "shared")
            needed = {part["input_ids"].shape[1] for part in parts}
            sizes = [size for size in self._unrecorded if size in needed] or self._unrecorded[:1]
            if self._record(trainer, sizes):  # what this step needs, or one for a later step
                break
            self._record_largest(trainer)
        return [{name: value for name, value in part.items() if self._wanted(trainer, name)} for part in parts]

    def _wanted(self, trainer, name: str) -> bool:
        return trainer.balance is not None or self._together > 1 or name not in ("segments", "shares")

    def _joined_step(self, trainer, inputs: dict, num_items_in_batch) -> torch.Tensor:
        return self._graphs.run(_moved(scaled(inputs, num_items_in_batch)))

    def _prepare(self, trainer) -> None:
        """Compile, measure and record with made-up tokens. What does not fit is tried with smaller micro-batches."""
        began, start = time.monotonic(), torch.cuda.memory_allocated()
        graphs, shapes = self._graphs, self.shapes
        graphs.enabled = False
        known = None if self._planned else self._known()
        if known is not None and self._plan.lacking(known, known.standing + self._optimizer_to_come()):
            known = None
        if self._config.weights_on == "shared" and None in ranks.gathered(known):
            known = None  # all processes run as many micro-batches as each other
        if known is not None:
            self._plan.apply(known, known.standing + self._optimizer_to_come())
            self._planned = True
        self._run_largest(trainer)
        while not self._planned:
            torch.cuda.synchronize()
            note_peak()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._run_largest(trainer)
            need = self._plan.measured(before, before - start)
            to_come = self._optimizer_to_come()
            lacking = self._plan.lacking(need, to_come)
            if self._config.weights_on == "shared":
                lacking = max(ranks.gathered(lacking))
            if lacking and self._smaller(1 - lacking):
                continue
            if self.shapes == shapes:
                self._needs.put(self._key, need)
            self._plan.apply(need, to_come)
            self._planned = True
            self._run_largest(trainer)
        compiled = time.monotonic()
        graphs.clear_gradients()
        if self.pads:
            torch.cuda.synchronize()
            graphs.enabled = True
            self._unrecorded = list(self.shapes.sizes[::-1])
            self._record_largest(trainer)
        torch.cuda.synchronize()
        log(
            f"Ready for the first step after {time.monotonic() - began:.0f} s ({compiled - began:.0f} s of it for"
            f" compiling{', the memory was known from an earlier run' if known else ''})."
        )

    def _record_largest(self, trainer) -> None:
        """Before the others, which then have room in its memory."""
        while not self._record(trainer, self._unrecorded[:1]):
            pass

    def _record(self, trainer, sizes: list[int]) -> bool:
        """Record these sizes; False if there was no memory for one, and micro-batches are smaller from now on."""
        for size in sizes:
            self._unrecorded.remove(size)
            self._graphs.record(self._made_up(trainer, size))
            if not self._graphs.out_of_memory:
                continue
            problem = self._graphs.problem
            self._graphs.forget()
            if self._smaller(0.8):
                self._graphs.enabled = False
                self._run_largest(trainer)
                self._graphs.clear_gradients()
                self._graphs.enabled = True
                self._unrecorded = list(self.shapes.sizes[::-1])
                return False
            self._graphs.enabled, self._graphs.problem, self._unrecorded = False, problem, []
            break
        self._report_problem()
        return True

    def _run_largest(self, trainer) -> None:
        """Run a made-up micro-batch of the largest size; of a smaller one if the memory does not suffice."""
        while True:
            try:
                self._compiled_for(trainer)
                return
            except torch.OutOfMemoryError:
                # processes that share weights would go on with another number of passes than this one
                if self._config.weights_on == "shared" or not self._smaller(0.7):
                    raise
            gc.collect()
            torch.cuda.empty_cache()

    def _smaller(self, share: float) -> bool:
        """Let micro-batches have at most this share of their tokens; False if conversations would not fit."""
        largest = self.shapes.sizes[-1]
        shapes = self._shapes(self._lengths, int(largest * share), say=False)
        if shapes.sizes[-1] >= largest:
            return False
        self.shapes, self._most_tokens = shapes, shapes.sizes[-1]
        log(f"Micro-batches of {largest:,} tokens do not fit into the GPU's memory; {self._most_tokens:,} are tried.")
        self._graphs.clear_gradients()
        return True

    def _compiled_for(self, trainer) -> None:
        """Run a made-up micro-batch of the largest size, which compiles the layers; in another way if that fails."""
        try:
            self._graphs.run(self._made_up(trainer, self.shapes.sizes[-1]))
            return
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
        try:
            self.shapes = self._shapes(self._lengths, self._most_tokens, count=2)
            self._report(Message("compiled_by_size", reason=reason))
            compile_again(self._causal, dynamic=False)
            self._graphs.run(self._made_up(trainer, self.shapes.sizes[-1]))
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            self._report(Message("layers_not_compiled", reason=reason))
            torch.compiler.set_stance("force_eager")
            self._graphs.run(self._made_up(trainer, self.shapes.sizes[-1]))

    def _made_up(self, trainer, size: int) -> dict:
        """A micro-batch of random tokens, of which none is trained."""
        generator = np.random.default_rng(0)
        shapes, parts = self.shapes, []
        for at in range(0, size, shapes.longest):
            ids = generator.integers(0, self._causal.get_input_embeddings().weight.shape[0], shapes.longest)
            ids = ids[: size - at]
            parts.append(Conversation(ids, np.full(len(ids), IGNORE), 0.0))
        made = shapes.joined(parts[: shapes.most], size)
        return _moved(scaled({k: v for k, v in made.items() if self._wanted(trainer, k)}, 1))

    def _report_problem(self) -> None:
        if self._graphs.problem:
            self._report(Message("steps_not_recorded", reason=self._graphs.problem))
            self._graphs.problem = ""

    def _padded(self, trainer, inputs: dict, num_items_in_batch) -> dict:
        """The batch at a length that has a recording, with `scale`, what its summed loss is multiplied by."""
        length = inputs["input_ids"].shape[1]
        missing = padded_length(length) - length if self.pads else 0
        labels = inputs["labels"]
        if num_items_in_batch is None:
            count = labels[:, 1:].ne(-100).sum().clamp(min=1)
            scale = 1 / (count * trainer.current_gradient_accumulation_steps)
        else:
            scale = torch.full((), 1 / max(1, int(num_items_in_batch)), device=labels.device)
        padded = {
            "input_ids": F.pad(inputs["input_ids"], (0, missing)),
            "labels": F.pad(labels, (0, missing), value=-100),
            "scale": scale,
        }
        if trainer.balance is not None:
            padded["counted"] = F.pad(counted_tokens(inputs), (0, missing))
        return padded

    def _start(self, trainer) -> None:
        self._trainer = trainer
        trainable = [p for p in trainer.model.parameters() if p.requires_grad]
        if not self.mixed:
            dtype = self._causal.get_input_embeddings().weight.dtype
            self._casts = Casts(lora_of_linears(trainer.model), dtype)
        self._graphs = StepGraphs(trainable, self._forward_and_backward)
        self._graphs.enabled = self.pads and self._planned

    def begin(self) -> None:
        """Before every forward pass."""
        if self._offload is not None:
            self._offload.begin()
        if self._kept is not None:
            self._kept.begin()
        if self._casts is not None:
            self._casts.refresh()

    def _forward_and_backward(self, inputs: dict) -> torch.Tensor:
        loss = self._trainer.loss_of(inputs)
        self._trainer.accelerator.backward(loss)
        return loss.detach()

    def _shape_key(self, model) -> str:
        """Of everything that a step's need of memory depends on; empty where batches are padded rows."""
        if self.shapes is None:
            return ""
        config = self._config
        least, attention = config.activation_memory == "least", config.flash_attn
        where = () if config.weights_on in ("auto", "card") else (config.weights_on,)
        return shape_key(model, self.shapes, least, attention, config.moe_aux_loss_coef, config.lora_dropout, *where)

    def _known(self) -> Need | None:
        return self._needs.get(self._key) if self._key else None

    def _optimizer_to_come(self) -> int:
        """Bytes that the optimizer will take with its first step, if that was not taken yet."""
        optimizer = self._trainer.optimizer
        if optimizer is not None and getattr(optimizer, "optimizer", optimizer).state:
            return 0
        return sum(2 * p.numel() * p.element_size() for p in self._trainer.model.parameters() if p.requires_grad)


def _moved(inputs: dict) -> dict:
    """On the GPU, without waiting for it."""
    device = torch.device("cuda", torch.cuda.current_device())
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in inputs.items()}
