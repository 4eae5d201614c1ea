"""The requests that are being answered together: who reads, who decodes, who gets room, who is done.

Everything runs on the decoding thread. A step reads a piece of the prompts that wait for it, and gives every other row
its next token. When the cache is full the youngest row gives its pages back and is read again later.
"""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.engine.backend import ContextOverflow, Job
from workbench.engine.batching import plan
from workbench.engine.batching.choice import Chosen, choose, plain
from workbench.engine.batching.metrics import Metrics
from workbench.engine.batching.pages import Pages
from workbench.engine.batching.passes import Passes
from workbench.engine.batching.rows import Request, Row, row_sampling
from workbench.engine.detokenizer import AnswerRow
from workbench.engine.sampling import Sampler
from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.engine.transformers_backend import TransformersDecoder

_LOOKED_AT = 8  # prompts that wait to be read and are looked at in a step


@dataclass(frozen=True)
class Limits:
    """`rows` that are decoded together; tokens of prompts read in a step, with nobody decoding and beside others."""

    rows: int
    piece_alone: int
    piece_beside: int


@dataclass(frozen=True)
class _Late:
    """A row's token that has not gone out. `end`: it is an end token; `ended`: nothing follows; `full`: nothing may."""

    row: Row
    chosen: Chosen
    end: bool
    ended: bool
    full: bool


class Batch:
    """Requests on one model."""

    def __init__(
        self,
        decoder: "TransformersDecoder",
        passes: Passes,
        pages: Pages,
        limits: Limits,
        width: int,
        most: int = 0,
        roomy: int = 0,
    ):
        """`width`: of the logits. `most`: pages that there may be when more are needed, 0 for no more than now.
        `roomy`: pages up to which there are more rather than that a text is forgotten."""
        self._most, self._roomy = max(most, pages.count), roomy
        self.decoder, self.passes, self.pages, self.limits, self.width = decoder, passes, pages, limits, width
        self.metrics = Metrics()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first
        self._late: list[_Late] = []  # chosen tokens that have not gone out yet
        self._arrived = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def capacity(self) -> int:
        """Tokens that the cache holds, or can hold when it has grown."""
        return (self._most - 2) * self.pages.size

    def add(self, job: Job) -> None:
        """Take a job on; what is wrong with it goes to its client."""
        self.metrics.count("requests_total")
        try:
            self.waiting.append(self._request(job))
        except Exception as error:
            self.metrics.count("requests_failed_total")
            job.events.put(error)
            job.events.put(None)

    def _request(self, job: Job) -> Request:
        decoder, sampling = self.decoder, job.sampling
        prompt = list(decoder._prompt(job))
        job.prompt_tokens = len(prompt)
        if not prompt:
            raise UserError("prompt_empty")
        if len(prompt) >= decoder.context:
            raise ContextOverflow(decoder.context, len(prompt), "messages" if job.prompt is None else "prompt")
        if len(prompt) >= self.capacity:
            raise UserError("cache_too_small", tokens=len(prompt), room=self.capacity)
        limit = min(sampling.max_tokens, min(decoder.context, self.capacity) - len(prompt))
        inner = None if job.adapter is None else decoder._inner[job.adapter]
        self._arrived += 1
        request = Request(job, prompt, limit, inner, number=self._arrived)
        ids = torch.tensor([prompt], device=decoder._device)
        first, *others = [
            Row(
                request,
                index,
                list(prompt),
                Sampler(row_sampling(job, index), ids, decoder.tokenizer, self.width),
                AnswerRow(index, decoder.tokenizer, sampling.stop, job.response_template is None, prompt),
                plain=plain(sampling),
            )
            for index in range(sampling.n)
        ]
        first.forks, request.rows = others, [first]
        return request

    # a step

    def step(self) -> None:
        """Everybody one token further, and some prompts a piece.

        Where a GPU decodes by itself, tokens go out while it computes the next ones.
        """
        for request in [one for one in [*self.waiting, *self.running] if one.job.cancelled.is_set()]:
            self.metrics.count("requests_cancelled_total")
            self._end(request)
        self._admit()
        if not self.running:
            return
        self.metrics.count("steps_total")
        before = self.passes.count
        decoding, reading = self._choose_rows()
        if not decoding and not reading:  # the cache could not grow as was expected when this request came
            self._fail(self.running[0].rows[0], UserError("request_memory"))
        if reading:
            self._read(self.passes.run(reading, self._fail), dict(reading))
        if decoding:
            self.metrics.count("rows_decoded_total", len(decoding))
            alive = [row for row in decoding if row in row.request.rows]
            self._read(self.passes.decode(alive, self._fail), dict.fromkeys(alive, 1))
        self.metrics.count("passes_total", self.passes.count - before)
        if not self.passes.runner.recorded:
            self._send()

    def _admit(self) -> None:
        held = sum(len(row.forks) + 1 for request in self.running for row in request.rows)
        while self.waiting and held + self.waiting[0].job.sampling.n <= self.limits.rows:
            request = self.waiting.popleft()
            held += request.job.sampling.n
            self.running.append(request)
            self.metrics.count("prompt_tokens_total", len(request.prompt))

    def _choose_rows(self) -> tuple[list[Row], list[tuple[Row, int]]]:
        """Rows that get their next token, and those of which a piece is read; all of them have pages for it."""
        rows = [row for request in self.running for row in request.rows]
        decoding = [row for row in rows if row.left == 1 and not row.fresh]
        candidates = []
        for row in rows:
            if row.left == 1 and not row.fresh:
                continue
            if len(candidates) == _LOOKED_AT or (row.fresh and not self._may_begin(row, rows)):
                break
            if row.fresh:
                self.metrics.count("prompt_tokens_reused_total", row.begin(self.pages, self.passes.runner.rope))
            candidates.append(row)
        budget = self.limits.piece_beside if decoding else self.limits.piece_alone
        pieces = plan.reading([row.left for row in candidates], [self.passes.key(row) for row in candidates], budget)
        wanted = {candidates[i]: count for i, count in pieces} | dict.fromkeys(decoding, 1)
        granted: dict[Row, int] = {}
        for row in rows:  # the oldest first
            if row in wanted and not (row.fresh and row in decoding) and self._room(row, wanted[row], rows, granted):
                granted[row] = wanted[row]
        return [row for row in decoding if row in granted], [
            (candidates[i], count) for i, count in pieces if candidates[i] in granted
        ]

    def _may_begin(self, row: Row, rows: list[Row]) -> bool:
        """Whether there is room for the whole of a row of which nothing is in the cache, and for the others to grow."""
        holders = sum(not other.fresh for other in rows)
        needed = self.pages.needed(len(row.tokens) + 1) + holders
        return not holders or self.pages.free >= needed or self._enlarge(needed)

    def _enlarge(self, needed: int, most: int = 0) -> bool:
        """Let the cache grow to at least twice its size, if it may, to `most` pages if given; whether so many are free
        then."""
        pages, runner = self.pages, self.passes.runner
        if pages.count >= self._most:
            return False
        count = min(most or self._most, max(2 * pages.count, pages.count + needed))
        try:
            runner.grow(count)
        except torch.OutOfMemoryError:  # somebody else has the memory by now
            torch.cuda.empty_cache()
            if most:  # it could do without
                self._roomy = pages.count
            else:
                self._most = pages.count
            return False
        pages.grow(count)
        return pages.free >= needed

    def _room(self, row: Row, count: int, rows: list[Row], granted: dict[Row, int]) -> bool:
        """Pages for `count` more tokens of a row, if need be from younger ones."""
        missing = self.pages.needed(row.computed + count) - len(row.pages)
        if self.pages.count < self._roomy and self.pages.unused < missing:
            self._enlarge(missing, self._roomy)
        while (new := row.grow(self.pages, row.computed + count)) is None:
            if self._enlarge(self.pages.needed(row.computed + count)):
                continue
            younger = [other for other in rows[rows.index(row) + 1 :] if not other.fresh]
            if not younger:
                return False
            younger[-1].drop(self.pages)
            granted.pop(younger[-1], None)
            self.metrics.count("rows_put_back_total")
        if new:
            self.passes.runner.cache.clear(new)
        return True

    def _read(self, results, counts: dict[Row, int]) -> None:
        """Take what passes give: rows that have been read to their end get their next token."""
        rope = self.passes.runner.rope
        for rows, logits in results:
            self._send()
            ready = []
            for place, row in enumerate(rows):
                if row not in row.request.rows:  # its request has failed meanwhile
                    continue
                row.advance(self.pages, rope, counts[row])
                if row.left == 0:
                    ready.append((row, place))
                    for fork in row.forks:
                        self._fork(row, fork)
                        ready.append((fork, place))
                    row.forks = []
            if ready:
                places = [place for _, place in ready]
                some = logits if places == list(range(len(logits))) else logits[places]
                self.metrics.generated(len(ready))
                chosen = choose([row for row, _ in ready], some)
                for (row, _), one in zip(ready, chosen, strict=True):
                    if row in row.request.rows:
                        self._take(row, one)

    def _fork(self, row: Row, fork: Row) -> None:
        copy = row.fork(fork, self.pages)
        if copy:
            self.passes.runner.cache.copy(*copy)
        row.request.rows.append(fork)

    def _take(self, row: Row, chosen: Chosen) -> None:
        """A row goes on with a token, or ends."""
        request = row.request
        if chosen.error is not None:
            self._fail(row, chosen.error)
            return
        row.tokens.append(chosen.token)
        request.job.completion_tokens += 1
        end = chosen.token in self.decoder._ends
        ended = end or row.sampler.grammars[0].stopped
        full = len(row.tokens) - row.prompt >= request.limit
        self._late.append(_Late(row, chosen, end, ended, full))
        if ended or full:
            self._send()
        elif self.passes.runner.rope.reread(len(row.tokens) - 1, len(row.tokens)):
            row.drop(self.pages)

    def _send(self) -> None:
        """What was chosen goes to the clients. A stop text ends a row here; what has been chosen since is dropped."""
        late, self._late = self._late, []
        for one in late:
            row, request = one.row, one.row.request
            if row not in request.rows:
                continue
            token, job, info = one.chosen.token, request.job, None
            if one.chosen.figures is not None and one.chosen.others is not None:
                info = self.decoder._info(token, one.chosen.figures, one.chosen.others, job.sampling.logprobs or 0)
            sent = row.text.add(token, info, end=one.end, ended=one.ended, full=one.full)
            job.events.put(sent)
            if sent.finish:
                row.drop(self.pages)
                request.rows.remove(row)
                if not request.rows:
                    self.metrics.count("requests_finished_total")
                    self._end(request)

    # ends

    def fail_all(self, error: Exception) -> None:
        """End every request that runs with this error."""
        for request in list(self.running):
            request.job.events.put(error)
            self.metrics.count("requests_failed_total")
            self._end(request)

    def _fail(self, row: Row, error: Exception) -> None:
        request = row.request
        self._send()
        if request not in self.running:
            return
        self.metrics.count("requests_failed_total")
        request.job.events.put(error)
        self._end(request)

    def _end(self, request: Request) -> None:
        """The request's place and pages are free."""
        for row in request.rows:
            row.drop(self.pages)
        request.rows = []
        if request in self.running:
            self.running.remove(request)
            self.metrics.count("places_freed_total", request.job.sampling.n)
        else:
            self.waiting.remove(request)
        request.job.events.put(None)
