"""OpenAI's protocol beyond plain answers: forced calls, prompts with their log-probabilities, the Responses API, tokens,
embeddings, metrics, and what is not supported."""

import asyncio
import json
import math
import re

import httpx
import openai
import pytest
import torch

from workbench.engine.client import Endpoint, complete
from workbench.errors import UserError
from workbench.messages.message import told

pytestmark = pytest.mark.process
MODEL = "tiny-llama"
HI = [{"role": "user", "content": "Hi"}]
ROOM = {
    "type": "object",
    "properties": {"size": {"type": "string", "enum": ["small", "large"]}, "beds": {"type": "integer", "maximum": 4}},
    "required": ["size", "beds"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "book", "description": "Book a room", "parameters": ROOM}},
    {
        "type": "function",
        "function": {"name": "cancel", "parameters": {"type": "object", "additionalProperties": False}},
    },
]


@pytest.fixture
def client(live):
    return openai.OpenAI(base_url=live[0], api_key="none", max_retries=0)


def post(live, path, body, **more):
    return httpx.post(f"{live[0]}/{path}", json={"model": MODEL, **body}, timeout=60, **more)


def direct_logprobs(decoder, ids):
    """What transformers itself gives each token after the first."""
    with torch.no_grad():
        logits = decoder.base(input_ids=torch.tensor([ids])).logits.float().log_softmax(-1)[0]
    return [logits[i, token].item() for i, token in enumerate(ids[1:])]


def test_a_named_tool_is_called_with_arguments_of_its_schema(client):
    for seed in range(2):
        answer = client.chat.completions.create(
            model=MODEL, messages=HI, tools=TOOLS, seed=seed, temperature=1.5, max_tokens=400,
            tool_choice={"type": "function", "function": {"name": "book"}},
        ).choices[0]  # fmt: skip
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        (call,) = answer.message.tool_calls
        given = json.loads(call.function.arguments)
        assert call.function.name == "book" and call.id and set(given) == {"size", "beds"}
        assert given["size"] in ("small", "large") and given["beds"] <= 4


def test_some_tool_is_called_when_one_is_required_streamed_too(client):
    asked = {"model": MODEL, "messages": HI, "tools": TOOLS, "tool_choice": "required", "temperature": 1.0, "seed": 7}
    whole = client.chat.completions.create(**asked, parallel_tool_calls=False, max_tokens=400).choices[0]
    assert len(whole.message.tool_calls) == 1 and whole.finish_reason == "tool_calls"
    chunks = list(client.chat.completions.create(**asked, parallel_tool_calls=False, max_tokens=400, stream=True))
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    (call,) = whole.message.tool_calls
    assert calls[0].function.name == call.function.name and calls[0].id and not calls[0].function.arguments
    assert all(c.function.name is None and c.id is None and c.function.arguments for c in calls[1:]) and len(calls) >= 3
    assert "".join(c.function.arguments for c in calls) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls" and {c.index for c in calls} == {0}
    only = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "name": "cancel"}]},
    }
    body = asked | {"tool_choice": only, "max_tokens": 60, "parallel_tool_calls": False}
    answer = client.chat.completions.create(**body).choices[0].message
    assert [c.function.name for c in answer.tool_calls] == ["cancel"]


def test_one_call_is_all_where_no_others_are_wanted():
    """The model goes on with a second call; the answer ends with the first, and the model is told to stop."""
    from workbench.engine.backend import Job, Sampling, Token
    from workbench.engine.reply_parser import response_template
    from workbench.engine.responses import Chat

    one = '<tool_call>{"name": "book", "arguments": {}}</tool_call>'
    for several, calls, piecewise in ((True, 2, False), (False, 1, False), (True, 2, True), (False, 1, True)):
        job = Job(None, [], Sampling(n=1), tools=TOOLS, several_calls=several)
        job.response_template = response_template("<tool_call>", None, None, ["book"])
        chat = Chat([job], {}, piecewise=piecewise)
        for piece, finish in ((one, None), (one, None), ("", "stop")):
            if not chat.done():
                chat.take(Token(piece, finish))
        choice = chat.body()["choices"][0]
        assert len(choice["message"]["tool_calls"]) == calls and choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tool_choice": "required"}, "no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}, "tools": TOOLS}, "no tool named nope"),
        ({"tool_choice": "always", "tools": TOOLS}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "same name"),
        ({"tools": [{"type": "function", "function": {"name": "a b\n{"}}]}, "letters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]}, "object"),
        ({"logit_bias": {"99999": 1}}, "no token 99999"),
        ({"logit_bias": {"-1": 1}}, "no token -1"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"tempreature": 1}, "tempreature.* Did you mean temperature"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"top_k": -2}, "top_k"),
        ({"stop": ["x" * 2000]}, "stop"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "maximum context length is 4096 tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_refused_by_name(client, change, words):
    body = {"messages": HI, "max_tokens": 2} | change
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.chat.completions.create(model=MODEL, messages=body.pop("messages"), extra_body=body)
    assert refused.value.body["message"] and refused.value.type == "invalid_request_error"
    if "maximum context" in words:
        assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"


def deep(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        deep(200),
        {"$ref": "#"},
        {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(20_000)}},
        {
            "type": "object",
            "properties": {"a": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}},
            "required": ["a"],
        },
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a|a)*(b|b)*$"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "array", "items": {}, "minItems": 10**9}}, "required": ["a"]},
    ],
    ids=["deep", "endless", "wide", "repeated", "lookahead", "dangling", "ambiguous", "long"],
)
def test_hostile_schemas_cost_little(live, schema):
    import time

    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    asked = [{"tools": tools, "tool_choice": "required"}]
    if schema.get("type") == "object":
        asked.append({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}})
    for body in asked:
        began = time.monotonic()
        answer = post(live, "chat/completions", body | {"messages": HI, "max_tokens": 8})
        assert answer.status_code in (200, 400) and time.monotonic() - began < 10
        if answer.status_code == 400:
            assert answer.json()["error"]["message"]


def test_bias_and_thresholds_choose_the_tokens(client):
    asked = {"model": MODEL, "messages": HI, "max_tokens": 8}
    forced = client.chat.completions.create(**asked, logit_bias={"70": 100}, logprobs=True, temperature=0).choices[0]
    assert [entry.token_id for entry in forced.logprobs.content] == [70] * 8
    best = client.chat.completions.create(**asked, temperature=0).choices[0].message.content
    first = forced.logprobs.content[0]
    assert first.rank > 1 and first.logprob < 0  # the model's own opinion, without the bias
    banned = {str(first.top_logprobs[0].token_id): -100} if first.top_logprobs else {}
    assert not banned
    for only_the_best in ({"top_p": 0}, {"extra_body": {"min_p": 1.0}}, {"extra_body": {"top_k": 1}}):
        answer = client.chat.completions.create(**asked, temperature=2, seed=3, **only_the_best)
        assert answer.choices[0].message.content == best
    off = client.chat.completions.create(**asked, temperature=2, seed=3, extra_body={"top_k": -1, "top_p": 1})
    assert off.choices[0].message.content != best


def test_the_chosen_token_is_among_the_alternatives(client):
    entries = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=30, temperature=2, seed=1, logprobs=True, top_logprobs=2
    ).choices[0].logprobs.content  # fmt: skip
    assert any(entry.rank > 2 for entry in entries)
    for entry in entries:
        assert len(entry.top_logprobs) == (2 if entry.rank <= 2 else 3)
        assert entry.token_id in [other.token_id for other in entry.top_logprobs]


def test_defaults_come_from_the_models_generation_config(live, client):
    _, decoder = live
    asked = {"model": MODEL, "messages": HI, "max_tokens": 12, "seed": 5}
    plain = client.chat.completions.create(**asked).choices[0].message.content
    decoder.defaults = {"temperature": 1.9, "top_k": 3, "top_p": 1.0}
    try:
        own = client.chat.completions.create(**asked).choices[0].message.content
        named = client.chat.completions.create(**asked, temperature=0.7, top_p=0.95, extra_body={"top_k": 0})
    finally:
        decoder.defaults = {}
    same = client.chat.completions.create(**asked, temperature=1.9, top_p=1.0, extra_body={"top_k": 3})
    assert own == same.choices[0].message.content != plain
    assert named.choices[0].message.content == plain


def test_generation_config_is_read():
    from transformers import GenerationConfig

    from workbench.engine.sampling import sampling_defaults

    config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05)
    assert sampling_defaults(config) == {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}


def test_an_echoed_prompt_has_the_models_own_logprobs(live, client):
    _, decoder = live
    ids = decoder.tokenizer("Once upon a time", add_special_tokens=False)["input_ids"]
    expected = direct_logprobs(decoder, ids)
    asked = {"model": MODEL, "echo": True, "logprobs": 1, "temperature": 0}
    alone = client.completions.create(**asked, prompt=ids, max_tokens=0)
    (choice,) = alone.choices
    assert choice.text == "Once upon a time" and choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert "".join(choice.logprobs.tokens) == "Once upon a time"
    assert choice.logprobs.text_offset == list(range(len("Once upon a time")))  # one token a letter
    assert alone.usage.prompt_tokens == len(ids) and alone.usage.completion_tokens == 0
    more = client.completions.create(**asked, prompt=ids, max_tokens=3).choices[0]
    assert more.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    assert len(more.logprobs.tokens) == len(ids) + 3 == len(more.logprobs.text_offset)
    # a token that ends the answer has no text, but its entry: clients take the last one away
    ended = client.completions.create(**asked, prompt=ids, max_tokens=1, logit_bias={"2": 100}).choices[0]
    assert ended.finish_reason == "stop" and ended.text == "Once upon a time"
    assert ended.logprobs.tokens[len(ids) :] == ["<|im_end|>"]
    assert ended.logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    streamed = list(client.completions.create(**asked, prompt=ids, max_tokens=3, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == more.text
    assert [p for c in streamed for p in c.choices[0].logprobs.token_logprobs][1:] == pytest.approx(
        more.logprobs.token_logprobs[1:], abs=1e-6
    )


def test_several_prompts_are_answered_in_order(client, live):
    _, decoder = live
    texts = ["Once", "Twice upon", "A"]
    alone = [
        client.completions.create(model=MODEL, prompt=t, max_tokens=5, temperature=0).choices[0].text for t in texts
    ]
    together = client.completions.create(model=MODEL, prompt=texts, max_tokens=5, temperature=0, n=2)
    assert [c.index for c in together.choices] == list(range(6))
    assert [c.text for c in together.choices] == [text for text in alone for _ in range(2)]
    assert together.usage.completion_tokens == 30
    ids = [decoder.tokenizer(t)["input_ids"] for t in texts]
    listed = client.completions.create(model=MODEL, prompt=ids, max_tokens=5, temperature=0)
    assert [c.text for c in listed.choices] == alone
    texts_by_index: dict = {}
    for chunk in client.completions.create(model=MODEL, prompt=texts, max_tokens=5, temperature=0, stream=True):
        for choice in chunk.choices:
            texts_by_index[choice.index] = texts_by_index.get(choice.index, "") + choice.text
    assert [texts_by_index[i] for i in range(3)] == alone
    nothing = client.completions.create(model=MODEL, prompt=texts, max_tokens=0)
    assert [c.text for c in nothing.choices] == ["", "", ""]
    for bad in (
        {"prompt": ["x"] * 300},
        {"prompt": [[1], [10**9]]},
        {"prompt": "x" * 5000, "echo": True, "max_tokens": 0},
    ):
        answer = post(live, "completions", bad)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_responses_whole_streamed_and_going_on(client):
    asked = {"model": MODEL, "temperature": 0, "max_output_tokens": 8}
    first = client.responses.create(input="Hi", instructions="Be brief", **asked)
    assert first.status == "incomplete" and first.incomplete_details.reason == "max_output_tokens"
    same = client.chat.completions.create(
        model=MODEL, messages=[{"role": "system", "content": "Be brief"}, *HI], max_tokens=8, temperature=0
    )
    assert first.output_text == same.choices[0].message.content
    assert first.usage.input_tokens == same.usage.prompt_tokens and first.usage.output_tokens == 8
    events = list(client.responses.create(input="Hi", instructions="Be brief", stream=True, **asked))
    final = events[-1].response
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"
    ]  # fmt: skip
    assert final.output_text == first.output_text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == first.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))
    again = client.responses.create(input="And?", previous_response_id=first.id, **asked)
    talk = [*HI, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And?"}]
    written = client.chat.completions.create(model=MODEL, messages=talk, max_tokens=8, temperature=0)
    assert again.output_text == written.choices[0].message.content and again.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="not found") as missing:
        client.responses.create(input="And?", previous_response_id=first.id, **asked)
    assert missing.value.code == "previous_response_not_found"
    for bad in ({"input": [{"type": "computer_call"}]}, {"truncation": "auto"}, {"background": True}, {"input": []}):
        with pytest.raises(openai.BadRequestError):
            client.responses.create(**(asked | {"input": "Hi"} | bad))


def test_responses_call_tools(client):
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
    asked = {"model": MODEL, "tools": flat, "temperature": 1.0, "max_output_tokens": 400}
    choice = {"type": "function", "name": "book"}
    first = client.responses.create(input="A room", tool_choice=choice, **asked)
    (call,) = first.output
    assert call.type == "function_call" and call.name == "book" and set(json.loads(call.arguments)) == {"size", "beds"}
    result = [{"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
    more = client.responses.create(input=result, previous_response_id=first.id, model=MODEL, max_output_tokens=40)
    assert more.usage.input_tokens > first.usage.output_tokens
    assert more.output_text or more.usage.output_tokens == 1  # its first token may be the end
    with client.responses.stream(input="A room", tool_choice=choice, **asked) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 3 and kinds[2:] == [
        "response.output_item.added", *["response.function_call_arguments.delta"] * len(deltas),
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert events[2].item.name == "book" and events[2].item.arguments == ""
    assert "".join(deltas) == events[-3].arguments == events[-1].response.output[0].arguments
    assert set(json.loads("".join(deltas))) == {"size", "beds"}


def test_models_heads_tokens_and_embeddings(live, client):
    url, decoder = live
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope/at all")
    assert httpx.head(f"{url}/models").status_code == 200 == httpx.head(url.removesuffix("/v1") + "/health").status_code
    told = post(live, "tokenize", {"prompt": "é你"}).json()
    assert told["count"] == len(told["tokens"]) == len("é你".encode()) and told["max_model_len"] == decoder.context
    assert post(live, "detokenize", {"tokens": told["tokens"]}).json() == {"prompt": "é你"}
    chat = post(live, "tokenize", {"messages": HI}).json()
    ids = decoder.tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert chat["tokens"] == ids
    assert post(live, "detokenize", {"tokens": [10**9]}).status_code == 400
    assert post(live, "tokenize", {}).status_code == 400
    vectors = client.embeddings.create(model=MODEL, input=["Hello there", "Hello there", "你好"])
    first, same, other = (item.embedding for item in vectors.data)
    with torch.no_grad():
        ids = decoder.tokenizer("Hello there", return_tensors="pt")["input_ids"]
        states = decoder.base(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
    assert first == same == pytest.approx((states / states.norm()).tolist(), abs=1e-5)
    assert math.isclose(sum(x * x for x in other), 1, abs_tol=1e-4) and other != first
    plain = client.embeddings.create(model=MODEL, input="Hello there", encoding_format="float").data[0].embedding
    assert plain == pytest.approx(first, abs=1e-6)
    assert post(live, "embeddings", {"input": "x", "dimensions": 8}).status_code == 400
    assert post(live, "embeddings", {"input": "x" * 5000}).json()["error"]["code"] == "context_length_exceeded"


def test_metrics_count_what_was_done(live, client):
    def read() -> dict[str, float]:
        text = httpx.get(live[0].removesuffix("/v1") + "/metrics").text
        assert text.endswith("\n")
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    before = read()
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=5)
    after = read()
    path = 'workbench_http_requests_total{path="/v1/chat/completions",status="200"}'
    assert after[path] == before.get(path, 0) + 1
    for name, count in (("generated", 5), ("prompt", answer.usage.prompt_tokens)):
        assert after[f"workbench_{name}_tokens_total"] == before[f"workbench_{name}_tokens_total"] + count
    assert after["workbench_tokens_per_second"] > 0 and after["workbench_requests_running"] == 0
    stream = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=2000, temperature=2, stream=True, logit_bias={"2": -100}
    )
    next(iter(stream))
    busy = read()
    assert busy["workbench_requests_running"] == 1 and busy["workbench_kv_tokens_used"] > 0
    stream.close()


def test_broken_letters_and_names_anywhere_are_refused(live):
    lone = "\ud800"
    function = {"name": "f", "description": lone, "parameters": {"type": "object"}}
    for path, body in (
        ("chat/completions", {"messages": HI, "tools": [{"type": "function", "function": function}]}),
        ("chat/completions", {"messages": HI, "stop": [lone]}),
        ("chat/completions", {"messages": [HI[0] | {"reasoning_content": lone}]}),
        ("completions", {"prompt": ["a", lone]}),
        ("responses", {"input": "x", "instructions": lone}),
        ("embeddings", {"input": [lone]}),
        ("tokenize", {"prompt": lone}),
    ):
        sent = json.dumps({"model": MODEL, **body}).encode()
        answer = httpx.post(f"{live[0]}/{path}", content=sent, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "Unicode" in answer.json()["error"]["message"], path
    for path, body in (("tokenize", {"prompt": "x" * 500_000}), ("embeddings", {"input": "x" * 500_000})):
        assert "at most 400,000 characters" in post(live, path, body).json()["error"]["message"]


def test_an_error_is_told_in_the_users_language(live):
    long = [{"role": "user", "content": "word " * 60_000}]
    cases = (("nobody", HI, "nobody"), (MODEL, long, "context length"), (MODEL, long * 2, "characters"))
    for model, messages, part in cases:
        body = post(live, "chat/completions", {"messages": messages, "model": model}).json()["error"]
        assert part in body["message"]
        with pytest.raises(UserError) as error:
            asyncio.run(complete(Endpoint(live[0], ""), model, messages))
        assert told(error.value.message, "en") == body["message"]
        chinese = told(error.value.message, "zh")
        assert re.search(r"[\u4e00-\u9fff]", chinese) and ("nobody" in chinese) == (model == "nobody")


def test_samples_are_counted_while_they_are_written(live):
    counted = []
    samples = asyncio.run(
        complete(Endpoint(live[0], ""), MODEL, HI, n=4, done=counted.append, temperature=1.5, seed=1, max_tokens=8)
    )
    assert counted == [1, 2, 3, 4] and len(samples) == 4 and len(set(samples)) > 1


def test_a_strict_function_is_no_part_of_the_prompt_and_of_no_harm(live):
    """Whether its schema binds a call is tested with every form in tests/models/test_call_forms.py."""
    strict = [{**tool, "function": tool["function"] | {"strict": True}} for tool in TOOLS]
    asked = {"messages": HI, "temperature": 0, "max_tokens": 6}
    answers = [post(live, "chat/completions", asked | {"tools": tools}).json() for tools in (TOOLS, strict)]
    assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]
    assert answers[1]["choices"][0]["finish_reason"] in ("length", "stop")
    flat = [{"type": "function", **tool["function"]} for tool in strict]
    turn = post(live, "responses", {"input": "Hi", "tools": flat, "max_output_tokens": 6}).json()
    assert turn["usage"]["input_tokens"] == answers[0]["usage"]["prompt_tokens"]
