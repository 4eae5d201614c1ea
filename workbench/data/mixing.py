"""Which rows a run trains on: drawn from datasets, mixed, split. Works on any `datasets.Dataset`: of tokens, or of
their lengths only."""

import random

from workbench.config.options import RunConfig
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError

_MIXES = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


def drawn(rows, info: DatasetInfo, config: RunConfig):
    """`num_samples` rows at random (some twice if it has fewer), then at most `max_samples`: as LLaMA-Factory draws."""
    if info.num_samples is None or not len(rows):
        return rows
    draw = random.Random(config.seed)
    order = draw.sample(range(len(rows)), min(info.num_samples, len(rows)))
    order += [draw.randrange(len(rows)) for _ in range(info.num_samples - len(order))]
    return rows.select(order[: config.max_samples])


def joined(parts: list):
    """All rows one after the other. None if there are none."""
    from datasets import concatenate_datasets

    return concatenate_datasets(parts) if parts else None


def mixed(parts: list, config: RunConfig):
    """All parts as one, as `mix_strategy` says. None if there are none. Raises UserError: a wrong number of
    `interleave_probs`."""
    if config.mix_strategy == "concat" or len(parts) < 2:
        return joined(parts)
    from datasets import interleave_datasets

    shares = config.shares()
    if shares and len(shares) != len(parts):
        raise UserError("shares_for_datasets", shares=len(shares), datasets=len(parts))
    return interleave_datasets(parts, shares, seed=config.seed, stopping_strategy=_MIXES[config.mix_strategy])


def split(rows, config: RunConfig):
    """`(training rows, evaluation rows)` as `val_size` says: a share, or a number of rows. Raises UserError: nothing is
    left of one."""
    count = int(config.val_size) if config.val_size >= 1 else round(len(rows) * config.val_size)
    if not 0 < count < len(rows):
        raise UserError(
            "val_size_leaves",
            val_size=config.val_size,
            training=max(0, len(rows) - count),
            evaluation=min(count, len(rows)),
            rows=len(rows),
        )
    order = list(range(len(rows)))
    random.Random(config.seed).shuffle(order)
    held = sorted(order[:count])
    return rows.select(sorted(order[count:])), rows.select(held)
