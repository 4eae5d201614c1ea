"""vLLM and SGLang behind the engine's API: stand-ins that speak their protocols over the tiny model, so that what comes
through is what the workbench's own engine says of the same model."""

import asyncio
import json
import shutil
import threading
import time

import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from tests.other_engine import StandIn, serving
from tests.serving import listening, tiny_decoder
from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.engine.backend import ContextOverflow, Job, Sampling, Score
from workbench.engine.client import Endpoint, complete, score, stream
from workbench.errors import UserError

pytestmark = pytest.mark.process
ASK = [{"role": "user", "content": "Who are you?"}]
KINDS = {"vllm": ("vllm", {}), "sglang": ("sglang", {}), "sglang-incremental": ("sglang", {"incremental": True})}


@pytest.fixture(scope="module", params=KINDS)
def stand_in(request, tiny_model, adapter):
    engine, more = KINDS[request.param]
    made = StandIn(
        engine, tiny_model, adapters={"tuned": str(adapter)}, key="sesame", served="served/base", context=2048, **more
    )
    with made.running() as url:
        made.url = url
        yield made


def front(url, folder, workspace, monkeypatch, *, key="", **values):
    """The backend that `serve` would make of a config with this `engine_url`."""
    from workbench.engine.external.front import Front

    monkeypatch.setenv("WORKBENCH_ENGINE_KEY", key)
    config = validated({"model_name_or_path": str(folder), "engine_url": url} | values, EngineConfig)
    return Front(config, workspace, "tiny-llama", {}, lambda phase, share: None, print, None).start()


@pytest.fixture
def backend(stand_in, tiny_model, workspace, monkeypatch):
    return front(f"{stand_in.url}/v1", tiny_model, workspace, monkeypatch, key="sesame")


def answer(backend, adapter=None, messages=ASK, **sampling):
    """(texts by answer, all measurements, how each ended) of a request."""
    values = {"max_tokens": 24, "temperature": 0.0} | sampling
    job = backend.submit(Job(adapter, messages, Sampling(**values)))
    texts, infos, ends = [""] * job.sampling.n, [], {}
    for token in job:
        texts[token.index] += token.text
        infos += token.infos
        if token.finish:
            ends[token.index] = token.finish
    return texts, infos, ends


@pytest.fixture(scope="module")
def own(tiny_model, adapter, tmp_path_factory):
    """The workbench's own engine on the same model."""
    from workbench.engine.scheduler import Scheduler
    from workbench.storage.workspace import Workspace

    decoder = tiny_decoder(tiny_model, Workspace(tmp_path_factory.mktemp("own")).create())
    decoder.add_adapter("tuned", str(adapter))
    return Scheduler(decoder)


@pytest.mark.parametrize("adapter_name", [None, "tuned"])
def test_answers_and_measurements_are_those_of_the_own_engine(backend, own, adapter_name):
    texts, infos, ends = answer(backend, adapter_name, logprobs=4)
    expected, known, expected_ends = answer(own, adapter_name, logprobs=4)
    assert (texts, ends) == (expected, expected_ends)
    assert [info.id for info in infos] == [info.id for info in known] and len(infos) > 3
    for mine, theirs in zip(infos, known, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert (mine.text, mine.bytes, mine.rank) == (theirs.text, theirs.bytes, theirs.rank)
        assert mine.entropy is None  # which neither protocol tells
        assert [(id_, raw, ends) for id_, raw, _, ends in mine.top] == [(i, r, e) for i, r, _, e in theirs.top]


def test_a_rank_beyond_the_likeliest_tokens_is_not_known(backend, own):
    _, infos, _ = answer(backend, temperature=3.0, seed=5, logprobs=2, max_tokens=40)
    assert {info.rank for info in infos} <= {1, 2, None} and None in {info.rank for info in infos}
    assert all(len(info.top) == 2 and info.top[0][2] >= info.top[1][2] for info in infos)
    assert all((info.rank is None) == (info.id not in {id_ for id_, *_ in info.top}) for info in infos)


def test_scores_are_those_of_the_own_engine(backend, own):
    for adapter_name, given in ((None, "I am here."), ("tuned", [72, 105, 40])):
        mine, theirs = (one.score(Score(adapter_name, ASK, given, 3)) for one in (backend, own))
        assert [info.id for info in mine] == [info.id for info in theirs]
        assert [info.text for info in mine] == [info.text for info in theirs]
        assert [info.logprob for info in mine] == pytest.approx([info.logprob for info in theirs], abs=1e-4)
        assert [[i for i, *_ in info.top] for info in mine] == [[i for i, *_ in info.top] for info in theirs]
    with pytest.raises(ContextOverflow):
        backend.score(Score(None, ASK, [40] * 2040, 3))


def test_several_answers_have_seeds_of_their_own(backend, stand_in):
    texts, _, ends = answer(backend, n=3, seed=1, temperature=1.5)
    assert len(set(texts)) == 3 and len(ends) == 3
    assert answer(backend, n=3, seed=1, temperature=1.5)[0] == texts
    asked = stand_in.requests[-1]
    sent = asked if stand_in.engine == "vllm" else asked["sampling_params"]
    assert sent["temperature"] == 1.5 and sent["top_p"] == 0.95 and sent["top_k"] == -1
    assert 2 in sent["stop_token_ids"]  # the tiny model's end


def until(true) -> bool:
    """Whether something became true in time."""
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_a_stop_text_ends_the_stream_there(backend, stand_in):
    (whole,), _, _ = answer(backend, max_tokens=60)
    stop, before = whole[6:8], stand_in.gave_up
    (text,), infos, ends = answer(backend, max_tokens=60, stop=(stop,), logprobs=0)
    assert text == whole[: whole.index(stop)] and ends == {0: "stop"}
    assert "".join(info.text for info in infos) == text
    assert until(lambda: stand_in.gave_up > before)


def test_a_client_that_goes_away_ends_the_stream_there(backend, stand_in):
    before = stand_in.gave_up
    job = backend.submit(Job(None, ASK, Sampling(400, 1.0, seed=3)))
    next(iter(job))
    job.cancel()
    list(job)  # it ends
    assert job.completion_tokens < 400 and until(lambda: stand_in.gave_up > before)
    assert backend.metrics()["requests_running"] == 0


def test_json_is_asked_of_the_engine(backend, stand_in):
    schema = {"enum": [{"name": "ann"}]}
    texts, _, ends = answer(backend, grammar=schema, max_tokens=60)
    assert json.loads(texts[0]) == {"name": "ann"} and ends == {0: "stop"}
    asked = stand_in.requests[-1]
    if stand_in.engine == "vllm":
        assert asked["response_format"]["json_schema"]["schema"] == schema
    else:
        assert json.loads(asked["sampling_params"]["json_schema"]) == schema


def test_the_page_s_client_gets_chats_logprobs_and_clear_refusals(backend):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    with listening(backend, "tiny-llama") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny-llama", "tuned"]
        done = client.chat.completions.create(
            model="tuned", messages=ASK, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
        )
        entries = done.choices[0].logprobs.content
        assert len(entries) == 5 and entries[0].rank == 1 and entries[0].entropy is None
        assert done.usage.completion_tokens == 5
        said = {}
        for name, more in {
            "tools": {"tools": [tool], "tool_choice": "required"},
            "long": {"messages": [{"role": "user", "content": "x" * 2040}]},
        }.items():
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(**{"model": "tiny-llama", "messages": ASK} | more)
            said[name] = refused.value
        assert "cannot be held to calls" in str(said["tools"])
        assert said["long"].code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError, match="gives no embeddings"):
            client.embeddings.create(model="tiny-llama", input="x")


def test_what_the_chat_tab_asks_works(backend):
    """Streams with measurements, several answers that are counted, scores with another model, writing on."""
    ask = {"max_tokens": 8, "temperature": 0}

    async def all_of_it(endpoint: Endpoint):
        deltas = [delta async for delta in stream(endpoint, "tuned", ASK, ask)]
        entries = [entry for delta in deltas for entry in delta.entries]
        text = "".join(delta.content for delta in deltas)
        ids = [entry["token_id"] for entry in entries]
        by_base = await score(endpoint, "tiny-llama", ASK, text, ids)
        counts: list[int] = []
        answers = await complete(endpoint, "tiny-llama", ASK, n=3, done=counts.append, max_tokens=5, temperature=1.0)
        begun = [*ASK, {"role": "assistant", "content": text[:3]}]
        more = {"continue_final_message": True, "add_generation_prompt": False}
        on = [delta.content async for delta in stream(endpoint, "tuned", begun, ask | {"extra_body": more})]
        return text, entries, by_base, counts, answers, "".join(on)

    with listening(backend, "tiny-llama") as url:
        text, entries, by_base, counts, answers, on = asyncio.run(all_of_it(Endpoint(f"{url}/v1", "key")))
    assert [entry["token_id"] for entry in by_base] == [entry["token_id"] for entry in entries]
    assert any(abs(one["logprob"] - two["logprob"]) > 1e-3 for one, two in zip(entries, by_base, strict=True))
    assert counts == [1, 2, 3] and len(answers) == 3
    assert (text[:3] + on).startswith(text)


def test_adapters_come_and_go_while_it_runs(backend, stand_in, adapter, workspace):
    assert backend.adapters == ["tuned"]
    backend.add_adapter("again", str(adapter))
    assert "again" in stand_in.model.adapters and answer(backend, "again")[0] == answer(backend, "tuned")[0]
    backend.remove_adapter("again")
    assert backend.adapters == ["tuned"] and "again" not in stand_in.model.adapters
    with pytest.raises(UserError, match="no adapter"):
        backend.add_adapter("nowhere", "nowhere")
    with pytest.raises(UserError, match="Export them as one model"):
        backend.merge_adapters("sum", {"tuned": 1.0})


def test_what_cannot_be_asked_of_another_engine_is_said(backend):
    from workbench.engine.grammars import Plan
    from workbench.engine.thoughts import thoughts_of

    thoughts = thoughts_of("<think></think>")
    with pytest.raises(UserError, match="after a thought"):
        backend._schema(Sampling(grammar=Plan(schema={}, thoughts=thoughts, opened=True)))
    assert backend._schema(Sampling(grammar=Plan(schema={"type": "object"}, thoughts=thoughts))) == {"type": "object"}
    with pytest.raises(UserError, match="calls of tools"):
        backend._schema(Sampling(grammar=Plan()))
    job = backend.submit(Job(None, ASK, Sampling(logit_bias={9999: 1.0})))
    with pytest.raises(UserError, match="no token 9999"):
        list(job)


def test_a_server_that_does_not_fit_is_refused_at_once(stand_in, tiny_model, workspace, tmp_path, monkeypatch):
    def problem(url=stand_in.url, folder=tiny_model, key="sesame", **values):
        with pytest.raises(UserError) as refused:
            front(url, folder, workspace, monkeypatch, key=key, **values)
        return str(refused.value)

    assert "refuses the key" in problem(key="wrong")
    assert "does not answer" in problem("http://127.0.0.1:9")
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    written = json.loads((other / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(written))
    assert "another tokenizer than tiny-llama" in problem(folder=other)
    with listening(tiny_decoder_backend(tiny_model, workspace)) as url:
        assert "neither vLLM nor SGLang" in problem(url)


def tiny_decoder_backend(folder, workspace):
    from workbench.engine.scheduler import Scheduler

    return Scheduler(tiny_decoder(folder, workspace))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_stream_that_breaks_off_is_told(engine, tiny_model, workspace, monkeypatch):
    broken = StandIn(engine, tiny_model, breaks=3)
    with broken.running() as url:
        job = front(url, tiny_model, workspace, monkeypatch).submit(Job(None, ASK, Sampling(60, 1.0, seed=1)))
        seen = []
        with pytest.raises(UserError, match="middle of the answer"):
            seen.extend(job)
        assert job.completion_tokens == 3


ODD = {
    "no list": {"data": 7},
    "no names": {"data": [7]},
    "no context": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": "long"}]},
    "several models": {
        "data": [{"id": name, "owned_by": "vllm", "root": name, "max_model_len": 64} for name in ("one", "two")]
    },
    "no model": {"data": []},
}


@pytest.mark.parametrize("listed", ODD)
def test_an_odd_list_of_models_is_told(listed, tiny_model, workspace, monkeypatch):
    app = FastAPI()
    app.get("/v1/models")(lambda: ODD[listed])
    with serving(app) as url, pytest.raises(UserError) as refused:
        front(url, tiny_model, workspace, monkeypatch)
    assert str(refused.value).count("\n") == 0 and "Traceback" not in str(refused.value)


BROKEN = {
    "no ids": {"choices": [{"text": "x", "finish_reason": None}]},
    "a negative id": {"choices": [{"token_ids": [-1], "finish_reason": None}]},
    "an id that is a word": {"choices": [{"token_ids": ["x"], "finish_reason": None}]},
    "no choices": {"object": "text_completion"},
    "an error": {"error": {"message": "out of pages", "code": 500}},
    "a list": [],
    "an abort": {"choices": [{"token_ids": [], "finish_reason": "abort"}]},
    "no number": {
        "choices": [
            {"token_ids": [5], "finish_reason": None, "logprobs": {"top_logprobs": [{}], "token_logprobs": ["nan"]}}
        ]
    },
}


@pytest.mark.parametrize("event", BROKEN)
def test_an_odd_answer_is_one_sentence_for_that_request(event, tiny_model, workspace, monkeypatch):
    app = FastAPI()
    listed = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 64}]}
    app.get("/v1/models")(lambda: listed)
    app.post("/v1/completions")(lambda: PlainTextResponse(f"data: {json.dumps(BROKEN[event])}\n\ndata: [DONE]\n\n"))
    with serving(app) as url:
        job = front(url, tiny_model, workspace, monkeypatch).submit(Job(None, ASK, Sampling(4, logprobs=1)))
        with pytest.raises(UserError, match=r"vLLM (answered in another form|does not tell the ids|refused)|This vLLM"):
            list(job)


def test_one_that_is_given_up_before_it_began_ends(backend):
    job = Job(None, ASK, Sampling(4))
    job.cancel()
    assert list(backend.submit(job)) == []


def test_many_requests_at_once(backend):
    """More than a client's usual hundred connections."""
    jobs = [backend.submit(Job(None, ASK, Sampling(4, 1.0, seed=seed))) for seed in range(120)]
    counts = []
    threads = [threading.Thread(target=lambda job=job: counts.append(len(list(job)))) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(counts) == 120 and all(1 <= count <= 4 for count in counts)
