"""How many tokens a micro-batch has: of rows laid end to end, of padded rows, of packed ones."""

import math
from dataclasses import dataclass

from workbench.config.options import RunConfig
from workbench.models.anatomy.cache import cache_bytes
from workbench.models.anatomy.sizes import Sizes

GRAIN = 128  # sizes of joined micro-batches are multiples of this (`train/fast/rows.py`)
_SINGLE = "eager", "disabled"


@dataclass(frozen=True)
class Rows:
    """What is known of a run's rows.

    Attributes:
        count: rows; 0: not known.
        tokens: of all rows; 0: not known.
        longest: tokens of the longest row, cut; 0: not known.
        source: `counted` (by an earlier run of the same data), `bytes` (a bound: no row has more tokens than bytes), or
            empty: nothing is known but the cut.
        uniform: all rows have one length.
    """

    count: int = 0
    tokens: int = 0
    longest: int = 0
    source: str = ""
    uniform: bool = False

    def longest_of(self, config: RunConfig, context: int) -> int:
        """Tokens of the longest row that a run makes of them."""
        if config.packs:
            return config.cutoff_len or context or 4096
        return self.longest_evaluated(config, context)

    def longest_evaluated(self, config: RunConfig, context: int) -> int:
        """The same of the rows of evaluation, which are never packed."""
        cut = config.cutoff_len or context or 4096
        answer = config.max_completion_length if config.stage == "grpo" else 0  # after the question, which alone is cut
        return max(1, min(self.longest, cut) if self.longest else cut) + answer


def padded_length(length: int) -> int:
    """The next length that batches are padded to for recordings (`train/fast/step_graph.py`)."""
    step = max(16, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


def joins(config: RunConfig, sizes: Sizes) -> bool:
    """Whether the rows of a run can be laid end to end (`train/fast/strategy.why_padded`), as far as a config tells."""
    if config.neftune_noise_alpha or config.device_map == "auto":
        return False
    own_balance = sizes.experts is not None and not sizes.model_type.startswith("deepseek")
    if config.moe_aux_loss_coef and own_balance:
        return False
    return not (sizes.family.sinks or eager(config, sizes))


def eager(config: RunConfig, sizes: Sizes) -> bool:
    """Whether attention has all scores at once: asked for, or as soft caps need it."""
    return config.flash_attn in _SINGLE or sizes.model_type in ("gemma2", "gpt_oss")


def answers_cache(config: RunConfig, sizes: Sizes, rows: Rows, bytes_each: int) -> int:
    """Bytes of keys and values while grpo writes the answers of a step, all at once, in numbers of `bytes_each`."""
    answers = config.per_device_train_batch_size * config.gradient_accumulation_steps
    tokens = answers * rows.longest_of(config, sizes.context)
    return int(tokens * cache_bytes(sizes, 1, windows=False, bits=8 * bytes_each))


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch. `tokens`: of it, padding included. `longest`: of one row. `joined`: rows are laid end to
    end. `least`: tokens that it can be cut down to where memory is short."""

    tokens: int
    longest: int
    joined: bool
    least: int


def batch(config: RunConfig, sizes: Sizes, rows: Rows, *, recorded: bool, grain: int = GRAIN) -> Batch:
    """The largest micro-batch of a run. `recorded`: steps are CUDA graphs."""
    longest = rows.longest_of(config, sizes.context)
    size = config.per_device_train_batch_size
    if config.stage == "grpo":
        return Batch(longest * size, longest, False, longest * size)
    uniform = rows.uniform and not config.packs and config.weights_on != "host"
    if not joins(config, sizes) or uniform:
        length = padded_length(longest) if recorded else longest
        return Batch(length * size, length, False, length * size)
    per_step = size * config.gradient_accumulation_steps
    bound = longest * per_step
    if rows.count and rows.tokens and not config.packs:
        bound = min(bound, rows.tokens)
    wanted = longest * per_step if config.weights_on == "host" else longest * size  # a pass over all layers is dear
    tokens = max(longest, min(wanted, bound))
    return Batch(_rounded(tokens, grain), longest, True, _rounded(longest, grain))


def _rounded(size: int, grain: int) -> int:
    return math.ceil(size / grain) * grain
