"""What a dataset comes to under the options of a run: lengths, what `cutoff_len` costs, steps and time of an epoch,
suggestions."""

import bisect
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workbench.config.options import RunConfig
from workbench.data.mixing import drawn, mixed, split
from workbench.data.registry import DatasetInfo
from workbench.data.token_cache import Prepared
from workbench.runs.metrics import MetricsReader
from workbench.runs.run import list_runs
from workbench.storage.workspace import Workspace

PACKED_TOGETHER = 1000  # rows that TRL's `pack_dataset` packs at a time (the batch size of `datasets.Dataset.map`)
_BINS = 60
_LIKELY = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_KEPT = 0.99  # of the tokens that a suggested cutoff_len should keep
_FEW_STEPS = 50  # an epoch of fewer optimizer steps leaves a schedule little room


@dataclass
class Statistics:
    """`full` and `kept`: tokens of the rows before and after `cutoff_len`; shares are from 0 to 1. `held_out`: rows
    that `val_size` takes.

    `edges` and `counts` are the histogram of the full lengths. `sequences`: what the model sees in an epoch, packed or
    not; `steps`: optimizer steps of an epoch. `seconds` is None as long as no throughput of this model is known.
    `suggestions`: (kind, values) for words in any language.
    """

    rows: int = 0
    training_rows: int = 0
    held_out: int = 0
    broken: int = 0
    untrained: int = 0
    tokens: int = 0
    full_tokens: int = 0
    share_trained: float = 0.0
    longest: int = 0
    mean: float = 0.0
    percentiles: dict[str, int] = field(default_factory=dict)
    cutoff_len: int = 0
    rows_cut: int = 0
    share_rows_cut: float = 0.0
    share_tokens_lost: float = 0.0
    edges: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    packing: bool = False
    packed_sequences: int = 0
    sequences: int = 0
    steps: int = 0
    throughput: float | None = None
    throughput_of: str = ""
    seconds: float | None = None
    suggestions: list[tuple[str, dict]] = field(default_factory=list)


def statistics(parts: list[tuple[DatasetInfo, Prepared]], config: RunConfig, workspace: Workspace) -> Statistics:
    """Statistics of the training rows of tokenized datasets: drawn, mixed and split as the run will.

    Raises:
        UserError: they cannot be mixed or split as the options say.
    """
    summaries = [part.summary for _, part in parts]
    result = Statistics(
        rows=sum(s.rows for s in summaries),
        broken=sum(s.broken for s in summaries),
        untrained=sum(s.untrained for s in summaries),
        share_trained=sum(s.trained for s in summaries) / max(1, sum(s.tokens for s in summaries)),
        cutoff_len=config.cutoff_len,
        packing=config.packs,
    )
    lengths = [drawn(lengths_of(part.folder), info, config) for info, part in parts]
    rows = mixed([one for one in lengths if len(one)], config)
    if rows is None:
        return result
    if config.val_size and not config.eval_dataset:
        rows, held = split(rows, config)
        result.held_out = len(held)
    rows = rows.with_format("numpy")
    kept, full = (np.asarray(rows[name][:], dtype=np.int64) for name in ("kept", "full"))
    result.training_rows, result.tokens, result.full_tokens = len(kept), int(kept.sum()), int(full.sum())
    result.longest, result.mean = int(full.max()), float(full.mean())
    result.percentiles = {str(p): int(np.percentile(full, p, method="higher")) for p in (50, 90, 95, 99)}
    result.rows_cut = int((full > kept).sum())
    result.share_rows_cut = result.rows_cut / len(full)
    result.share_tokens_lost = 1 - result.tokens / result.full_tokens
    result.edges, result.counts = histogram(full)
    result.packed_sequences = packed_count(kept, config.cutoff_len) if config.cutoff_len else len(kept)
    result.sequences = result.packed_sequences if result.packing else len(kept)
    result.steps = steps_of(result.sequences, config)
    speed = known_throughput(config, workspace)
    if speed:
        result.throughput, result.throughput_of = speed
        result.seconds = result.tokens / result.throughput
    result.suggestions = suggestions(result, full, config)
    return result


def lengths_of(folder: Path):
    """The lengths of a tokenized dataset's rows, as a `datasets.Dataset`: `kept` after `cutoff_len`, `full` before. No
    token is held in memory."""
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import compute

    kept, full = [], []
    with pa.memory_map(str(folder / "rows.arrow")) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            kept.append(compute.list_value_length(batch.column("input_ids")).cast(pa.int32()))
            full.append(pa.array(batch.column("full_length").to_numpy().copy()))
    kinds = (pa.chunked_array(kept, pa.int32()), pa.chunked_array(full, pa.int32()))
    return Dataset(pa.table(kinds, names=["kept", "full"]).combine_chunks())


def histogram(lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """`(edges, counts)` with bins of one width; the last bin takes the longest percent where that is far out."""
    top = int(lengths.max())
    far = int(np.percentile(lengths, 99.5))
    end = far if top > 2 * far else top
    width = max(1, -(-(end + 1) // _BINS))
    edges = list(range(0, (end // width + 1) * width + 1, width))
    counts, _ = np.histogram(np.minimum(lengths, edges[-1] - 1), bins=edges)
    if end < top:
        edges[-1] = top + 1
    return edges, counts.tolist()


def packed_count(lengths: np.ndarray, cutoff_len: int, together: int = PACKED_TOGETHER) -> int:
    """Sequences that TRL's packing (best-fit decreasing, `together` rows at a time) makes of rows of these lengths."""
    total = 0
    for start in range(0, len(lengths), together):
        room: list[int] = []  # free tokens of the open sequences, in order
        block = lengths[start : start + together]
        for length in sorted(np.minimum(block[block > 0], cutoff_len).tolist(), reverse=True):
            at = bisect.bisect_left(room, length)
            if at < len(room):
                left = room.pop(at) - length
            else:
                total += 1
                left = cutoff_len - length
            if left:
                bisect.insort(room, left)
    return total


def steps_of(sequences: int, config: RunConfig) -> int:
    """Optimizer steps of an epoch, as transformers' Trainer counts them."""
    batches = math.ceil(sequences / config.per_device_train_batch_size)
    return math.ceil(batches / config.gradient_accumulation_steps)


def known_throughput(config: RunConfig, workspace: Workspace) -> tuple[float, str] | None:
    """`(tokens/s, run id)` of the newest run of the same model that was measured, one with the same quantization and
    packing if there is one."""
    packing, best = config.packs, None
    for run in list_runs(workspace)[:200]:
        values = run.config_values()
        if str(values.get("model_name_or_path", "")).split("/")[-1] != str(config.model_name_or_path).split("/")[-1]:
            continue
        reader = MetricsReader(run.metrics)
        reader.update()
        points = [y for y in reader.series["throughput"].y if y > 0]
        if not points:
            continue
        same = (values.get("quantization_bit") or 0) == (config.quantization_bit or 0) and bool(
            values.get("packing") or values.get("neat_packing")
        ) == packing
        speed = float(np.median(points[-50:])), run.id
        if same:
            return speed
        best = best or speed
    return best


def suggestions(statistics: Statistics, full: np.ndarray, config: RunConfig) -> list[tuple[str, dict]]:
    """What to change, as (kind, values): `cutoff` or `cutoff_lower` (a cutoff_len, the tokens it keeps), `packing_on`
    or `packing_off` (the sequences)."""
    hints: list[tuple[str, dict]] = []
    cutoff = config.cutoff_len
    enough = next((n for n in _LIKELY if np.minimum(full, n).sum() >= _KEPT * full.sum()), None)
    if enough is not None and cutoff and statistics.share_tokens_lost > 1 - _KEPT and enough > cutoff:
        hints.append(("cutoff", {"cutoff_len": enough, "kept": float(np.minimum(full, enough).sum() / full.sum())}))
    whole = next((n for n in _LIKELY if n >= statistics.longest), None)
    if whole is not None and cutoff and cutoff >= 2 * whole and not statistics.packing:
        hints.append(("cutoff_lower", {"cutoff_len": whole, "longest": statistics.longest}))
    if not cutoff:
        return hints
    packed_steps = steps_of(statistics.packed_sequences, config)
    if (
        not statistics.packing
        and statistics.packed_sequences * 2 <= statistics.training_rows
        and packed_steps >= _FEW_STEPS
    ):
        hints.append(("packing_on", {"sequences": statistics.packed_sequences, "rows": statistics.training_rows}))
    few = packed_steps < _FEW_STEPS <= steps_of(statistics.training_rows, config)
    if statistics.packing and (few or statistics.packed_sequences > 0.9 * statistics.training_rows):
        hints.append(("packing_off", {"sequences": statistics.packed_sequences, "steps": packed_steps}))
    return hints
