"""Who owns which page of the KV cache, and which pages hold a text that may come again. No torch here.

The cache is cut into pages of `size` tokens. A sequence owns pages in order; several may own the same one (answers to
one prompt, conversations with the same beginning). A full page is remembered by its tokens and by the page before it,
so that a later sequence with the same beginning takes it over. A page that nobody owns stays remembered until its room
is wanted: the longest unused goes first, the end of a text before its beginning.
"""

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Sequence

TRASH = 0  # the page that padding is written to; nobody's
BLANK = 1  # the page that short rows are filled up with; never written


class Pages:
    """Book-keeping of `count` pages of `size` tokens; the first two are never given out."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size
        self._unused = list(range(count - 1, BLANK, -1))  # taken from the end: first pages first
        self._owners = [0] * count
        self._known: dict[tuple[Hashable, tuple[int, ...]], int] = {}
        self._entries: dict[int, tuple[tuple[Hashable, tuple[int, ...]], int]] = {}  # page -> its key, its number
        self._idle: OrderedDict[int, None] = OrderedDict()  # remembered pages without an owner, oldest first
        self._numbers = itertools.count()

    def grow(self, count: int) -> None:
        """Have `count` pages from now on, more than before."""
        self._unused[:0] = range(count - 1, self.count - 1, -1)
        self._owners += [0] * (count - self.count)
        self.count = count

    @property
    def unused(self) -> int:
        """Pages that hold nothing."""
        return len(self._unused)

    @property
    def free(self) -> int:
        """Pages that can be had: unused ones, and remembered ones without an owner."""
        return len(self._unused) + len(self._idle)

    @property
    def owned(self) -> int:
        return self.count - 2 - self.free

    def needed(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self.size)

    def take(self, number: int) -> list[int] | None:
        """New pages for one owner, or None when there are not as many."""
        if number > self.free:
            return None
        taken = []
        for _ in range(number):
            if not self._unused:
                page, _nothing = self._idle.popitem(last=False)
                self._forget(page)
                self._unused.append(page)
            taken.append(self._unused.pop())
        for page in taken:
            self._owners[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One more owner for each of these."""
        for page in pages:
            self._owners[page] += 1
            self._idle.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """One owner less for each of these."""
        unused = []
        for page in reversed(pages):
            self._owners[page] -= 1
            if self._owners[page] == 0:
                if page in self._entries:
                    self._idle[page] = None
                else:
                    unused.append(page)
        self._unused += unused

    def find(self, root: Hashable, tokens: Sequence[int]) -> tuple[list[int], Hashable]:
        """Remembered pages that hold the beginning of `tokens`, now shared by one more owner, and what `remember` wants
        as `before` for the page that follows. The last token is left out: somebody has to compute what comes after
        it."""
        found, before = [], root
        for start in range(0, len(tokens) - self.size, self.size):
            page = self._known.get((before, tuple(tokens[start : start + self.size])))
            if page is None:
                break
            found.append(page)
            before = self._entries[page][1]
        self.share(found)
        return found, before

    def remember(self, before: Hashable, tokens: Sequence[int], page: int) -> Hashable:
        """Remember that `page` holds `tokens` after `before` (`find`'s, this function's, or a root). Returns what comes
        before the next page."""
        key = before, tuple(tokens)
        if key in self._known:  # somebody wrote the same at the same time
            return self._entries[self._known[key]][1]
        number = next(self._numbers)
        self._known[key], self._entries[page] = page, (key, number)
        return number

    def forget_all(self) -> None:
        """Forget every text; owners keep their pages."""
        self._unused += self._idle
        self._idle.clear()
        self._known.clear()
        self._entries.clear()

    def _forget(self, page: int) -> None:
        key, _ = self._entries.pop(page)
        del self._known[key]
