"""Datasets as token ids and labels, kept on disk by content and settings, so that a second run starts at once.

A prepared dataset is a folder with `rows.arrow` (memory-mapped: it never has to fit into memory) and `summary.json`.
Its name is made of what it depends on: the files' content, their layout, the tokenizer, the template, the options, and
this code.
"""

import errno
import itertools
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from workbench.data.dataset import data_files
from workbench.data.encode import Encoder
from workbench.data.hub_datasets import dataset_rows
from workbench.data.pipeline import Batch, Problem, scan
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.messages.message import Message, restored, stored
from workbench.models.demo import Progress
from workbench.storage import files
from workbench.storage.workspace import Workspace

_LISTED = 200  # problems whose words are kept; all are counted
_LIMIT_GIB = float(os.environ.get("WORKBENCH_CACHE_GIB", 50))


@dataclass
class Summary:
    """What a dataset came to. `rows`: of the data; `kept`: training rows made of them; `longest`: tokens of the longest
    of these; `problems`: counts by kind. `messages`: the reasons of `first` once more, as `stored`."""

    rows: int = 0
    kept: int = 0
    longest: int = 0
    tokens: int = 0
    trained: int = 0
    full_tokens: int = 0
    shortened: int = 0
    broken: int = 0
    pairs: int = 0
    unwanted: int = 0
    untrained: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    first: list[tuple[str, str, str]] = field(default_factory=list)
    messages: list = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        self.rows += batch.rows
        self.pairs += batch.pairs
        self.unwanted += batch.unwanted
        self.shortened += batch.shortened
        for problem in batch.problems:
            self.problems[problem.kind] = self.problems.get(problem.kind, 0) + 1
            self.broken += problem.broken
            if problem.broken and len(self.first) < _LISTED:
                self.first.append((problem.place, problem.kind, str(problem.reason)))
                self.messages.append(stored(problem.reason))

    @property
    def broken_rows(self) -> list[Problem]:
        """The first broken rows."""
        kept = itertools.zip_longest(self.first, self.messages)
        return [Problem(place, kind, restored(message, reason)) for (place, kind, reason), message in kept]


@dataclass
class Prepared:
    """A dataset that is tokenized: `rows()` has `input_ids` and `labels`, and where rows are of two conversations
    `seq_lengths` and `wanted`; the file has `full_length`, too, tokens before `cutoff_len`."""

    folder: Path
    summary: Summary

    def rows(self):
        """A `datasets.Dataset`, on disk."""
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / "rows.arrow")).remove_columns("full_length")


def prepare(
    info: DatasetInfo,
    encoder: Encoder,
    workspace: Workspace,
    progress: Progress,
    *,
    limit: int | None = None,
    workers: int | None = None,
) -> Prepared:
    """Tokenize a dataset, or take what was made before.

    Raises:
        UserError: it cannot be read, or the disk is full. Broken rows are left out and told in the summary.
    """
    folder = workspace.cache / "tokens" / key(info, encoder, limit)
    if (folder / "summary.json").is_file():
        try:
            summary = Summary(**files.read_object(folder / "summary.json"))
            os.utime(folder)
            return Prepared(folder, summary)
        except (OSError, ValueError, TypeError, UserError):
            shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        summary = _write(partial, info, encoder, progress, limit, workers)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "summary.json").is_file():
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError("disk_full_tokens", name=info.name, folder=folder.parent) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _prune(folder)
    return Prepared(folder, summary)


def _write(partial: Path, info: DatasetInfo, encoder: Encoder, progress: Progress, limit, workers) -> Summary:
    import pyarrow as pa

    size = info.path.stat().st_size if info.path and info.path.is_file() else 0
    kind = pa.list_(pa.int32())
    together = encoder.kind != "conversations"
    more = [("seq_lengths", kind), ("wanted", pa.bool_())] if together else []
    schema = pa.schema([("input_ids", kind), ("labels", kind), ("full_length", pa.int32()), *more])
    summary, told = Summary(), 0.0
    with pa.OSFile(str(partial / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in scan(info, encoder, limit=limit, workers=workers):
            summary.add(batch)
            lengths, ids, labels = _only_trained(batch, summary)
            if lengths:
                offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
                columns = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, labels)]
                columns.append(pa.array(batch.full, pa.int32()))
                if together:
                    columns += [pa.array(batch.parts, kind), pa.array(batch.wanted, pa.bool_())]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            summary.kept += len(lengths)
            summary.tokens += sum(lengths)
            summary.longest = max(summary.longest, max(lengths, default=0))
            summary.full_tokens += sum(batch.full)
            if time.monotonic() - told > 0.5:
                told = time.monotonic()
                progress(
                    Message("tokenizing_rows", name=info.name, rows=summary.rows),
                    min(1.0, batch.offset / size) if size and batch.offset > 0 else 0.0,
                )
    (partial / "summary.json").write_text(json.dumps(asdict(summary)), encoding="utf-8")
    return summary


def _only_trained(batch: Batch, summary: Summary) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The batch's training rows without those in which nothing is trained on."""
    if batch.ids is None or batch.labels is None or not batch.lengths:
        return [], np.empty(0, np.int32), np.empty(0, np.int32)
    counts = np.add.reduceat(batch.labels != -100, np.concatenate([[0], np.cumsum(batch.lengths)[:-1]]))
    summary.trained += int(counts.sum())
    if counts.all():
        return batch.lengths, batch.ids, batch.labels
    summary.untrained += int((counts == 0).sum())
    keep = np.repeat(counts > 0, batch.lengths)
    batch.full = list(itertools.compress(batch.full, counts))
    batch.parts = list(itertools.compress(batch.parts, counts))
    batch.wanted = list(itertools.compress(batch.wanted, counts))
    return list(itertools.compress(batch.lengths, counts)), batch.ids[keep], batch.labels[keep]


def key(info: DatasetInfo, encoder: Encoder, limit: int | None = None) -> str:
    """A name for what comes of `info` with these settings: the same if and only if nothing has changed that matters."""
    tokenizer = encoder.tokenizer
    parts = [
        _code(),
        _content(info),
        info.formatting,
        info.ranking,
        sorted(info.columns.items()),
        sorted(info.tags.items()),
        info.split,
        info.encoding,
        limit,
        _hash(tokenizer.backend_tokenizer.to_str()),
        tokenizer.eos_token_id,
        sorted(map(str, tokenizer.special_tokens_map.items())),
        tokenizer.chat_template,
        encoder.training_template,
        encoder.cutoff_len,
        encoder.train_on_prompt,
        encoder.mask_history,
        encoder.kind,
    ]
    return _hash(json.dumps(parts, default=str))


def _hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def content_key(info: DatasetInfo) -> str:
    """The same while the rows of a dataset are; empty where that cannot be known (a hub's, which has its versions)."""
    return _hash(repr(_content(info))) if info.path is not None else ""


def _content(info: DatasetInfo) -> list:
    """What a dataset's content is known by."""
    if info.path is None:
        return [
            info.hub,
            info.ms_hub,
            info.subset,
            info.folder,
            getattr(dataset_rows(info), "_fingerprint", time.time()),
        ]
    parts = []
    for file in data_files(info):
        digest = xxhash.xxh3_128()
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        parts += [file.name, digest.hexdigest()]
    return parts


@lru_cache
def _code() -> str:
    """This package's code and the tokenizers' version: what they make of a row may change with them."""
    import tokenizers
    import transformers

    digest = xxhash.xxh3_128(f"{tokenizers.__version__} {transformers.__version__}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _prune(latest: Path) -> None:
    """Delete what was not used for longest where all together is more than the limit (`WORKBENCH_CACHE_GIB`)."""
    folders = sorted(
        (f for f in latest.parent.iterdir() if f.is_dir() and f != latest),
        key=lambda f: f.stat().st_mtime,
        reverse=True,
    )
    total = sum(f.stat().st_size for f in latest.iterdir())
    for folder in folders:
        if folder.name.startswith(".partial-"):
            if time.time() - folder.stat().st_mtime > 86_400:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        total += sum(f.stat().st_size for f in folder.iterdir())
        if total > _LIMIT_GIB * 2**30:
            shutil.rmtree(folder, ignore_errors=True)
