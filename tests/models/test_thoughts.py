"""Thoughts before an answer that has to be JSON or a call, and answers that are gone on with."""

import json

import pytest

from tests.models.test_call_forms import TOOLS, accepts, planned, tokenizer_for
from workbench.engine.backend import Job, Sampling
from workbench.engine.prompts import Prompts
from workbench.engine.reply_parser import Reply
from workbench.engine.responses import Chat

OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
MAY = OPENS.replace(
    "assistant\n<think>\n{% endif",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif",
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
MARKS = {"letters": (), "tokens": ("<think>", "</think>")}


def json_job(tokenizer, **values) -> Job:
    job = Job(None, [{"role": "user", "content": "Zq"}], Sampling(grammar=SCHEMA), template_values=values)
    Prompts(tokenizer, {2}).ids(job)
    return job


def split(job: Job, text: str) -> dict[str, str]:
    reply = Reply(job.response_template, job.prompt_text, None, job.thinking)
    out: dict[str, str] = {}
    for part in [p for letter in text for p in reply.add(letter)] + reply.rest():
        out[part.kind] = out.get(part.kind, "") + part.text
    return out


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
def test_json_begins_after_a_thought_that_the_prompt_has_opened(marks, tiny_model):
    tokenizer = tokenizer_for(OPENS, tiny_model, marks)
    job = json_job(tokenizer)
    assert job.thinking
    for text in ('so {"a": 0}\n</think>\n\n{"a": 1}', '</think>{"a": 1}'):
        assert accepts(tokenizer, job, text)
        assert json.loads(split(job, text)["content"]) == {"a": 1}
    assert not accepts(tokenizer, job, '{"a": 1}') and not accepts(tokenizer, job, 'x</think>{"a": "b"}')


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
def test_a_thought_that_the_model_may_open(marks, tiny_model):
    tokenizer = tokenizer_for(MAY, tiny_model, marks)
    job = json_job(tokenizer)
    assert accepts(tokenizer, job, '{"a": 1}') and accepts(tokenizer, job, '<think>\nwell\n</think>\n\n{"a": 1}')
    assert split(job, '<think>\nwell\n</think>\n\n{"a": 1}')["content"].strip() == '{"a": 1}'
    off = json_job(tokenizer, enable_thinking=False)
    assert accepts(tokenizer, off, '{"a": 1}') and not accepts(tokenizer, off, '<think>x</think>{"a": 1}')


def test_going_on_inside_a_thought_stays_a_thought(tiny_model):
    tokenizer = tokenizer_for(OPENS, tiny_model)
    for given, thinking in (
        ("<think>\nI wonder", True),
        ("<think>\nI wonder\n</think>\n\nIt is", False),
        ("It is", False),
    ):
        messages = [{"role": "user", "content": "<think> Zq"}, {"role": "assistant", "content": given}]
        job = Job(None, messages, Sampling(), continue_final=True)
        Prompts(tokenizer, {2}).ids(job)
        assert job.thinking is thinking and job.prompt_text.endswith(given)
        text = " about it</think>Yes" if thinking else " so"
        expected = {"reasoning": " about it", "content": "Yes"} if thinking else {"content": " so"}
        assert split(job, text) == expected
        wanted = Job(None, messages, Sampling(grammar=SCHEMA), continue_final=True)
        Prompts(tokenizer, {2}).ids(wanted)
        assert accepts(tokenizer, wanted, ' x</think>{"a": 1}') is thinking


def test_gpt_oss_answers_json_in_its_final_channel(tiny_model):
    from tests.models.test_call_forms import ALL

    tokenizer = tokenizer_for(
        ALL["gptoss"], tiny_model, ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>")
    )
    job = json_job(tokenizer)
    text = '<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>{"a": 1}'
    assert accepts(tokenizer, job, text) and accepts(tokenizer, job, '<|channel|>final<|message|>{"a": 1}')
    reply = Reply(job.response_template, job.prompt_text, None, False)
    parts = [p for letter in text for p in reply.add(letter)] + reply.rest("<|return|>")
    assert "".join(p.text for p in parts if p.kind == "content") == '{"a": 1}'
    assert "".join(p.text for p in parts if p.kind == "reasoning") == "so"


def test_integers_end(tiny_model):
    """Small models write digits for ever where they may. Bounds that a schema names stay."""
    for schema, good, bad in (
        ({"type": "integer"}, ("-5", "9007199254740991"), ("9007199254740992", "1" * 40)),
        ({"type": ["integer", "null"]}, ("null", "7"), ("1" * 40, "1.5")),
        ({"type": "integer", "minimum": 3}, ("3", "12"), ("2", "-4", "1" * 40)),
        ({"type": "number"}, ("1e30", "2.5"), ("x",)),
        ({"const": {"type": "integer"}}, ('{"type":"integer"}',), ("{}",)),
    ):
        tokenizer = tokenizer_for(OPENS.replace("<think>\n", ""), tiny_model)
        job = Job(None, [{"role": "user", "content": "Zq"}], Sampling(grammar=schema))
        Prompts(tokenizer, {2}).ids(job)
        assert all(accepts(tokenizer, job, text) for text in good), schema
        assert not any(accepts(tokenizer, job, text) for text in bad), schema


def test_with_tools_and_a_format_an_answer_is_either(tiny_model):
    from workbench.data import templates

    tokenizer = tokenizer_for(templates.read("chatml"), tiny_model)
    job = planned(tokenizer, grammar=SCHEMA)
    assert accepts(tokenizer, job, '{"a": 1}') and not accepts(tokenizer, job, "Hello")
    assert accepts(tokenizer, job, '<tool_call>\n{"name": "book", "arguments": {"city": "Oslo"}}\n</tool_call>')
    assert TOOLS and Chat.kind
