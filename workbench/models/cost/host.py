"""Memory of the host that a run on the CPU takes: everything is float32 there, and steps are transformers' own."""

from dataclasses import dataclass, replace

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.messages.message import Message
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.cost import constants
from workbench.models.cost.adapters import trained
from workbench.models.cost.batch import Rows, answers_cache, batch, eager
from workbench.models.cost.layers import How, layer_cost
from workbench.models.cost.parts import Estimate
from workbench.models.cost.placement import divides_ends, streamed
from workbench.models.cost.weights import Form, Loaded

CHUNK = 512  # positions whose logits exist at once (`train/fast/cross_entropy.py`)


@dataclass
class HostMemory:
    """The estimate of a run without a GPU. `converts`: the demo model is made first, in the same process.

    A step was seen to take about what all its layers would keep, computed again or not: probably glibc (before 2.38)
    hardly uses again what aligned tensors leave.
    """

    anatomy: Anatomy
    config: RunConfig
    rows: Rows
    converts: bool = False

    def estimate(self) -> Estimate:
        """The run's parts at its largest need: resident memory of the trainer's process."""
        config, sizes = self.config, self.anatomy.sizes
        form = Form(config.quantization_bit or 0, config.double_quantization, bytes=4)
        loaded, learned = Loaded(self.anatomy, form), trained(self.anatomy, config)
        made = batch(config, sizes, self.rows, recorded=False, grain=1)
        how = How(
            rank=0 if config.finetuning_type == "oft" else config.lora_rank,
            mixed=True,
            bits=form.bits,
            packed_experts=form.bits == 4 and loaded.fused_fits,
            width=4,
            scores=made.longest if eager(config, sizes) else 0,
            dropout=config.lora_dropout > 0 and config.finetuning_type == "lora",
            full=config.finetuning_type in ("full", "freeze"),
            turned=config.finetuning_type == "oft",
        )
        weights, models = loaded.bytes, 1 + config.keeps_reference + config.scores_answers
        static = {
            "weights": (weights.plain + weights.packed) * models,
            "constants": weights.constants * models,
            "adapters": learned.copies(4),
            "gradients": learned.gradients(4),
            "optimizer": learned.state_of(config, 4),
        }
        tokens, costs = made.tokens, []
        for layer in self.anatomy.layers:
            cost = layer_cost(sizes, layer, learned.targets.of_layer(layer.numbers[0]), how, tokens)
            costs.append((layer, replace(cost, unpacked=2 * cost.unpacked, passing=cost.passing + cost.unpacked)))
        keeps = config.disable_gradient_checkpointing
        kept = sum(cost.kept * len(layer.numbers) for layer, cost in costs)
        grown = kept * (constants.HOST_KEPT if keeps else constants.HOST_PASSED)
        unpacked = max(cost.unpacked for _, cost in costs)
        logits = 2 * min(CHUNK, tokens) * sizes.vocabulary * 4
        trains = {"phase": "layers", "activations": int(grown), "workspace": unpacked}
        trains["logits"] = max(0, logits - int(grown))  # these come in the place of what the layers have left
        phases = [trains]
        notes = []
        if config.stage == "grpo":
            phases.append({"phase": "answers", "cache": answers_cache(config, sizes, self.rows, 4)})
            notes.append(Message("cost_grpo", tokens=config.max_completion_length))
        elif config.eval_strategy != "no":
            seen = config.per_device_eval_batch_size * self.rows.longest_evaluated(config, sizes.context)
            left = int(grown * constants.HOST_LEFT)
            phases.append({"phase": "evaluation", "activations": left, "logits": 4 * seen * sizes.vocabulary})
        if self.converts:
            phases.append({"phase": "loading", "workspace": constants.DEMO_CONVERSION})
        largest = max(phases, key=_bytes)
        parts = static | {name: value for name, value in largest.items() if name != "phase"}
        parts["context"] = constants.HOST_BASE
        facts = {"tokens": tokens, "compiled": False, "recorded": False, "joined": made.joined}
        facts |= learned.facts(4)
        if config.weights_on == "host":  # the same memory holds both: weights, and the slots that they stream through
            placed = streamed(loaded)
            parts["weights"], parts["constants"] = placed.stays + placed.host + placed.slots, 0
            facts |= {"weights_on": "host", "host_bytes": placed.host}
        elif config.weights_on == "shared":  # what one process has of them
            placed = streamed(loaded, max(2, len(split_names(config.devices))), divides_ends(config))
            parts["weights"], parts["constants"] = placed.here, 0
            facts |= {"weights_on": "shared", "host_bytes": placed.host}
        facts["phases"] = {phase["phase"]: _bytes(phase) for phase in sorted(phases, key=_bytes)}
        total = sum(parts.values())
        return Estimate(parts, total, str(largest["phase"]), facts, notes)


def _bytes(phase: dict) -> int:
    return int(sum(value for name, value in phase.items() if name != "phase"))
