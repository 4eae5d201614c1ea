"""Every row of a dataset that cannot be used, or should be looked at, by file and line with the reason."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from workbench.data.dataset import raw_rows, with_layout
from workbench.data.duplicates import Seen
from workbench.data.encode import Encoder
from workbench.data.formats import KINDS_OF_PROBLEMS, ONCE
from workbench.data.pipeline import Batch, Problem, look, scan
from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.messages.message import Message

_FIRST = 1000  # rows that are looked at before a run starts


@dataclass
class Report:
    """What a check came to; complete when `problems_of` has ended. `offset`: byte of the file that it has reached, -1
    if not known."""

    rows: int = 0
    broken: int = 0
    offset: int = -1
    counts: dict[str, int] = field(default_factory=dict)

    def line(self, name: str) -> Message:
        """One line for the terminal."""
        noticed = sum(self.counts.values()) - self.broken
        counts = Message("check_counts", rows=self.rows, broken=self.broken, noticed=noticed)
        kinds = [f"{kind} {self.counts[kind]:,}" for kind in KINDS_OF_PROBLEMS if kind in self.counts]
        if not kinds:
            return Message("check_line", name=name, counts=counts)
        return Message("check_line_kinds", name=name, counts=counts, kinds=kinds)


def problems_of(
    info: DatasetInfo,
    report: Report,
    *,
    encoder: Encoder | None = None,
    held_out: Sequence[DatasetInfo] = (),
    workers: int | None = None,
    limit: int | None = None,
) -> Iterator[Problem | None]:
    """Problems in order of the rows, and None where nothing was found for a while, so that a caller can show
    `report.rows`.

    Args:
        encoder: also find rows longer than its `cutoff_len`, and those that its template does not render.
        held_out: evaluation data, none of whose rows should be in this dataset.

    Raises:
        UserError: a dataset cannot be read at all.
    """
    kept_out, seen = Seen(), Seen()
    for other in held_out:
        for batch in scan(other, workers=workers):
            kept_out.add(*_usable(batch)[1:])
    for batch in scan(info, encoder, workers=workers, limit=limit):
        before, problems = report.rows, []
        report.rows, report.offset = report.rows + batch.rows, batch.offset
        numbers, places, digests = _usable(batch)
        firsts, others = seen.add(places, digests), kept_out.get(digests)
        for number, place, first, held in zip(numbers, places, firsts, others, strict=True):
            if first is not None:
                problems.append(Problem(place, "duplicate", Message("same_as", place=first), number))
            if held is not None:
                problems.append(Problem(place, "in_eval", Message("in_evaluation", place=held), number))
        for problem in sorted(batch.problems + problems, key=lambda p: p.row):
            problem = replace(problem, row=before + problem.row)
            report.counts[problem.kind] = report.counts.get(problem.kind, 0) + 1
            report.broken += problem.broken
            if problem.kind not in ONCE or report.counts[problem.kind] == 1:
                yield problem
        yield None


def _usable(batch: Batch) -> tuple[list[int], list[str], list[int]]:
    """Numbers within the batch, places and digests of the rows that are not broken."""
    usable = [(number, place, digest) for number, (place, digest) in enumerate(batch.digests, 1) if digest is not None]
    return [number for number, _, _ in usable], [place for _, place, _ in usable], [digest for _, _, digest in usable]


def check_first_rows(info: DatasetInfo, *, skip_broken: bool) -> None:
    """Refuse a dataset whose first rows show that a run would stop at it.

    Raises:
        UserError: it cannot be read, has a broken row (unless those are skipped), or no usable row.
    """
    info, usable = with_layout(info), False
    for raw in itertools.islice(raw_rows(info), _FIRST):
        example, _, problems = look(raw, info, None)
        usable = usable or example is not None
        if example is None and not skip_broken:
            raise UserError("first_row_broken", place=problems[0].place, reason=problems[0].reason, name=info.name)
    if not usable:
        raise UserError("no_first_row_usable", count=_FIRST, name=info.name)
