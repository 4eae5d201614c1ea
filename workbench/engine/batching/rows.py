"""Requests and their rows: an answer on its way is a row, whose tokens are read into the cache and then grow by one a
step."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from workbench.engine.backend import Job
from workbench.engine.batching.pages import Pages
from workbench.models.rope_lengths import RopeLengths

if TYPE_CHECKING:
    from workbench.engine.detokenizer import AnswerRow
    from workbench.engine.sampling import Sampler

_ROW_SEED = 0x9E3779B97F4A7C15  # odd: answers of one request, and of neighboring seeds, differ


@dataclass(eq=False)
class Request:
    """A job whose prompt is known. `rows` are its answers that are not finished; `inner`: the adapter inside PEFT."""

    job: Job
    prompt: list[int]
    limit: int
    inner: str | None
    rows: list["Row"] = field(default_factory=list)
    number: int = 0  # in the order of arrival


@dataclass(eq=False)
class Row:
    """One answer. `computed` of its `tokens` are in its `pages`; the rest is to be read.

    `forks`: further answers that begin with the same prompt, and become rows when it has been read.
    """

    request: Request
    index: int
    tokens: list[int]
    sampler: "Sampler"
    text: "AnswerRow"
    forks: list["Row"] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    before: Hashable = None  # what `Pages.remember` wants for the next page
    remembered: int = 0  # pages
    plain: bool = False  # nothing changes its logits

    @property
    def prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def left(self) -> int:
        """Tokens to read before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def fresh(self) -> bool:
        """Whether nothing of it is in the cache."""
        return not self.pages

    def begin(self, pages: Pages, rope: RopeLengths) -> int:
        """Take over what the cache remembers of its beginning; returns how many tokens that is."""
        kind, same = rope.shareable(self.prompt, len(self.tokens))
        root = (self.request.inner, kind)
        self.pages, self.before = pages.find(root, self.tokens[: same + 1])
        self.remembered = len(self.pages)
        self.computed = len(self.pages) * pages.size
        return self.computed

    def grow(self, pages: Pages, upto: int) -> list[int] | None:
        """Own pages for the first `upto` tokens; returns the new ones, None when there is no room."""
        missing = pages.needed(upto) - len(self.pages)
        if missing <= 0:
            return []
        new = pages.take(missing)
        if new is not None:
            self.pages += new
        return new

    def advance(self, pages: Pages, rope: RopeLengths, count: int) -> None:
        """`count` more tokens are in the cache; full pages are remembered."""
        self.computed += count
        _, same = rope.shareable(self.prompt, len(self.tokens))
        while (end := (self.remembered + 1) * pages.size) <= min(self.computed, same):
            page = self.pages[self.remembered]
            self.before = pages.remember(self.before, self.tokens[end - pages.size : end], page)
            self.remembered += 1

    def drop(self, pages: Pages) -> None:
        """Give the pages back; the tokens have to be read again."""
        pages.release(self.pages)
        self.pages, self.computed, self.remembered = [], 0, 0

    def fork(self, other: "Row", pages: Pages) -> tuple[int, int] | None:
        """Let `other` go on from what this row has read. Full pages are shared; returns the page to copy and the page
        to copy it to, None where there is nothing to copy (or no room: `other` then reads for itself)."""
        full, rest = divmod(self.computed, pages.size)
        new = pages.take(1) if rest else []
        if new is None:
            return None
        pages.share(self.pages[:full])
        other.pages = self.pages[:full] + new
        other.computed, other.before, other.remembered = self.computed, self.before, self.remembered
        return (self.pages[full], new[0]) if rest else None


def row_sampling(job: Job, index: int):
    """The request's sampling for one of its answers, which has a seed of its own."""
    seed = job.sampling.seed
    return replace(job.sampling, n=1, seed=seed if seed is None or not index else (seed + index * _ROW_SEED) % 2**63)
