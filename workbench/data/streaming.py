"""Rows that are read while a run trains (`streaming`): nothing is tokenized beforehand, and none is kept.

Files are read from their beginning to their end, again and again, and shuffled within a window of `buffer_size` rows.
A hub's dataset is downloaded first, as always.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from workbench.config.options import RunConfig
from workbench.data.encode import Encoder
from workbench.data.mixing import mixed
from workbench.data.pipeline import scan
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.messages.message import Message


def stream(
    infos: list[DatasetInfo], encoder: Encoder, config: RunConfig, log: Callable[[str], None]
) -> tuple[object, object]:
    """`(training rows as a `datasets.IterableDataset`, evaluation rows or None)`.

    Raises:
        UserError: fewer rows than are to be held out. Iterating: a broken row, unless `skip_broken_rows`.
    """
    from datasets import Dataset, Features, IterableDataset, List, Value

    kind = List(Value("int32"))
    features = Features({"input_ids": kind, "labels": kind})
    parts = [
        IterableDataset.from_generator(
            read_rows, features=features, gen_kwargs={"info": info, "encoder": encoder, "config": config}
        )
        for info in infos
    ]
    once, held_out, count = mixed(parts, config), None, int(config.val_size)
    if count:
        kept = list(islice(once, count + 1))
        if len(kept) <= count:
            raise UserError("streaming_held_out", count=count, rows=len(kept))
        held_out = Dataset.from_list(kept[:count], features=features)
    rows = IterableDataset.from_generator(
        _again_and_again, features=features, gen_kwargs={"rows": once, "count": count}
    )
    if not config.disable_shuffling:
        rows = rows.shuffle(seed=config.seed, buffer_size=config.buffer_size)
    names = ", ".join(info.name for info in infos)
    log(f"{names}: rows are read while the run trains, shuffled within {config.buffer_size:,} rows.")
    return rows, held_out


def _again_and_again(rows, count: int) -> Iterator[dict]:
    """All rows but the first `count`, without end: a run that goes on finds its place by counting them."""
    while True:
        yield from islice(rows, count, None)


def read_rows(info: DatasetInfo, encoder: Encoder, config: RunConfig) -> Iterator[dict]:
    """Training rows of a dataset, one by one. Raises UserError: a broken row, or nothing to train on."""
    found = False
    limit = config.max_samples if info.num_samples is None else info.num_samples
    for batch in scan(info, encoder, limit=limit, workers=1):
        broken = [problem for problem in batch.problems if problem.broken]
        if broken and not config.skip_broken_rows:
            first = broken[0]
            place = Message("at_place", place=first.place, problem=first.reason)
            raise UserError("streaming_broken", name=info.name, first=place)
        if batch.ids is None or batch.labels is None:
            continue
        ends = np.cumsum(batch.lengths)
        for end, length in zip(ends, batch.lengths, strict=True):
            labels = batch.labels[end - length : end]
            if (labels != -100).any():
                found = True
                yield {"input_ids": batch.ids[end - length : end].tolist(), "labels": labels.tolist()}
    if not found:
        raise UserError("streaming_nothing", name=info.name)
