"""Which rows were seen before: their digests and places in about 16 bytes a row, so that millions fit."""

import zlib

import numpy as np


class Seen:
    """Digests (64 bits) with the places of the rows that had them first.

    Sorted runs that are merged when they are of about the same length, as a log-structured merge tree keeps them
    (O'Neil and others, 1996).
    """

    def __init__(self):
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # (sorted digests, numbers of their rows)
        self._places: list[tuple[int, bytes]] = []  # (number of the first row, the places of some rows in a row)
        self._rows = 0

    def add(self, places: list[str], digests: list[int]) -> list[str | None]:
        """Take rows in; for each the place of the row that had its digest before, or None."""
        first_places: list[str | None] = [None] * len(digests)
        in_batch: dict[int, int] = {}
        fresh: list[int] = []
        keys = np.array(digests, dtype=np.uint64)
        for index, row in enumerate(self._find(keys)):
            if row >= 0:
                first_places[index] = self._place(row)
            elif (digest := digests[index]) in in_batch:
                first_places[index] = places[in_batch[digest]]
            else:
                in_batch[digest] = index
                fresh.append(index)
        if places:
            self._places.append((self._rows, zlib.compress("\0".join(places).encode("utf-8", "surrogatepass"), 1)))
        self._insert(keys[fresh], np.array(fresh, dtype=np.int64) + self._rows)
        self._rows += len(places)
        return first_places

    def get(self, digests: list[int]) -> list[str | None]:
        """For each digest the place of the row that had it, or None."""
        return [self._place(row) if row >= 0 else None for row in self._find(np.array(digests, dtype=np.uint64))]

    def _find(self, keys: np.ndarray) -> list[int]:
        rows = np.full(len(keys), -1, dtype=np.int64)
        for known, numbers in self._runs:
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            hit = known[at] == keys
            rows[hit] = numbers[at[hit]]
        return rows.tolist()

    def _insert(self, keys: np.ndarray, numbers: np.ndarray) -> None:
        if not len(keys):
            return
        order = np.argsort(keys)
        keys, numbers = keys[order], numbers[order]
        while self._runs and len(self._runs[-1][0]) <= 2 * len(keys):
            more, their = self._runs.pop()
            keys, numbers = np.concatenate([keys, more]), np.concatenate([numbers, their])
            order = np.argsort(keys)
            keys, numbers = keys[order], numbers[order]
        self._runs.append((keys, numbers))

    def _place(self, row: int) -> str:
        low, high = 0, len(self._places)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._places[middle][0] <= row else (low, middle)
        first, packed = self._places[low]
        return zlib.decompress(packed).decode("utf-8", "surrogatepass").split("\0")[row - first]
