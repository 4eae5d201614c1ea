"""The scheduler on a fake decoder: turns, cancellation, errors. No model."""

import itertools

import pytest

from workbench.engine.backend import Job, Sampling, Token
from workbench.engine.detokenizer import StopText
from workbench.engine.scheduler import TURN_TOKENS, Scheduler


class FakeDecoder:
    """Answers `n` numbered tokens per job, or raises; records whose token came when."""

    def __init__(self):
        self.adapters, self.order, self.selected, self.closed = [], [], None, []

    def select(self, adapter):
        self.selected = adapter

    def open(self, job):
        name = job.messages[0]["content"]
        try:
            if name == "bad":
                raise RuntimeError("no such thing")
            for number in itertools.count(1):
                self.order.append((name, self.selected))
                job.completion_tokens = number
                last = number == job.sampling.max_tokens
                yield Token(f"{name}{number} ", "length" if last else None)
                if last:
                    return
        finally:
            self.closed.append(name)


def job(name, tokens=10, adapter=None):
    return Job(adapter, [{"role": "user", "content": name}], Sampling(max_tokens=tokens))


def text(job):
    return "".join(token.text for token in job)


def test_two_requests_take_fair_turns_each_with_its_adapter():
    decoder = FakeDecoder()
    scheduler = Scheduler(decoder)
    first, second = job("a", 40), job("b", 8, adapter="tuned")
    scheduler.call(lambda: (scheduler.submit(first), scheduler.submit(second)))  # both are there before the first turn
    assert text(second) == "".join(f"b{i} " for i in range(1, 9))
    assert text(first) == "".join(f"a{i} " for i in range(1, 41))
    names = [name for name, _ in decoder.order]
    assert (
        names[: 4 * TURN_TOKENS]
        == ["a"] * TURN_TOKENS + ["b"] * TURN_TOKENS + ["a"] * TURN_TOKENS + ["b"] * TURN_TOKENS
    )
    assert all(adapter == ("tuned" if name == "b" else None) for name, adapter in decoder.order)


def test_an_error_reaches_its_client_and_the_engine_lives_on():
    scheduler = Scheduler(FakeDecoder())
    with pytest.raises(RuntimeError, match="no such thing"):
        text(scheduler.submit(job("bad")))
    assert text(scheduler.submit(job("a", 2))) == "a1 a2 "


def test_a_client_that_goes_away_frees_its_place():
    decoder = FakeDecoder()
    scheduler = Scheduler(decoder)
    endless = scheduler.submit(job("endless", 10**9))
    stream = iter(endless)
    next(stream)
    endless.cancel()
    assert text(scheduler.submit(job("a", 1))) == "a1 "
    list(stream)  # ends
    assert "endless" in decoder.closed


def test_call_runs_between_turns_and_raises_for_the_caller():
    scheduler = Scheduler(FakeDecoder())
    assert scheduler.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        scheduler.call(lambda: 1 / 0)


def test_stop_texts_across_pieces():
    stop = StopText(("END", "###"))
    sent, stopped = "", False
    for piece in ["Hello E", "N", "Dress E", "ND more"]:
        part, stopped = stop.add(piece)
        sent += part
        if stopped:
            break
    assert (sent, stopped) == ("Hello ", True)
    other = StopText(("END",))
    assert other.add("the E") == ("the ", False)
    assert other.rest() == "E"
