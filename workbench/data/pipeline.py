"""One pass over a dataset on all cores: what is wrong with which row, and the training rows of the others. Nothing is
kept here.

The process that calls reads; the parsing, checking and tokenizing of rows is done in others, in batches whose results
come in order.
"""

import itertools
import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace

import numpy as np

from workbench.data.dataset import raw_rows, with_layout
from workbench.data.encode import IGNORE, Encoded, Encoder, only_last_trained
from workbench.data.formats import BROKEN, Example, notices, to_example
from workbench.data.readers import BadRow, Raw
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.messages.message import Message, stored

_ROWS, _BYTES = 256, 1 << 20  # of a batch
_ALONE = 4  # batches that are done here; what has no more needs no other processes


@dataclass(frozen=True)
class Problem:
    """Something about a row: `place` is `file:line`, `kind` one of `formats.KINDS_OF_PROBLEMS`, `reason` a
    message, `row` its number from 1 on (in a batch: within it)."""

    place: str
    kind: str
    reason: str
    row: int = 0

    @property
    def broken(self) -> bool:
        """The row cannot be used."""
        return self.kind in BROKEN

    def as_json(self) -> dict:
        """For JSON: the reason in English, and in `message` its code and values."""
        return vars(self) | {"message": stored(self.reason)}


@dataclass
class Batch:
    """What came of some rows: problems, content digests (None for broken rows), and their training rows one after the
    other.

    `ids` and `labels` are flat; training row i has `lengths[i]` of them and had `full[i]` before it was cut. Where a
    row is of two conversations, `parts` has the lengths of both, and `wanted` says whether the first one's answer is.
    """

    rows: int = 0
    offset: int = -1
    problems: list[Problem] = field(default_factory=list)
    digests: list[tuple[str, int | None]] = field(default_factory=list)
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    lengths: list[int] = field(default_factory=list)
    full: list[int] = field(default_factory=list)
    parts: list[list[int]] = field(default_factory=list)
    wanted: list[bool] = field(default_factory=list)
    shortened: int = 0
    pairs: int = 0
    unwanted: int = 0


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan(
    info: DatasetInfo, encoder: Encoder | None = None, *, limit: int | None = None, workers: int | None = None
) -> Iterator[Batch]:
    """Go through a dataset. With an `encoder`, rows are tokenized too.

    Args:
        limit: only the first rows.
        workers: processes; all cores if not given.

    Raises:
        UserError: the dataset cannot be read, its layout is not known, or a worker was killed.
    """
    info = with_layout(info)
    batches = _batches(itertools.islice(raw_rows(info), limit))
    for rows in itertools.islice(batches, _ALONE):
        yield work(rows, info, encoder)
    more = next(batches, None)
    if more is None:
        return
    batches = itertools.chain([more], batches)
    workers = min(workers or cores(), cores())
    if workers == 1:
        yield from (work(rows, info, encoder) for rows in batches)
        return
    # pickled by hand, so that a worker can first make up its mind about torch
    job = pickle.dumps((info, encoder))
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(job, os.getpid(), _share_of_memory(workers)),
    )
    waiting: deque = deque()
    try:
        for rows in batches:
            waiting.append(pool.submit(_work, rows))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("reader_killed_workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(rows: Iterable[Raw]) -> Iterator[list[Raw]]:
    batch, size = [], 0
    for raw in rows:
        batch.append(raw)
        size += len(raw.data) if isinstance(raw.data, bytes) else 1000
        if len(batch) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_job: tuple[DatasetInfo, Encoder | None]


def _share_of_memory(workers: int) -> int:
    """Bytes of data that each of some processes may hold, where this one is limited; 0: as many as there are."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return 0 if limit == resource.RLIM_INFINITY else max(limit // workers, 512 << 20)


def _begin(job: bytes, parent: int, memory: int) -> None:
    global _job
    import resource
    import signal

    from workbench.data.chat_template import without_torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _end_with(parent)
    without_torch()
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    _job = pickle.loads(job)


def _end_with(parent: int) -> None:
    """Let this process end when its parent does, also when that is killed."""
    import ctypes
    import signal
    import sys

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _work(rows: list[Raw]) -> Batch:
    return work(rows, *_job)


def work(rows: list[Raw], info: DatasetInfo, encoder: Encoder | None) -> Batch:
    """Read, check and (with an encoder) tokenize rows."""
    batch = Batch(rows=len(rows), offset=rows[-1].offset)
    units: list[tuple[list[Encoded], bool]] = []  # what belongs together, and whether its answer is wanted
    answers: list[tuple[Example, bool]] = []
    for number, raw in enumerate(rows, 1):
        example, encoded, problems = look(raw, info, encoder)
        batch.problems += [replace(problem, row=number) for problem in problems]
        batch.digests.append((raw.place, example.digest() if example else None))
        if example is None:
            continue
        batch.pairs += example.chosen is not None
        batch.unwanted += example.label is False
        if encoder is None:
            continue
        if encoder.kind == "pairs":
            units.append((encoded, True))
        elif encoder.kind == "labeled":
            answers += labeled(example)
        elif example.label is not False:  # an answer that is not wanted is nothing to imitate
            units += [([one], True) for one in encoded]
    if encoder is not None:
        units += _with_foreign_answers(answers, encoder)
        _lay_down(units, batch, together=encoder.kind != "conversations")
    return batch


def labeled(example: Example) -> list[tuple[Example, bool]]:
    """`(conversation, whether its answer is wanted)`: of a row with a label one, of a preference pair both answers."""
    if example.chosen is None:
        return [(example, example.label is True)]
    return [
        (Example(example.messages + answer, example.tools), wanted)
        for answer, wanted in ((example.chosen, True), (example.rejected or [], False))
    ]


def _with_foreign_answers(answers: list[tuple[Example, bool]], encoder: Encoder) -> list[tuple[list[Encoded], bool]]:
    """Each conversation, and its question once more with the answer that belongs to the one before: what the KL term of
    KTO (arXiv 2402.01306) is estimated from."""
    units, before = [], answers[-1][0].messages[-1] if answers else {}
    for example, wanted in answers:
        own = encoder.encode(only_last_trained(example.messages), example.tools)
        try:
            foreign = encoder.encode(only_last_trained([*example.messages[:-1], before]), example.tools)
        except UserError:  # a call, say, to a tool that this question does not have
            foreign = own
        units.append(([own, foreign], wanted))
        before = example.messages[-1]
    return units


def _lay_down(units: list[tuple[list[Encoded], bool]], batch: Batch, *, together: bool) -> None:
    """Write training rows into `batch`, one of each unit. One of whose conversations nothing is trained has no labels
    at all."""
    ids: list[int] = []
    labels: list[int] = []
    for parts, wanted in units:
        trained = all(part.trained for part in parts)
        for part in parts:
            ids += part.input_ids
            labels += part.labels if trained else [IGNORE] * len(part.labels)
        batch.lengths.append(sum(len(part.input_ids) for part in parts))
        batch.full.append(sum(part.full_length for part in parts))
        batch.shortened += any(part.dropped_turns or part.cuts for part in parts)
        if together:
            batch.parts.append([len(part.input_ids) for part in parts])
            batch.wanted.append(wanted)
    batch.ids, batch.labels = np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32)


def look(raw: Raw, info: DatasetInfo, encoder: Encoder | None) -> tuple[Example | None, list[Encoded], list[Problem]]:
    """One row: as an example (None if it is broken), its training rows, what is wrong with it."""
    problems, encoded = [], []
    try:
        example = to_example(raw.row(), info)
    except BadRow as bad:
        return None, [], [Problem(raw.place, bad.kind, bad.message)]
    problems += [Problem(raw.place, bad.kind, bad.message) for bad in notices(example)]
    if encoder is None:
        return example, [], problems
    if lacking := _lacking(example, encoder.kind):
        return None, [], [Problem(raw.place, "missing", Message(lacking))]
    try:
        encoded = encoder.encode_example(example)
    except UserError as error:
        return None, [], [Problem(raw.place, "template", error.message)]
    except RecursionError:
        return None, [], [Problem(raw.place, "template", Message("row_nested_template"))]
    if encoder.kind == "pairs" and encoded[0].input_ids == encoded[1].input_ids:
        return None, [], [Problem(raw.place, "empty", Message("answers_same_cut"))]
    cutoff = encoder.cutoff_len
    first = max(encoded, key=lambda one: one.full_length) if encoder.kind == "pairs" else next(iter(encoded), None)
    problems += [Problem(raw.place, kind, reason) for kind, reason in (first.notices if first else ())]
    if first is not None and cutoff and first.full_length > cutoff:
        lost = []
        if first.dropped_turns:
            lost.append(Message("lost_turns", count=first.dropped_turns))
        if first.cut_tokens:
            where = Message("lost_answer_end") if first.answer_cut else Message("lost_middle")
            lost.append(Message("lost_tokens", where=where, count=first.cut_tokens))
        reason = Message("row_too_long", tokens=first.full_length, cutoff=cutoff, lost=lost)
        problems.append(Problem(raw.place, "too_long", reason))
    return example, encoded, problems


def _lacking(example: Example, kind: str) -> str:
    """What a row has not that a stage needs, as the code of a message; empty if it can be used."""
    if kind == "pairs" and example.chosen is None:
        return "row_no_pair"
    return "row_no_label" if kind == "labeled" and example.chosen is None and example.label is None else ""
