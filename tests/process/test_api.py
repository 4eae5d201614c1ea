"""What the engine's API does beyond plain chat: log-probabilities, several answers, penalties, JSON, scoring, many
clients."""

import json
import math
import threading

import httpx
import openai
import pytest

pytestmark = pytest.mark.process
ASK = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "temperature": 0}


def shown(raw: bytes) -> str:
    """A token as OpenAI writes it: what is no whole letter by its bytes."""
    return raw.decode() if raw.isascii() else "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def test_logprobs_belong_to_the_answer_and_are_the_models_own(client, engine):
    plain = client.chat.completions.create(**ASK)
    answer = client.chat.completions.create(logprobs=True, top_logprobs=4, **ASK)
    assert answer.choices[0].message.content == plain.choices[0].message.content and plain.choices[0].logprobs is None
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert "".join(e.text for e in entries) == answer.choices[0].message.content
    for entry in entries:
        best = entry.top_logprobs
        assert len(best) == 4 and [t.logprob for t in best] == sorted((t.logprob for t in best), reverse=True)
        assert entry.rank == 1 and entry.logprob == pytest.approx(best[0].logprob)  # greedy
        assert 0 < entry.entropy < math.log(300) and shown(bytes(entry.bytes)) == entry.token
    # hot sampling changes what is chosen, not what the model thinks of it: scoring the same tokens gives the same
    # numbers
    hot = client.chat.completions.create(logprobs=True, **(ASK | {"temperature": 2, "seed": 5}))
    entries = hot.choices[0].logprobs.content
    assert any(entry.rank > 1 for entry in entries)
    body = {"model": "tiny-llama", "messages": ASK["messages"], "token_ids": [e.token_id for e in entries]}
    scored = httpx.post(f"{engine}/score", json=body, headers={"Authorization": "Bearer secret"}).json()["content"]
    assert [s["logprob"] for s in scored] == pytest.approx([e.logprob for e in entries], abs=1e-4)
    assert [s["rank"] for s in scored] == [e.rank for e in entries]
    assert "".join(s["text"] for s in scored).rstrip("�") == hot.choices[0].message.content.rstrip("�")
    other = httpx.post(
        f"{engine}/score", json=body | {"model": "tuned"}, headers={"Authorization": "Bearer secret"}
    ).json()["content"]
    assert [s["logprob"] for s in other] != pytest.approx([s["logprob"] for s in scored], abs=1e-3)


def test_streamed_logprobs_equal_the_whole_ones(client):
    whole = client.chat.completions.create(logprobs=True, top_logprobs=2, **ASK).choices[0].logprobs.content
    chunks = client.chat.completions.create(logprobs=True, top_logprobs=2, stream=True, **ASK)
    streamed = [e for c in chunks for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    assert [e.model_dump() for e in streamed] == [e.model_dump() for e in whole]


def test_a_stop_text_cuts_the_logprobs_too(client):
    whole = client.chat.completions.create(logprobs=True, **ASK).choices[0]
    cut = whole.message.content[4:6]
    answer = client.chat.completions.create(logprobs=True, stop=[cut], **ASK).choices[0]
    expected = whole.message.content.split(cut)[0]
    assert answer.message.content == expected and answer.finish_reason == "stop"
    assert "".join(e.text for e in answer.logprobs.content).startswith(expected)
    assert len(answer.logprobs.content) < len(whole.logprobs.content)


def test_several_answers_are_one_batch_and_the_greedy_ones_are_the_same(client):
    single = client.chat.completions.create(**ASK).choices[0].message.content
    many = client.chat.completions.create(n=3, **ASK)
    assert [c.index for c in many.choices] == [0, 1, 2] and many.usage.completion_tokens == 36
    assert {c.message.content for c in many.choices} == {single}
    hot = ASK | {"temperature": 2, "seed": 1, "max_tokens": 60}
    drawn = client.chat.completions.create(n=4, logprobs=True, **hot)
    assert len({c.message.content for c in drawn.choices}) > 1
    for choice in drawn.choices:  # rows that end early do not disturb the others
        assert "".join(e.text for e in choice.logprobs.content) == choice.message.content
    again = client.chat.completions.create(n=4, **hot)
    assert [c.message.content for c in again.choices] == [c.message.content for c in drawn.choices]
    texts, finishes = {}, {}
    for chunk in client.chat.completions.create(n=4, stream=True, **hot):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            finishes[choice.index] = choice.finish_reason or finishes.get(choice.index)
    assert [texts[i] for i in range(4)] == [c.message.content for c in drawn.choices]
    assert [finishes[i] for i in range(4)] == [c.finish_reason for c in drawn.choices]


def test_penalties(client):
    def most(**more):
        ids = [
            e.token_id
            for e in client.chat.completions.create(logprobs=True, **(ASK | {"max_tokens": 60}), **more)
            .choices[0]
            .logprobs.content
        ]
        return max(ids.count(i) for i in ids)

    free = most()
    assert free > 1
    assert most(frequency_penalty=2.0, presence_penalty=2.0) < free
    assert most(frequency_penalty=-2.0, presence_penalty=-2.0) >= free


def test_json_and_schemas(client):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        answer = client.chat.completions.create(
            response_format=wanted, seed=seed, **(ASK | {"max_tokens": 200, "temperature": 1})
        )
        value = json.loads(answer.choices[0].message.content)
        assert set(value) == {"ok", "n"} and isinstance(value["ok"], bool) and 1 <= value["n"] <= 9
        assert answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}, **ASK
        )


def test_tools_go_to_the_template_unless_none_may_be_called(client):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is 512 tokens"):  # with the tools
        client.chat.completions.create(tools=tools, **ASK)
    assert client.chat.completions.create(tools=tools, tool_choice="none", **ASK).choices[0].finish_reason == "length"


def test_plain_completions(client):
    answer = client.completions.create(model="tiny-llama", prompt="Once", max_tokens=6, temperature=0, logprobs=2)
    choice = answer.choices[0]
    assert answer.object == "text_completion" and answer.usage.completion_tokens == 6
    assert len(choice.logprobs.tokens) == 6 == len(choice.logprobs.token_logprobs) and choice.finish_reason == "length"
    echoed = client.completions.create(model="tiny-llama", prompt="Once", max_tokens=6, temperature=0, echo=True)
    assert echoed.choices[0].text == "Once" + choice.text
    chunks = client.completions.create(model="tiny-llama", prompt="Once", max_tokens=6, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == choice.text
    assert len(client.completions.create(model="tiny-llama", prompt="Once", n=3).choices) == 3
    for bad in ("", [], ["a", ""], [10**7], [[1], [-1]]):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="tiny-llama", prompt=bad)


def test_going_on_from_a_given_beginning(client):
    whole = client.chat.completions.create(**ASK).choices[0].message.content
    begun = [*ASK["messages"], {"role": "assistant", "content": whole[:4]}]
    more = client.chat.completions.create(
        **(ASK | {"messages": begun, "max_tokens": 8}), extra_body={"continue_final_message": True}
    )
    assert whole.startswith(whole[:4] + more.choices[0].message.content[:3])
    both = {"continue_final_message": True, "add_generation_prompt": False}  # as the Chat tab sends it, and vLLM wants
    again = client.chat.completions.create(**(ASK | {"messages": begun, "max_tokens": 8}), extra_body=both)
    assert again.choices[0].message.content == more.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="add_generation_prompt"):
        client.chat.completions.create(**ASK, extra_body={"add_generation_prompt": False})
    with pytest.raises(openai.BadRequestError, match="continue_final_message"):
        client.chat.completions.create(**ASK, extra_body={"continue_final_message": True})


def test_adapters_added_up(client, engine):
    def post(body):
        return httpx.post(
            engine.removesuffix("/v1") + "/adapters", json=body, headers={"Authorization": "Bearer secret"}, timeout=60
        )

    assert post({"name": "half", "merge": {"tuned": 0.5}}).status_code == 200
    assert post({"name": "whole", "merge": {"tuned": 0.5, "half": 1.0}}).status_code == 200
    content = {
        m: client.chat.completions.create(**(ASK | {"model": m})).choices[0].message.content
        for m in ("tuned", "half", "whole", "tiny-llama")
    }
    assert content["whole"] == content["tuned"] != content["tiny-llama"]
    for bad in (
        {"name": "x", "merge": {"nope": 1.0}},
        {"name": "half", "merge": {"tuned": 1.0}},
        {"name": "tiny-llama", "path": "x"},
    ):
        answer = post(bad)
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_eight_clients_at_once_all_get_what_they_would_get_alone(client, engine):
    def ask(number):
        own = openai.OpenAI(base_url=engine, api_key="secret", max_retries=0)
        model = ("tiny-llama", "tuned")[number % 2]
        asked = ASK | {"model": model, "messages": [{"role": "user", "content": f"Number {number}"}], "max_tokens": 30}
        stream = own.chat.completions.create(stream=bool(number % 3), **asked)
        if number % 3:
            return "".join(c.choices[0].delta.content or "" for c in stream)
        return stream.choices[0].message.content

    alone = [ask(n) for n in range(8)]
    together = [None] * 8
    threads = [threading.Thread(target=lambda n=n: together.__setitem__(n, ask(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert together == alone


def test_a_client_that_leaves_before_its_answer_begins_frees_its_place(client, engine):
    long = ASK | {"max_tokens": 400, "temperature": 2, "seed": 3, "stream": True}
    with httpx.Client() as raw:
        for _ in range(4):
            with raw.stream(
                "POST", f"{engine}/chat/completions", json=long, headers={"Authorization": "Bearer secret"}
            ) as answer:
                next(answer.iter_lines())
    assert client.chat.completions.create(**ASK).usage.completion_tokens == 12


def test_cors_is_off_and_large_bodies_are_refused(engine):
    headers = {"Authorization": "Bearer secret", "Origin": "http://elsewhere.example"}
    answer = httpx.get(f"{engine}/models", headers=headers)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    answer = httpx.post(f"{engine}/chat/completions", content=b" " * (9 << 20), headers=headers, timeout=60)
    assert answer.status_code == 413 and "8 MiB" in answer.json()["error"]["message"]
