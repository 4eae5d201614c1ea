"""Thoughts and tool calls in an answer's text; a token's bytes."""

import time

import pytest
from transformers import AutoTokenizer

from workbench.engine.reply_parser import Reply, response_template
from workbench.models.vocabulary import Vocabulary

TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


def template(text, tools=True):
    return response_template(text, None, None, ["weather"] if tools else [])


def parts(pieces, thinking=False, chat="<think> <tool_call>"):
    reply = Reply(template(chat), "", TOOLS, thinking)
    found = [part for piece in pieces for part in reply.add(piece)] + reply.rest()
    out = {}
    for part in found:
        out[part.kind] = out.get(part.kind, "") + (
            f"{part.name}({part.text})" if part.kind == "tool_call" else part.text
        )
    return out, reply.calls


def test_plain_models_are_not_parsed():
    assert template("{{ messages }}") is None
    assert Reply(None, "", None).add("<think>x")[0].text == "<think>x"


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_thoughts_and_calls_whatever_the_pieces(size):
    text = (
        '<think>I need it.</think>Let me see.\n<tool_call>{"name": "weather", "arguments": {"city":'
        ' "Paris"}}</tool_call>'
    )
    found, calls = parts([text[i : i + size] for i in range(0, len(text), size)])
    assert found["reasoning"] == "I need it." and found["content"].strip() == "Let me see." and calls == 1
    assert found["tool_call"] == 'weather({"city": "Paris"})'


def test_a_prompt_that_opens_the_thoughts():
    found, _ = parts(["I think", "</think>Yes"], thinking=True)
    assert found == {"reasoning": "I think", "content": "Yes"}


def test_a_call_that_is_cut_off_or_no_json_loses_nothing_else():
    found, calls = parts(["Before ", '<tool_call>{"name": "wea'])
    assert found["content"].startswith("Before <tool_call>") and calls == 0


@pytest.mark.parametrize("bad", ["not json", "", '{"name": "weather", "arguments": {"city"', "[1]"])
def test_a_call_that_is_no_json_is_shown_as_it_was_written(bad):
    good = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    found, calls = parts(["Well. ", good, f"<tool_call>{bad}</tool_call> after"])
    assert (
        calls == 1
        and found["content"].startswith("Well.")
        and bad in found["content"]
        and found["content"].count("weather") <= 1
    )
    assert found["tool_call"] == "weather({})"


def test_without_tools_calls_are_text():
    assert template("<tool_call>", tools=False) is None


def test_bytes_of_tokens(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    vocabulary = Vocabulary(tokenizer)
    text = "Hi, é 你好\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(vocabulary.bytes(i) for i in ids) == text.encode()
    assert vocabulary.bytes(2) == b"<|im_end|>" and vocabulary.bytes(10**6) == b""


def test_an_answer_without_the_marks_of_its_template_is_not_lost():
    harmony = response_template("<|channel|>analysis<|message|>", None, None, [])
    reply = Reply(harmony, "", None)
    assert [part for letter in "Just text" for part in reply.add(letter)] == []
    assert [(part.kind, part.text) for part in reply.rest()] == [("content", "Just text")]


def test_endless_space_costs_little():
    began = time.monotonic()
    reply = Reply(template("<think> <tool_call>"), "", TOOLS)
    text = "".join(part.text for _ in range(20_000) for part in reply.add("\n")) + "".join(p.text for p in reply.rest())
    assert text == "\n" * 20_000
    reply = Reply(template("<think> <tool_call>"), "", TOOLS)
    for piece in ["<tool_call>", *["\n"] * 20_000]:
        reply.add(piece)
    reply.rest()
    assert time.monotonic() - began < 5
