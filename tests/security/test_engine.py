"""Requests that nobody waits for any more, an engine that has gone silent, one that was killed."""

import asyncio
import contextlib
import json
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.serving import listening
from workbench.config.options import EngineConfig
from workbench.engine.backend import Capabilities, Job, Sampling, Score, Token
from workbench.engine.limits import time_limit
from workbench.engine.process import Engine
from workbench.engine.scheduler import Call, Scheduler
from workbench.engine.server import build_app
from workbench.storage.workspace import Workspace


class Gated:
    """A decoder whose steps wait until they are let through, and are counted."""

    adapters: list = []
    capabilities = Capabilities(score=True)

    def __init__(self):
        self.prompts = self.steps = 0
        self.gate = threading.Semaphore(0)

    def select(self, adapter):
        pass

    def open(self, job):
        self.prompts += 1
        for _ in range(job.sampling.max_tokens):
            self.gate.acquire()
            self.steps += 1
            yield Token("x")
        yield Token("", "length")

    def score(self, request):
        self.prompts += 1
        return []


@contextlib.contextmanager
def served(decoder):
    """The API over a decoder on a free port: its address, and the scheduler."""
    scheduler = Scheduler(decoder)
    with listening(scheduler) as url:
        try:
            yield url, scheduler
        finally:
            decoder.gate.release(100_000)


def body(stream: bool, tokens: int = 500) -> dict:
    return {"model": "base", "messages": [{"role": "user", "content": "q"}], "max_tokens": tokens, "stream": stream}


async def given_up(url: str, count: int, stream: bool, decoder) -> None:
    """Ask `count` times, and close all connections when the first request has begun."""

    async def ask(client):
        with contextlib.suppress(httpx.HTTPError):
            await client.post(f"{url}/v1/chat/completions", json=body(stream))

    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:
        tasks = [asyncio.create_task(ask(client)) for _ in range(count)]
        while not decoder.prompts:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.process
@pytest.mark.parametrize("stream", [False, True])
def test_sixty_requests_that_were_given_up_cost_a_few_steps(stream):
    """Issue: they delayed the next one by 76 s. Counted in steps of the model, not in seconds."""
    decoder = Gated()
    with served(decoder) as (url, scheduler):
        jobs, submit = [], scheduler.submit
        scheduler.submit = lambda job: jobs.append(job) or submit(job)
        asyncio.run(given_up(url, 60, stream, decoder))
        wait_for(lambda: jobs and all(job.cancelled.is_set() for job in jobs))  # the server has noticed
        scheduler.submit, begun = submit, decoder.prompts
        decoder.gate.release(200)
        answer = httpx.post(f"{url}/v1/chat/completions", json=body(False, 10), timeout=30)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "x" * 10
        # what had begun may finish the step that it was in; what had only waited never reads its prompt
        assert decoder.prompts == begun + 1 and decoder.steps <= begun + 10 + 4


def test_a_request_that_was_given_up_in_the_queue_is_never_begun():
    decoder = Gated()
    scheduler = Scheduler(decoder)
    first = scheduler.submit(Job(None, [], Sampling(max_tokens=2)))
    while not decoder.prompts:
        time.sleep(0.001)
    waiting = [Job(None, [], Sampling(max_tokens=2)) for _ in range(5)]
    for job in waiting:
        job.cancel()
        scheduler.submit(job)
    call = Call(lambda: decoder.score(Score(None, [], "", 0)))
    call.cancel()
    decoder.gate.release(2)
    assert [token.text for token in first] == ["x", "x", ""]
    assert all(list(job) == [] for job in waiting) and scheduler.call(call) is None and decoder.prompts == 1


def test_an_endless_chat_template_is_ended():
    with pytest.raises(TimeoutError), time_limit(0.2):
        while True:
            pass
    with time_limit(5):
        assert sum(range(10)) == 45
    for _ in range(30):  # nothing arrives late
        with contextlib.suppress(TimeoutError), time_limit(0.003):
            sum(range(200_000))
        assert sorted(range(100))[-1] == 99


@pytest.mark.process
def test_a_silent_engine_is_noticed_and_a_killed_one_leaves_no_zombie(tiny_model, tmp_path):
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from workbench.engine import process as engine_process
    from workbench.ui.api import add_api
    from workbench.ui.tabs.chat.engine_panel import EnginePanel

    engine = Engine(Workspace(tmp_path / "w", [tiny_model]).create())
    app = FastAPI()
    add_api(app, engine, "", needs_key=False)
    panel = EnginePanel(engine)
    try:
        engine.load(EngineConfig(model_name_or_path=str(tiny_model), devices="cpu"))
        wait_for(lambda: engine.ready or not engine.state().active)
        assert engine.ready, engine.state().reason
        asked = {"model": "tiny-llama", "messages": [{"role": "user", "content": "q"}], "max_tokens": 4}
        with TestClient(app) as client:
            assert client.post("/v1/chat/completions", json=asked).status_code == 200
            process = psutil.Process(engine._process.pid)
            process.suspend()
            # one that is under way, and one that comes later: a sentence each instead of waiting without end
            answer = client.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 503 and "has not answered for 10 s" in answer.json()["error"]["message"]
            assert client.get("/v1/models").json()["error"]["code"] == "engine_unavailable"
            assert "has not answered for 10 s" in panel._status_html("en") and not engine.ready
            process.resume()
            wait_for(lambda: engine.ready)
            assert client.post("/v1/chat/completions", json=asked).status_code == 200
            assert "has not answered" not in panel._status_html("en")
        asyncio.run(asked_while_unloaded(engine, process, asked))
        engine.load(EngineConfig(model_name_or_path=str(tiny_model), devices="cpu"))
        wait_for(lambda: engine.ready)
        process = psutil.Process(engine._process.pid)
        process.send_signal(signal.SIGKILL)
        wait_for(lambda: engine.state().state != "running" and not psutil.pid_exists(process.pid))
        assert "gone" in panel._status_html("en") or "ended" in panel._status_html("en")
    finally:
        engine.unload()
    assert engine_process.SILENT_SECONDS == 10 and json.dumps(asked)


async def asked_while_unloaded(engine, process, asked) -> None:
    """What is asked of a model that is unloaded meanwhile does not read as a broken engine."""
    import httpx
    from fastapi import FastAPI

    from workbench.ui.api import add_api

    def connections() -> int:
        return sum(bool(c.raddr) and c.raddr.port == engine.state().port for c in psutil.Process().net_connections())

    app = FastAPI()
    add_api(app, engine, "", needs_key=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        process.suspend()  # so that it cannot answer before
        before = connections()
        request = asyncio.ensure_future(client.post("/v1/chat/completions", json=asked))
        while connections() <= before and not request.done():
            await asyncio.sleep(0.02)
        await asyncio.to_thread(engine.unload)
        answer = await request
    assert answer.status_code == 503 and "Ask again" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "model_not_loaded"


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_without_a_key_answers_to_its_own_names_only():
    """`python -m workbench serve` on loopback: the same rebinding as the page's."""
    from starlette.testclient import TestClient

    from workbench.engine.door import Door

    decoder = Gated()
    decoder.gate.release(1000)
    client = TestClient(
        build_app(Scheduler(decoder), "base", cors=["https://my.site"], door=Door(("127.0.0.1",))),
        base_url="http://127.0.0.1:8000",
    )
    asked = body(False, 1)
    for headers in ({}, {"host": "localhost:8000"}, {"origin": "https://my.site"}, {"origin": "http://127.0.0.1:8000"}):
        assert client.post("/v1/chat/completions", json=asked, headers=headers).status_code == 200
    for headers in (
        {"host": "evil.example:8000"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": ""},
    ):
        answer = client.post("/v1/chat/completions", json=asked, headers=headers)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "forbidden_host"
        assert client.post("/adapters", json={"name": "x", "path": "/etc"}, headers=headers).status_code == 403
    with_key = TestClient(build_app(Scheduler(decoder), "base", "key"), base_url="http://host.docker.internal:8000")
    assert with_key.get("/v1/models", headers={"authorization": "Bearer key"}).status_code == 200
