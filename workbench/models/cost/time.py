"""How long a run takes, and how much it draws: from earlier runs of the model on the device, else from operations.

A token of a run with frozen weights costs two forward passes, with all weights trained three, and a third or fourth
where layers are computed again (`anatomy/compute.py`). How much of a device's peak a run reaches is taken from runs
that were measured (docs/performance.md): it is an assumption, and is told.
"""

import math
from dataclasses import dataclass

from workbench.config.options import RunConfig
from workbench.models.anatomy import compute
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.cost.batch import Rows
from workbench.models.cost.device import Device
from workbench.models.cost.placement import LINK

# shares of the peak: compiled 26 to 49 % (V2-Lite, Qwen3-8B), recorded only 24 % (V2-Lite), with 8 bits 11 % (Llama 3)
_REACHED = {"compiled": 0.35, "recorded": 0.24, "plain": 0.1, "host": 1.0}


@dataclass(frozen=True)
class Duration:
    """A run's length.

    Attributes:
        steps, epochs: of the run; 0: the rows are not counted. tokens: that it trains on.
        bound: tokens are an upper bound: rows at their longest.
        rate: tokens a second; 0: cannot be told. measured: by how many earlier runs; 0: `reached` of the peak is
            assumed. seconds: of the steps, without the start.
        link: bytes a second that the way from host memory is assumed to carry, where that decides; else 0.
        watts: that the device draws, measured by earlier runs or its limit (`limit`); 0: not told.
    """

    steps: int
    epochs: float
    tokens: int
    bound: bool
    rate: float = 0.0
    measured: int = 0
    reached: float = 0.0
    watts: float = 0.0
    limit: bool = False
    link: float = 0.0

    @property
    def seconds(self) -> float:
        return self.tokens / self.rate if self.rate else 0.0

    @property
    def kilowatt_hours(self) -> float:
        return self.watts * self.seconds / 3.6e6


def duration(
    anatomy: Anatomy, config: RunConfig, rows: Rows, device: Device, facts: dict, earlier: tuple[float, float, int]
) -> Duration:
    """How long a run takes.

    Args:
        facts: of the run's memory estimate: whether layers are compiled, steps recorded.
        earlier: tokens a second, watts, and number of earlier runs of this model on this device; zeros for none.
    """
    longest = rows.longest_of(config, anatomy.sizes.context)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if config.stage == "grpo":
        return _of_answers(config, rows, longest, per_step)
    count = rows.count
    tokens = rows.tokens or count * longest
    if config.packs and count:
        count = max(1, math.ceil(tokens / longest))
    if config.max_steps > 0:
        steps = config.max_steps
        epochs = steps * per_step / count if count else 0.0
    else:
        epochs = config.num_train_epochs
        steps = math.ceil(math.ceil(count / per_step) * epochs) if count else 0
    mean = tokens / count if count else longest
    in_all = int(min(steps * per_step * mean, steps * per_step * longest))
    bound = rows.source != "counted"
    rate, watts, measured = earlier
    if measured:
        return Duration(steps, epochs, in_all, bound, rate, measured, 0.0, watts)
    way = "host" if not device.gpu else next((w for w in ("compiled", "recorded") if facts.get(w)), "plain")
    reached = _REACHED[way]
    # of `freeze` a bound: layers below the first that is trained cost one forward pass
    passes = compute.FULL if config.finetuning_type in ("full", "freeze") else compute.FROZEN
    recomputed = not config.disable_gradient_checkpointing and not (facts.get("compiled") and not facts.get("on_host"))
    operations = (passes + recomputed) * compute.token_flops(anatomy, longest // 2)
    link = _by_link(facts) if device.gpu else 0.0
    if not device.peak:
        by_link = {"rate": link, "watts": device.watts, "limit": True, "link": LINK} if link else {}
        return Duration(steps, epochs, in_all, bound, **by_link)
    rate = device.peak * (device.count if device.gpu and config.device_map == "auto" else 1) * reached / operations
    if device.gpu and config.device_map == "auto":  # layers of one card wait for those of the others
        rate /= device.count
    if 0 < link < rate:
        return Duration(steps, epochs, in_all, bound, link, 0, 0.0, device.watts, True, LINK)
    return Duration(steps, epochs, in_all, bound, rate, 0, reached, device.watts, True)


def _of_answers(config: RunConfig, rows: Rows, longest: int, per_step: int) -> Duration:
    """Steps and tokens of grpo, whose batches count answers. How long these take to write is not told."""
    questions = max(1, per_step // config.num_generations)
    if config.max_steps > 0:
        steps, epochs = config.max_steps, config.max_steps * questions / rows.count if rows.count else 0.0
    else:
        epochs = config.num_train_epochs
        steps = math.ceil(math.ceil(rows.count / questions) * epochs) if rows.count else 0
    return Duration(steps, epochs, steps * per_step * longest, True)


def _by_link(facts: dict) -> float:
    """Tokens a second as the copies of weights from host memory allow, two of all layers for a micro-batch; 0: there
    are none."""
    return facts["tokens"] * LINK / (2 * facts["host_bytes"]) if facts.get("weights_on") == "host" else 0.0
