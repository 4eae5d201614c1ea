"""The forward passes of a step: rows grouped by what can go together, adapters switched, failures kept to the row that
causes them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from workbench.engine.batching import plan
from workbench.engine.batching.adapters import MixedAdapters
from workbench.engine.batching.rows import Row
from workbench.engine.batching.runner import STEP_ROWS, Piece, Runner
from workbench.errors import UserError

_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # of torch's allocators

_IN_STEPS = 3 * STEP_ROWS  # tokens of prompts that recorded steps read faster than a pass of many small operations

Part = tuple[Row, int]  # a row, and how many of its tokens are read


class Passes:
    """Runs rows on a runner. `select` switches the whole model to an adapter (inside PEFT), or to the base."""

    def __init__(self, runner: Runner, mixed: MixedAdapters, costs: plan.Costs, select: Callable[[str | None], None]):
        self.runner, self.mixed, self.costs, self._select = runner, mixed, costs, select
        self.count = 0

    def key(self, row: Row) -> str | None:
        """Rows with equal keys can share a pass: the name of an adapter that is apart, None for the rest."""
        inner = row.request.inner
        return inner if inner is not None and self.mixed.apart(inner) else None

    def decode(self, rows: Sequence[Row], fail: Callable[[Row, Exception], None]) -> Iterator[tuple[list[Row], Tensor]]:
        """One token more of each row; gives rows with their logits [rows, vocabulary], pass by pass. A row whose pass
        fails alone is handed to `fail`."""
        if self.runner.recorded:
            for group in plan.together([row.request.inner for row in rows]):
                yield from self.run([(rows[i], 1) for i in group], fail, recorded=True)
            return
        for group in plan.together([self.key(row) for row in rows]):
            members = [rows[i] for i in group]
            for few in plan.by_length([len(row.tokens) for row in members], self.costs):
                yield from self.run([(members[i], 1) for i in few], fail)

    def run(
        self, parts: Sequence[Part], fail: Callable[[Row, Exception], None], recorded: bool = False
    ) -> Iterator[tuple[list[Row], Tensor]]:
        """Read tokens of rows with equal keys in one pass, or in several when it fails. `recorded`: one token each of
        rows with the same adapter."""
        parts = sorted(parts, key=lambda part: part[0].request.inner or "")
        try:
            logits = self._replay(parts) if recorded else self._forward(parts)
        except Exception as error:
            failure = sentence(error)
            del error  # it holds what the pass had computed
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(parts) == 1:
                fail(parts[0][0], failure)
                return
            half = len(parts) // 2
            yield from self.run(parts[:half], fail, recorded)
            yield from self.run(parts[half:], fail, recorded)
            return
        yield [row for row, _ in parts], logits

    def _replay(self, parts: Sequence[Part]) -> Tensor:
        inner = parts[0][0].request.inner
        self._select(inner)
        logits = self.runner.decode([self._piece(row, count) for row, count in parts], inner)
        if logits is None:
            return self._forward(parts)
        self.count += 1
        return logits

    def _forward(self, parts: Sequence[Part]) -> Tensor:
        inner = parts[0][0].request.inner
        short = self.runner.recorded and sum(count for _, count in parts) <= _IN_STEPS
        if short and all(row.request.inner == inner for row, _ in parts):
            self._select(inner)
            logits = self.runner.in_steps([self._piece(row, count) for row, count in parts], inner)
            if logits is not None:
                self.count += 1
                return logits
        self.count += 1
        key = self.key(parts[0][0])
        self._select(key)
        if key is None:
            self.mixed.spans = spans([row.request.inner for row, _ in parts])
        try:
            # the lean pass knows no modules but the base's
            return self.runner.run(
                [self._piece(row, count) for row, count in parts], key is not None, bool(self.mixed.spans)
            )
        finally:
            self.mixed.spans = []

    def _piece(self, row: Row, count: int) -> Piece:
        start, end, rope = row.computed, row.computed + count, self.runner.rope
        lengths = rope.lengths(start, end, row.prompt, len(row.tokens)) if rope.kind else None
        return Piece(row.tokens[start:end], start, row.pages, lengths)


def spans(names: Sequence[str | None]) -> list[tuple[int, int, str]]:
    """`(first row, row after the last, adapter)` of each run of rows of one adapter; none for the base's rows."""
    found: list[tuple[int, int, str]] = []
    for i, name in enumerate(names):
        if name is None:
            continue
        if found and found[-1][2] == name and found[-1][1] == i:
            found[-1] = found[-1][0], i + 1, name
        else:
            found.append((i, i + 1, name))
    return found


def sentence(error: Exception) -> Exception:
    """An error as its client gets it: memory that ran out in one sentence, anything else as it is (without the frames
    that hold tensors)."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in text for word in _OUT_OF_MEMORY):
        return UserError("request_memory")
    return error.with_traceback(None)
