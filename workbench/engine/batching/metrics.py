"""Counters of a backend: what `/metrics` shows and what tests measure."""

import threading
import time
from collections import deque

_WINDOW = 10.0  # seconds that a rate looks back


class Metrics:
    """Counters that only grow, and the rate of tokens. Written by the decoding thread, read by any."""

    def __init__(self):
        self._counts: dict[str, float] = dict.fromkeys(
            (
                "requests_total",
                "requests_finished_total",
                "requests_failed_total",
                "requests_cancelled_total",
                "places_freed_total",
                "steps_total",
                "passes_total",
                "rows_decoded_total",
                "prompt_tokens_total",
                "prompt_tokens_reused_total",
                "generated_tokens_total",
                "rows_put_back_total",
            ),
            0.0,
        )
        self._recent: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def count(self, name: str, number: float = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def generated(self, tokens: int) -> None:
        now = time.monotonic()
        with self._lock:
            self._counts["generated_tokens_total"] += tokens
            self._recent.append((now, tokens))
            while self._recent and self._recent[0][0] < now - _WINDOW:
                self._recent.popleft()

    def read(self) -> dict[str, float]:
        """The counters, and `tokens_per_second` over the last ten seconds."""
        now = time.monotonic()
        with self._lock:
            recent = sum(tokens for at, tokens in self._recent if at >= now - _WINDOW)
            return self._counts | {"tokens_per_second": recent / _WINDOW}
