"""The clients that people use, in their default modes, on a tiny random model: what they force has to come out right
whatever the model would have said. `requirements-dev.txt` installs them; one that is missing is skipped."""

import asyncio
import json
from typing import Literal

import pytest
import torch
from pydantic import BaseModel, Field

pytestmark = pytest.mark.process
MODEL = "tiny-llama"


class Room(BaseModel):
    """A room in a hotel."""

    size: Literal["small", "large"]
    beds: int = Field(ge=1, le=4)


def test_instructor_gets_its_model(live):
    instructor = pytest.importorskip("instructor")
    import openai

    client = instructor.from_openai(openai.OpenAI(base_url=live[0], api_key="none", max_retries=0))
    asked = {"model": MODEL, "response_model": Room, "messages": [{"role": "user", "content": "A room"}]}
    room = client.chat.completions.create(**asked, max_retries=0, seed=2, max_tokens=400)
    assert isinstance(room, Room) and 1 <= room.beds <= 4
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
        client = instructor.from_openai(openai.OpenAI(base_url=live[0], api_key="none", max_retries=0), mode=mode)
        assert isinstance(client.chat.completions.create(**asked, max_retries=0, seed=2, max_tokens=400), Room)


def test_pydantic_ai_gets_its_output(live):
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.usage import UsageLimits

    provider = OpenAIProvider(base_url=live[0], api_key="none")
    settings = {"max_tokens": 400, "temperature": 1.0, "parallel_tool_calls": False}
    looked = []

    def look(quiet: bool) -> str:
        """Look for a room."""
        looked.append(quiet)
        return "found"

    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        agent = Agent(kind(MODEL, provider=provider), output_type=Room, retries=0)
        result = agent.run_sync("A room", model_settings=settings)
        assert isinstance(result.output, Room) and result.usage.output_tokens > 0
        # a tool beside it: some turns call that first, and go on from its result
        agent = Agent(kind(MODEL, provider=provider), output_type=Room, retries=0, tools=[look])
        for _ in range(4):
            result = agent.run_sync("A room", model_settings=settings, usage_limits=UsageLimits(request_limit=30))
            assert isinstance(result.output, Room)
    assert all(isinstance(quiet, bool) for quiet in looked)

    async def streamed():
        agent = Agent(OpenAIChatModel(MODEL, provider=provider), output_type=Room, retries=0)
        async with agent.run_stream("A room", model_settings=settings) as stream:
            return await stream.get_output()

    assert isinstance(asyncio.run(streamed()), Room)


def test_openai_parses_what_it_asked_for(live):
    import openai

    client = openai.OpenAI(base_url=live[0], api_key="none", max_retries=0)
    hi = [{"role": "user", "content": "A room"}]
    parsed = client.chat.completions.parse(model=MODEL, messages=hi, response_format=Room, max_tokens=400)
    assert isinstance(parsed.choices[0].message.parsed, Room)
    turn = client.responses.parse(model=MODEL, input="A room", text_format=Room, max_output_tokens=400)
    assert isinstance(turn.output_parsed, Room)
    tool = openai.pydantic_function_tool(Room)
    asked = {"model": MODEL, "messages": hi, "tools": [tool], "tool_choice": "required", "max_tokens": 400}
    with client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Room)


def test_langchain_forces_calls_and_batches(live):
    langchain_openai = pytest.importorskip("langchain_openai")

    chat = langchain_openai.ChatOpenAI(model=MODEL, base_url=live[0], api_key="none", max_retries=0, max_tokens=400)
    for method in ("function_calling", "json_schema"):
        assert isinstance(chat.with_structured_output(Room, method=method).invoke("A room"), Room)
    bound = chat.bind_tools([Room], tool_choice="any", parallel_tool_calls=False)
    calls = bound.invoke("A room").tool_calls
    assert [call["name"] for call in calls] == ["Room"] and Room(**calls[0]["args"])
    first, *pieces = list(bound.stream("A room"))
    for piece in pieces:
        first += piece
    assert [call["name"] for call in first.tool_calls] == ["Room"] and Room(**first.tool_calls[0]["args"])
    short = chat.bind(max_tokens=6, temperature=0)
    texts = ["One", "Two", "Three", "Four"]
    assert [a.content for a in short.batch(texts)] == [short.invoke(text).content for text in texts]
    plain = langchain_openai.OpenAI(model=MODEL, base_url=live[0], api_key="none", max_tokens=6, temperature=0)
    together = plain.generate(texts)  # one request with four prompts
    assert [g[0].text for g in together.generations] == [plain.invoke(text) for text in texts]
    turns = langchain_openai.ChatOpenAI(
        model=MODEL, base_url=live[0], api_key="none", max_retries=0, max_tokens=400, use_responses_api=True
    )
    assert Room(**turns.bind_tools([Room], tool_choice="Room").invoke("A room").tool_calls[0]["args"])
    vectors = langchain_openai.OpenAIEmbeddings(
        model=MODEL, base_url=live[0], api_key="none", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_documents(texts)) == 4


def test_smolagents_calls_a_tool_and_ends(live):
    smolagents = pytest.importorskip("smolagents")

    model = smolagents.OpenAIModel(
        model_id=MODEL, api_base=live[0], api_key="none", max_tokens=600, temperature=1.0, seed=3
    )

    @smolagents.tool
    def look(beds: int, quiet: bool) -> str:
        """Look for a room.

        Args:
            beds: how many.
            quiet: away from the street.
        """
        return f"found {beds}"

    message = model.generate([smolagents.ChatMessage(role="user", content="Hi")], tools_to_call_from=[look])
    (call, *_) = message.tool_calls
    given = (
        call.function.arguments if isinstance(call.function.arguments, dict) else json.loads(call.function.arguments)
    )
    assert call.function.name == "look" and isinstance(given["beds"], int) and isinstance(given["quiet"], bool)


def test_litellm_passes_everything_on(live, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask GitHub when it is imported
    litellm = pytest.importorskip("litellm")
    tools = [{"type": "function", "function": {"name": "Room", "parameters": Room.model_json_schema()}}]
    common = {"model": f"openai/{MODEL}", "api_base": live[0], "api_key": "none", "max_tokens": 400}
    asked = common | {"messages": [{"role": "user", "content": "A room"}]}
    answer = litellm.completion(**asked, tools=tools, tool_choice="required")
    assert Room(**json.loads(answer.choices[0].message.tool_calls[0].function.arguments))
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**(asked | {"messages": [{"role": "user", "content": "x" * 5000}]}))
    pieces = litellm.completion(**(asked | {"max_tokens": 5}), stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces)


QUESTIONS = [("The sky is", " blue", " a fish"), ("Two and two make", " four", " soup"), ("Cats say", " meow", " 17%")]


@pytest.fixture
def task(tmp_path):
    """A multiple-choice task of three questions, without any hub."""
    rows = [{"q": q, "choices": [a, b], "answer": 0} for q, a, b in QUESTIONS]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


def evaluated(url: str, folder, task: dict, batch: int) -> list[dict]:
    """lm-evaluation-harness's samples of a task, through `local-completions`."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": MODEL,
            "base_url": f"{url}/completions",
            "tokenizer": str(folder),
            "tokenizer_backend": "huggingface",
            "num_concurrent": 1,
            "max_length": 512,
        },
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        batch_size=batch,
        bootstrap_iters=0,
        log_samples=True,
    )
    return sorted(found["samples"][task["task"]], key=lambda sample: sample["doc_id"])


def log_chances(decoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return decoder.base(input_ids=torch.tensor([ids])).logits.float().log_softmax(-1)[0]


@pytest.mark.parametrize("batch", [1, 4])
def test_lm_evaluation_harness_scores_as_transformers_does(live, tiny_model, task, batch, tmp_path, monkeypatch):
    """Its log-likelihoods against log-softmax of transformers' own logits."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    url, decoder = live
    samples = evaluated(url, tiny_model, task, batch)
    assert len(samples) == len(QUESTIONS)
    for sample, (question, *choices) in zip(samples, QUESTIONS, strict=True):
        for (logprob, greedy), choice in zip(sample["filtered_resps"], choices, strict=True):
            before = decoder.tokenizer(question)["input_ids"]
            ids = decoder.tokenizer(question + choice)["input_ids"]
            logits, places = log_chances(decoder, ids), range(len(before) - 1, len(ids) - 1)
            assert float(logprob) == pytest.approx(sum(logits[i, ids[i + 1]].item() for i in places), abs=1e-3)
            assert bool(greedy) == all(logits[i].argmax().item() == ids[i + 1] for i in places)
    rolling = {key: task[key] for key in ("dataset_path", "dataset_kwargs", "test_split")} | {
        "task": "tiny_rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    for sample, (question, *_) in zip(evaluated(url, tiny_model, rolling, batch), QUESTIONS, strict=True):
        ids = [decoder.tokenizer.bos_token_id, *decoder.tokenizer(question)["input_ids"]]
        logits = log_chances(decoder, ids)
        expected = sum(logits[i, token].item() for i, token in enumerate(ids[1:]))
        found = sample["filtered_resps"][0]
        assert float(found[0] if isinstance(found, list | tuple) else found) == pytest.approx(expected, abs=1e-3)
