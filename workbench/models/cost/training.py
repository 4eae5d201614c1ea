"""Memory of a run on a GPU, part by part, at the moment of its largest need.

A run is `static` (weights, adapters, gradients, optimizer) and what a step adds. Without compiled layers transformers'
checkpointing keeps each layer's input; the largest need is at the output head, or when the last layer is computed again
on its way back. With compiled layers `plan` decides what is kept. Loading is a need of its own: it is the largest one
of short batches.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from workbench.config.conflicts import plain_steps, why_not_shared, why_on_card
from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.messages.message import Message
from workbench.models.anatomy import units
from workbench.models.anatomy.shapes import Anatomy, Layer
from workbench.models.cost import constants
from workbench.models.cost.adapters import Trained, trained
from workbench.models.cost.batch import Batch, Rows, answers_cache, batch, eager
from workbench.models.cost.constants import GIB, MIB
from workbench.models.cost.layers import How, LayerCost, layer_cost
from workbench.models.cost.parts import Estimate
from workbench.models.cost.placement import Streamed, divides_ends, packing_bytes, streamed
from workbench.models.cost.plan import Need, Plan, lacking, plan, worth_compiling
from workbench.models.cost.split import fullest
from workbench.models.cost.weights import Form, Loaded

CHUNK = 2048  # positions whose logits exist at once (`train/fast/cross_entropy.py`)
AT_ONCE = 256 * MIB  # of gradients up to which a step has a second copy of them (`train/fast/step_graph.py`)


@dataclass(frozen=True)
class Gpu:
    """`memory`: bytes that a run may take, its context included. `cards`: that share it (`device_map: auto`).
    `processes`: that train together, one on each such GPU."""

    memory: float
    cards: int = 1
    processes: int = 1


class TrainingMemory:
    """The estimate of one run on one kind of GPU. `weights_on: auto` counts as `card` here; `placement` decides."""

    def __init__(self, anatomy: Anatomy, config: RunConfig, rows: Rows, gpu: Gpu):
        self.anatomy, self.config, self.rows = anatomy, config, rows
        self.memory = gpu.memory - constants.CONTEXT
        if config.max_gpu_memory:
            self.memory = min(self.memory, config.max_gpu_memory * GIB)
        self.cards = gpu.cards if config.device_map == "auto" else 1
        self.fast = config.device_map == "none" and not plain_steps(config)
        # a reference or a reward model of another size is counted as one of this
        self.models = 1 + config.keeps_reference + config.scores_answers
        self.models += config.stage == "grpo" and config.grpo_beta > 0 and config.finetuning_type in ("full", "freeze")
        self.form = Form(config.quantization_bit or 0, config.double_quantization)
        self.loaded = Loaded(anatomy, self.form)
        self.trained: Trained = trained(anatomy, config)
        sizes = anatomy.sizes
        self.mixed = not self.fast or config.quantization_bit != 4 or config.use_dora or config.lora_dropout > 0
        self.mixed = self.mixed or config.finetuning_type == "oft"
        self.streamed: Streamed | None = None
        if config.weights_on in ("host", "shared"):
            devices = max(2, gpu.processes) if config.weights_on == "shared" else 0
            self.streamed = streamed(self.loaded, devices, divides_ends(config))
        self.compiled = self.fast and (
            config.torch_compile == "on"
            or (config.torch_compile == "auto" and worth_compiling(self.tokens_in_all, sizes.layers, sizes.hidden))
        )
        self.recorded = (
            self.fast
            and self.streamed is None  # steps whose weights come and go are not recorded
            and config.quantization_bit != 8
            and (  # 8-bit products cannot be recorded
                config.cuda_graphs == "on"
                or (config.cuda_graphs == "auto" and (self.compiled or not config.lora_dropout))
            )
        )
        self.batch: Batch = batch(config, sizes, rows, recorded=self.recorded)
        if not self.fast:
            self.batch = replace(self.batch, joined=False)

    @property
    def tokens_in_all(self) -> float:
        """Tokens that the run trains on, as far as that is known: an upper bound where rows were not counted."""
        config = self.config
        longest = self.rows.longest_of(config, self.anatomy.sizes.context)
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        mean = self.rows.tokens / self.rows.count if self.rows.count and self.rows.tokens else longest
        if config.max_steps > 0:
            return config.max_steps * per_step * mean
        return config.num_train_epochs * (self.rows.tokens or self.rows.count * longest)

    @cached_property
    def how(self) -> How:
        return How(
            rank=0 if self.config.finetuning_type == "oft" else self.config.lora_rank,
            mixed=self.mixed,
            bits=self.form.bits,
            packed_experts=self.form.bits == 4 and self.loaded.fused_fits,
            halves=self.config.weights_on == "shared"
            or (self.config.activation_memory == "least" and not self.compiled),
            scores=self.batch.longest if eager(self.config, self.anatomy.sizes) else 0,
            dropout=self.config.lora_dropout > 0 and self.config.finetuning_type == "lora",
            full=self.config.finetuning_type in ("full", "freeze"),
            turned=self.config.finetuning_type == "oft",
        )

    def _costs(self, tokens: int, unpacked: bool = False) -> list[tuple[Layer, LayerCost]]:
        """Of the layers that there is a way back through."""
        targets, how, first = self.trained.targets, replace(self.how, unpacked=unpacked), self.trained.first
        layers = [
            replace(layer, numbers=kept)
            for layer in self.anatomy.layers
            if (kept := tuple(number for number in layer.numbers if number >= first))
        ] or [replace(self.anatomy.layers[-1], numbers=self.anatomy.layers[-1].numbers[-1:])]
        return [
            (layer, layer_cost(self.anatomy.sizes, layer, targets.of_layer(layer.numbers[0]), how, tokens))
            for layer in layers
        ]

    @cached_property
    def _held(self) -> tuple[int, int]:
        """Bytes of the loaded weights and of their scales; of the fullest of several cards, where the scales are among
        the weights."""
        if self.cards > 1:
            return fullest(self.loaded, self.cards).bytes, 0
        weights = self.loaded.bytes
        return weights.plain + weights.packed, weights.constants

    @cached_property
    def static(self) -> dict[str, int]:
        """Bytes of each part that is there before every step; the optimizer's come with the first."""
        width = self.form.bytes
        casts = 0 if self.mixed else 2 * self.trained.of_linears
        share = self.cards
        here, constants_here = self._held
        if self.streamed is not None:
            here, constants_here = self.streamed.here, 0
        return {
            "weights": here * self.models,
            "constants": constants_here * self.models,
            "adapters": (self.trained.copies(width) + casts) // share,
            "gradients": self.trained.gradients(width) // share,
            "optimizer": self.trained.state_of(self.config, width) // share,
            "workspace": constants.LIBRARIES,
        }

    def _logits(self, tokens: int) -> int:
        """Of the head's chunk. A trained head keeps them in 32 bits, with their gradients, and makes its own gradient
        for each chunk beside the sum of those before."""
        positions, sizes = min(CHUNK, tokens), self.anatomy.sizes
        if self.config.use_asft_loss:  # those of the reference beside them
            return positions * sizes.vocabulary * (constants.TRAINED + 4) + 2 * sizes.vocabulary * sizes.hidden
        if not self._trains_head:
            return positions * sizes.vocabulary * 2
        return positions * sizes.vocabulary * constants.TRAINED + 2 * sizes.vocabulary * sizes.hidden

    @property
    def _trains_head(self) -> bool:
        config = self.config
        if config.finetuning_type == "freeze":
            extra = split_names(config.freeze_extra_modules)
            return "lm_head" in extra or (self.anatomy.sizes.tied and "embed_tokens" in extra)
        return config.finetuning_type == "full" or bool(config.additional_target) or config.new_tokens

    def _ends(self, tokens: int) -> int:
        """Around the head: the last norm's input in 32 bits, its result, its gradient."""
        return tokens * self.anatomy.sizes.hidden * 8

    def _plain(self, tokens: int) -> list[dict[str, int]]:
        """Phases of a step as transformers makes it, with or without checkpointing."""
        costs = self._costs(tokens)
        keeps = self.config.disable_gradient_checkpointing
        stored = sum((c.kept if keeps else c.input + c.outside) * len(layer.numbers) for layer, c in costs)
        stored //= self.cards
        leaves = self.streamed is not None and not keeps  # inputs go to the host's memory
        if leaves:
            stored = self._in_flight(costs)
        grads = self.static["gradients"] if self.fast and self.static["gradients"] <= AT_ONCE else 0
        phases = [{"phase": "head", "activations": stored + self._ends(tokens), "logits": self._logits(tokens)}]
        for layer, cost in costs:
            # the last layer of this kind has all inputs before it, the first one all gradients after it
            for number, gradients in ((max(layer.numbers), 0.0), (min(layer.numbers), 1.0)):
                before = (
                    (cost.input + cost.outside) * (number + 1 - min(self.trained.first, number))
                    if not keeps
                    else stored * (number + 1) // self.anatomy.sizes.layers
                )
                if leaves:
                    before = stored
                part = (self.anatomy.sizes.layers - number) / self.anatomy.sizes.layers
                phases.append(
                    {
                        "phase": "layers",
                        "activations": before // self.cards,
                        "gradients": int(grads * (part if not gradients else 1.0)),
                        "layer": (0 if keeps else cost.kept) + max(0, cost.passing - cost.unpacked),
                        "workspace": min(cost.unpacked, cost.passing),
                    }
                )
        return phases

    def _in_flight(self, costs: list[tuple[Layer, LayerCost]]) -> int:
        """Bytes of inputs that are on their way to the host or back."""
        return max(cost.input for _, cost in costs) * min(constants.IN_FLIGHT, self.anatomy.sizes.layers)

    def _need(self, tokens: int, unpacked: bool = False) -> tuple[Need, list[dict[str, int]]]:
        """What a compiled step needs whose layers are computed again, and its phases. `unpacked`: all experts are kept
        unpacked."""
        costs = self._costs(tokens, unpacked)
        last_number = self.anatomy.sizes.layers - 1
        last = next(cost for layer, cost in costs if last_number in layer.numbers)
        alone = (
            bool(self.trained.targets.experts) and self.config.activation_memory == "least" and self.how.packed_experts
        )
        keeps_last = not alone
        waiting = self._waiting(costs)
        stored = sum(self._stored(cost) * len(layer.numbers) for layer, cost in costs)
        stored -= self._stored(last) if keeps_last else 0
        kept = last.compiled if keeps_last else self._stored(last)
        phases = [
            {
                "phase": "head",
                "activations": waiting + kept + self._ends(tokens),
                "logits": self._logits(tokens),
            }
        ]
        if keeps_last:
            phases.append(
                {
                    "phase": "layers",
                    "activations": waiting + kept,
                    "layer": max(0, last.compiled_passing - last.unpacked),
                    "workspace": min(last.unpacked, last.compiled_passing),
                }
            )
        for _, cost in costs:
            again = cost.beyond_stored + cost.stored - self._stored(cost)
            phases.append(
                {
                    "phase": "layers",
                    "activations": waiting,
                    "layer": max(0, again - cost.unpacked),
                    "workspace": min(cost.unpacked, again),
                }
            )
        return Need(max(_bytes(phase) for phase in phases), stored, kept), phases

    def _stored(self, cost: LayerCost) -> int:
        """Bytes that a compiled layer stores which is computed again: its input alone where weights come from the
        host."""
        return cost.input if self.config.weights_on == "host" else cost.stored

    def _waiting(self, costs: list[tuple[Layer, LayerCost]]) -> int:
        """Bytes that are on their way to the host or back, and what never goes there."""
        moving = max(self._stored(cost) for _, cost in costs) * min(constants.IN_FLIGHT, self.anatomy.sizes.layers)
        return moving + sum(cost.outside * len(layer.numbers) for layer, cost in costs)

    def _compiled(self, tokens: int) -> tuple[list[dict[str, int]], Plan, Need]:
        need, phases = self._need(tokens)
        before = sum(self.static.values())
        sizes = self.anatomy.sizes
        if self.config.disable_gradient_checkpointing:
            chosen = Plan(False, sizes.layers, 0, int(need.stored + (sizes.layers - 1) * need.kept), 0)
        else:
            chosen = plan(
                need,
                before,
                self.memory,
                sizes.layers,
                self._unpacked_experts(),
                least=self.config.activation_memory == "least" or self.config.weights_on == "host",
            )
        if chosen.unpacked_layers and chosen.unpacked_layers == len(self._unpacked_experts()):
            _, phases = self._need(tokens, unpacked=True)
        waiting = 0 if chosen.on_host else self._waiting(self._costs(tokens))
        for phase in phases:  # nothing waits for its copy that stays
            phase["activations"] += chosen.more - chosen.unpacked - waiting
            phase["unpacked"] = chosen.unpacked
        return phases, chosen, need

    def _unpacked_experts(self) -> list[int]:
        if not self.how.packed_experts or self.streamed is not None:
            return []
        return [
            sum(2 * w.count for w in layer.weights if w.component == "experts")
            for layer in self.anatomy.layers
            for _ in layer.numbers
            if layer.mixture
        ]

    def estimate(self) -> Estimate:
        """The run's parts at its largest need."""
        tokens = self.batch.tokens
        facts: dict = {
            "tokens": tokens,
            "compiled": self.compiled,
            "recorded": self.recorded,
            "joined": self.batch.joined,
            "layers": self.anatomy.sizes.layers,
            **self.trained.facts(self.form.bytes),
        }
        if self.streamed is not None:
            placed = {"weights_on": self.config.weights_on, "host_bytes": self.streamed.host}
            facts |= placed | {"slot_bytes": self.streamed.slots}
            facts["packing_bytes"] = packing_bytes(self.loaded)
        result = self._of(tokens, facts)
        while self.batch.joined and tokens > self.batch.least and self._lacks(result):
            tokens = max(self.batch.least, int(tokens * 0.8) // 128 * 128)
            result = self._of(tokens, facts | {"tokens": tokens, "wanted_tokens": self.batch.tokens})
        result.notes += self._notes()
        return result

    def _lacks(self, result: Estimate) -> bool:
        """Whether a run makes its micro-batches smaller than these, as they do not fit."""
        if self.streamed is not None and not self.compiled:
            return result.total > self.memory + constants.CONTEXT
        return result.facts["lacking"] > 0 if self.compiled else result.allocated > self.memory

    def least(self) -> int:
        """Bytes in all with micro-batches as small as they can be."""
        return min(self.estimate().total, self._of(self.batch.least, {}).total)

    def _of(self, tokens: int, facts: dict) -> Estimate:
        static = dict(self.static)
        facts = dict(facts)
        if self.compiled:
            phases, chosen, need = self._compiled(tokens)
            facts |= {
                "on_host": chosen.on_host,
                "kept_layers": chosen.kept_layers,
                "unpacked_layers": chosen.unpacked_layers,
                "step": need.step,
                "stored": need.stored,
                "kept": need.kept,
                "lacking": lacking(need, sum(static.values()), self.memory),
            }
        else:
            phases = self._plain(tokens)
        if self.config.stage == "grpo":
            written = answers_cache(self.config, self.anatomy.sizes, self.rows, 2)
            phases.append({"phase": "answers", "cache": written})
        largest = max(phases, key=_bytes)
        dynamic = _bytes(largest)
        share = constants.GAPS if self.recorded else constants.GAPS_PLAIN
        gaps = constants.GAPS_LEAST + int(min(dynamic, facts.get("step", dynamic)) * share)
        if self.compiled and not facts["on_host"]:  # what is kept was chosen to leave room for them
            gaps = min(gaps, max(0, int(self.memory) - sum(static.values()) - dynamic))
        moments = [{"recordings": 0} | self._loading(), _with(static, largest) | {"recordings": gaps}]
        early = self.recorded and self.batch.joined  # recordings are made before the optimizer has anything
        standing = sum(static.values())
        allocated = [_bytes(moments[0]) - moments[0]["recordings"], standing + dynamic]
        if early:
            allocated[1] = standing + max(dynamic - static["optimizer"], int(dynamic * constants.SECOND), 0)
        for phase in self._evaluation():  # beside what recordings hold
            allocated.append(standing + _bytes(phase))
            moments.append(_with(static, phase) | {"recordings": gaps + (dynamic if self.recorded else 0)})
        chosen_moment = max(moments, key=_bytes)
        parts = {name: value for name, value in chosen_moment.items() if name != "phase"}
        parts["context"] = constants.CONTEXT
        facts |= {"phases": {p["phase"]: _bytes(p) for p in sorted(phases, key=_bytes)}}
        facts["loading"] = _bytes(moments[0])
        return Estimate(parts, int(max(allocated)), str(chosen_moment["phase"]), facts)

    def _loading(self) -> dict:
        """The weights, and the copies of the largest tensor of which it is put together and packed."""
        experts = max((2 * w.count for w, _ in self.anatomy.counted() if w.component == "experts"), default=0)
        plain = not self.how.packed_experts
        largest = experts if plain else max(self.loaded.largest, experts)
        copies, gaps = (
            (constants.LOADING_PLAIN, constants.LOADING_PLAIN_GAPS)
            if plain
            else (constants.LOADING, constants.LOADING_GAPS)
        )
        if self.streamed is not None:  # weights are put together on the host, and packed here one by one
            return {"phase": "loading", "weights": 0, "workspace": int(largest * copies) if self.form.bits else 0}
        return {
            "phase": "loading",
            "weights": self._held[0],
            "constants": self._held[1],
            "workspace": int(largest * copies),
            "recordings": int(largest * gaps),
        }

    def _evaluation(self) -> list[dict]:
        """An evaluation keeps nothing, but has all logits of its batch, in 16 and in 32 bits."""
        config, sizes = self.config, self.anatomy.sizes
        if config.eval_strategy == "no" or config.stage == "grpo":  # whose evaluation is a step without its way back
            return []
        tokens = config.per_device_eval_batch_size * self.rows.longest_evaluated(config, sizes.context)
        logits = int(tokens * sizes.vocabulary * constants.EVALUATED)
        return [{"phase": "evaluation", "layer": 2 * tokens * sizes.hidden * 2, "logits": logits}]

    def _notes(self) -> list[Message]:
        notes = []
        if self.streamed is not None:
            code = "cost_weights_shared" if self.streamed.share else "cost_weights_on_host"
            notes.append(Message(code, host=units.memory(self.streamed.host)))
        if self.cards > 1:
            notes.append(Message("cost_split", cards=self.cards))
        if not self.rows.longest:
            notes.append(Message("cost_rows_unknown", tokens=self.batch.longest))
        if self.trained.targets.unknown:
            notes.append(Message("cost_targets_unknown", names=list(self.trained.targets.unknown)))
        if self.config.stage == "grpo":
            notes.append(Message("cost_grpo", tokens=self.config.max_completion_length))
        if self.config.optim.startswith("paged"):
            notes.append(Message("cost_paged"))
        if self.config.adapter_name_or_path:
            notes.append(Message("cost_adapter_as_said"))
        return notes


def placement(anatomy: Anatomy, config: RunConfig, rows: Rows, gpu: Gpu, factor: float = 1.0) -> str:
    """Where a run's weights are on such a card, `card`, `host` or `shared`: as `weights_on` says; with `auto`
    elsewhere if they are in 4 bits, the run does not fit with them on the card, they are the larger part of it, and it
    fits without.

    Args:
        factor: by which earlier runs correct the estimate.
    """
    if config.weights_on != "auto":
        return config.weights_on
    several = gpu.processes > 1
    if config.quantization_bit != 4 or (why_not_shared(config) if several else why_on_card(config)):
        return "card"
    limit = min(gpu.memory, config.max_gpu_memory * GIB + constants.CONTEXT) if config.max_gpu_memory else gpu.memory

    def fits(total: int) -> bool:
        return (total - constants.CONTEXT) * factor + constants.CONTEXT <= limit

    card = TrainingMemory(anatomy, config, rows, gpu)
    weights = card.loaded.bytes.total
    if 2 * weights < limit or fits(card.least()):
        return "card"
    elsewhere = "shared" if several else "host"
    other = TrainingMemory(anatomy, config.model_copy(update={"weights_on": elsewhere}), rows, gpu)
    return elsewhere if fits(other.least()) else "card"


def _with(static: dict[str, int], phase: dict) -> dict:
    """The parts of a phase on top of what stands."""
    return phase | {name: value + phase.get(name, 0) for name, value in static.items()}


def _bytes(phase: dict) -> int:
    return int(sum(value for name, value in phase.items() if name != "phase"))
