"""`/v1` under schema-driven fuzzing (schemathesis), on a decoder that answers at once: only declared errors, in
OpenAI's shape."""

import json

import hypothesis
import pytest
import schemathesis

from workbench.engine.backend import Capabilities, Token
from workbench.engine.scheduler import Scheduler
from workbench.engine.server import build_app
from workbench.errors import UserError
from workbench.messages.message import Message, restored

pytestmark = pytest.mark.process


class Instant:
    """Answers every request with two tokens."""

    adapters = ["tuned"]
    capabilities = Capabilities(
        adapters=True, score=True, logprobs=True, grammars=True, tokens=True, embeddings=True, continue_final=True
    )
    context = 512

    def select(self, adapter):
        pass

    def open(self, job):
        job.prompt_tokens = 1
        for index in range(job.sampling.n):
            job.completion_tokens += 2
            yield Token("Hel", index=index)
            yield Token("lo", "stop", index)

    def score(self, request):
        return []

    def tokenize(self, job):
        return [1, 2, 3]

    def detokenize(self, tokens):
        return "Hello"

    def embed(self, adapter, tokens):
        return [0.6, 0.8]

    def add_adapter(self, name, path):
        raise UserError("There is no adapter.")

    def merge_adapters(self, name, weights):
        raise UserError("These cannot be merged.")


app = build_app(Scheduler(Instant()), "base")
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@schema.parametrize()
@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_any_request_gets_an_answer_or_an_error_in_openais_shape(case):
    response = case.call()
    text = response.text
    assert response.status_code < 500, text
    if case.method == "HEAD":
        assert not text
    elif response.status_code >= 400:
        error = json.loads(text)["error"]
        assert error["message"] and set(error) - {"told"} == {"message", "type", "param", "code"}
        assert not error.get("told") or isinstance(restored(error["told"], error["message"]), Message)
    elif "text/event-stream" in str(response.headers.get("content-type")):
        ended = "event: response.completed" if case.path == "/v1/responses" else "data: [DONE]"
        assert ended in text and text.endswith("\n\n")


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"model": 3}',
        b'{"model": "base"',
        b'"x"',
        b'{"model": "base", "messages": null}',
    ],
)
def test_broken_bodies(path, body):
    from starlette.testclient import TestClient

    response = TestClient(app).post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]
