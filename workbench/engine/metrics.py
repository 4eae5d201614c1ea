"""What the engine has done and is busy with, in Prometheus' text format.
https://prometheus.io/docs/instrumenting/exposition_formats/"""

import time
from collections import Counter, deque

from workbench.engine.backend import Backend, Job

WINDOW = 10.0  # seconds over which tokens/s are counted


class Metrics:
    """Counters of one engine; used on the server's event loop only."""

    def __init__(self):
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._recent: deque[float] = deque()
        self._counted: dict[int, tuple[Job, float, bool]] = {}
        self._first_seconds, self._firsts = 0.0, 0

    def request(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests[path, status] += 1

    def began(self, job: Job) -> None:
        self._counted[id(job)] = job, time.monotonic(), False

    def token(self, job: Job) -> None:
        """A token of a job came."""
        now = time.monotonic()
        self._recent.append(now)
        while self._recent and self._recent[0] < now - WINDOW:
            self._recent.popleft()
        _, began, seen = self._counted.get(id(job), (job, now, True))
        if not seen:
            self._counted[id(job)] = job, began, True
            self._first_seconds, self._firsts = self._first_seconds + now - began, self._firsts + 1

    def ended(self, job: Job) -> None:
        """A job is done or given up; called any number of times."""
        if self._counted.pop(id(job), None):
            self._tokens["prompt"] += job.prompt_tokens
            self._tokens["generated"] += job.completion_tokens

    def text(self, backend: Backend) -> str:
        """All of it, as `GET /metrics` answers: what the backend counts, and what it does not count itself."""
        now = time.monotonic()
        under_way = [job for job, _, _ in self._counted.values()]
        own = {
            "prompt_tokens_total": self._tokens["prompt"] + sum(job.prompt_tokens for job in under_way),
            "generated_tokens_total": self._tokens["generated"] + sum(job.completion_tokens for job in under_way),
            "tokens_per_second": sum(moment >= now - WINDOW for moment in self._recent) / WINDOW,
            "first_token_seconds_total": self._first_seconds,
            "first_tokens_total": self._firsts,
            "adapters_loaded": len(backend.adapters),
        }
        lines = []
        for name, value in (own | backend.metrics()).items():
            lines += _lines(name, [("", value)])
        answered = [(f'{{path="{path}",status="{status}"}}', n) for (path, status), n in sorted(self._requests.items())]
        return "\n".join([*lines, *_lines("http_requests_total", answered)]) + "\n"


_ABOUT = {
    "http_requests_total": "Requests answered, by path and HTTP status.",
    "prompt_tokens_total": "Tokens of prompts.",
    "generated_tokens_total": "Tokens generated.",
    "tokens_per_second": f"Tokens generated a second, over the last {WINDOW:g} s.",
    "first_token_seconds_total": "Seconds to the first token, summed.",
    "first_tokens_total": "Requests that got a first token.",
    "adapters_loaded": "Adapters that are loaded.",
    "requests_running": "Requests that are decoded.",
    "requests_waiting": "Requests that wait to be begun.",
    "kv_tokens": "Tokens that the KV cache has room for now.",
    "kv_tokens_most": "Tokens that it can have room for when it has grown.",
    "kv_tokens_used": "Tokens held in the KV cache.",
}


def _lines(name: str, values: list[tuple[str, float]]) -> list[str]:
    """A metric with its labels and values."""
    kind = "counter" if name.endswith("_total") else "gauge"
    about = [f"# HELP workbench_{name} {_ABOUT[name]}"] if name in _ABOUT else []
    shown = [f"workbench_{name}{labels} {float(value)!r}" for labels, value in values]
    return [*about, f"# TYPE workbench_{name} {kind}", *shown]


class CountRequests:
    """Middleware that counts the answers by path; paths that there are not count as one."""

    def __init__(self, app, metrics: Metrics, paths: frozenset[str]):
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def counted(message):
            if message["type"] == "http.response.start":
                self.metrics.request(path, message["status"])
            await send(message)

        await self.app(scope, receive, counted)
