"""What the engine has done and is busy with, in Prometheus' text format.
https://prometheus.io/docs/instrumenting/exposition_formats/"""

import time
from collections import Counter, deque

from workbench.engine.backend import Backend, Job

WINDOW = 10.0  # seconds over which tokens/s are counted


class Metrics:
    """Counters of one engine; used on the server's event loop only."""

    def __init__(self, context: int = 0):
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
            self._tokens["generation"] += job.completion_tokens

    def text(self, backend: Backend) -> str:
        """All of it, as `GET /metrics` answers."""
        load, now = backend.load(), time.monotonic()
        under_way = [job for job, _, _ in self._counted.values()]
        lines = []

        def add(name: str, kind: str, about: str, values: list[tuple[str, float]]) -> None:
            lines.append(f"# HELP workbench_{name} {about}")
            lines.append(f"# TYPE workbench_{name} {kind}")
            lines.extend(f"workbench_{name}{labels} {value:g}" for labels, value in values)

        answered = [(f'{{path="{path}",status="{status}"}}', n) for (path, status), n in sorted(self._requests.items())]
        add("requests_total", "counter", "Requests answered, by path and HTTP status.", answered)
        read = self._tokens["prompt"] + sum(job.prompt_tokens for job in under_way)
        add("prompt_tokens_total", "counter", "Tokens of prompts.", [("", read)])
        written = self._tokens["generation"] + sum(job.completion_tokens for job in under_way)
        add("generation_tokens_total", "counter", "Tokens generated.", [("", written)])
        rate = sum(moment >= now - WINDOW for moment in self._recent) / WINDOW
        add("tokens_per_second", "gauge", f"Tokens generated a second, over the last {WINDOW:g} s.", [("", rate)])
        add(
            "first_token_seconds_sum",
            "counter",
            "Seconds until the first token, added up.",
            [("", self._first_seconds)],
        )
        add("first_token_seconds_count", "counter", "Requests that got a first token.", [("", self._firsts)])
        add("requests_running", "gauge", "Requests that are decoded.", [("", load.running)])
        add("requests_waiting", "gauge", "Requests that wait to be begun.", [("", load.waiting)])
        add("kv_cache_tokens", "gauge", "Tokens held in the KV cache.", [("", load.kv_tokens)])
        add("adapters", "gauge", "Adapters that are loaded.", [("", len(backend.adapters))])
        return "\n".join(lines) + "\n"


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
