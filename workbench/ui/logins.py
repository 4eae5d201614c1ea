"""How often a password may be tried: by address and by name, each with a few free attempts that come back slowly.

A limit by name alone would let anybody lock a user out; so a name has more attempts, which come back faster.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

BY_ADDRESS = (5, 10.0)  # attempts that may fail in a row, and seconds until one comes back
BY_NAME = (20, 3.0)
_REMEMBERED = 10_000  # addresses and names


class Attempts:
    """Failed attempts, as buckets that leak. All methods may be called from any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self._lock = now, threading.Lock()
        self._failures: OrderedDict[tuple, tuple[float, float]] = (
            OrderedDict()
        )  # key -> (failures that count still, when that was)

    def wait(self, address: str, name: str) -> float:
        """Seconds until the next attempt is looked at; 0: now."""
        with self._lock:
            return max(self._wait(("address", address), *BY_ADDRESS), self._wait(("name", name), *BY_NAME))

    def failed(self, address: str, name: str) -> None:
        """Count one."""
        with self._lock:
            for key, (_, seconds) in ((("address", address), BY_ADDRESS), (("name", name), BY_NAME)):
                self._failures[key] = self._level(key, seconds) + 1, self._now()
                self._failures.move_to_end(key)
            while len(self._failures) > _REMEMBERED:
                self._failures.popitem(last=False)

    def succeeded(self, address: str, name: str) -> None:
        """Take the attempt back that was right."""
        with self._lock:
            for key, (_, seconds) in ((("address", address), BY_ADDRESS), (("name", name), BY_NAME)):
                level = self._level(key, seconds) - 1
                if level > 0:
                    self._failures[key] = level, self._now()
                else:
                    self._failures.pop(key, None)

    def _level(self, key: tuple, seconds: float) -> float:
        count, then = self._failures.get(key, (0.0, 0.0))
        return max(0.0, count - (self._now() - then) / seconds)

    def _wait(self, key: tuple, free: int, seconds: float) -> float:
        over = self._level(key, seconds) - (free - 1)
        return max(0.0, over * seconds) if over > 0 else 0.0
