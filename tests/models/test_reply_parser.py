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


def pieces(text, size, tools=TOOLS):
    """`(what comes as text, [[name, arguments, whether it ended]])` of an answer whose calls come piecewise."""
    reply = Reply(template("<tool_call>"), "", tools, piecewise=True)
    said, calls = "", []
    found = [part for i in range(0, len(text), size) for part in reply.add(text[i : i + size])] + reply.rest()
    for part in found:
        if part.kind == "tool_call":
            calls.append([part.name, part.text, not part.open])
        elif part.kind == "arguments":
            calls[-1][1] += part.text
        elif part.kind == "call_end":
            calls[-1][2] = True
        else:
            said += part.text
    return said, calls


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("written", "joined"),
    [
        ('{"city":"Malm\\u00f6 \\ud83d\\ude00 \\"x\\" \\\\ \\n"}', '{"city": "Malmö 😀 \\"x\\" \\\\ \\n"}'),
        ('{ "a" : [ 1.50 , -2e3, true,null , {} , [] ] ,"b":{"c":"</b>"} }',
         '{"a": [1.5, -2000.0, true, null, {}, []], "b": {"c": "</b>"}}'),
        ("{}", "{}"),
        ('{"nights": "3", "city": "3", "near": "[1, 2]"}', '{"nights": 3, "city": "3", "near": [1, 2]}'),
    ],
)  # fmt: skip
def test_pieces_of_arguments_join_to_the_whole(written, joined, size):
    """Spaces, escapes, numbers and values of another type than the schema's come as a whole answer has them."""
    kinds = {"city": {"type": "string"}, "nights": {"type": "integer"}, "near": {"type": "array"}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": kinds}}}]
    text = f'Yes. <tool_call>\n{{"name": "weather", "arguments": {written}}}\n</tool_call>'
    said, calls = pieces(text * 2, size, tools)
    assert said.split() == ["Yes.Yes."] and calls == [["weather", joined, True]] * 2
    reply = Reply(template("<tool_call>"), "", tools)
    assert [part.text for part in reply.add(text) + reply.rest() if part.kind == "tool_call"] == [joined]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_what_is_no_call_after_its_beginning_was_sent(size):
    """It cannot be taken back: the rest comes as it is written, and the call has no end."""
    for written in ('{"city": Oslo}', '{"city": "Os\nlo"}', '{"city": "x\\ud83d y"}', '{"city" 1}'):
        said, calls = pieces(f'<tool_call>{{"name": "weather", "arguments": {written}}}</tool_call> Done', size)
        assert said == " Done" and [calls[0][0], calls[0][2]] == ["weather", False] and len(calls) == 1
        assert calls[0][1].replace(" ", "").startswith(written.replace(" ", "")[:-1])
    # cut off
    said, calls = pieces('Well. <tool_call>{"name": "weather", "arguments": {"city": "Os', size)
    assert said == "Well." and calls == [["weather", '{"city": "Os', False]]
    deep = "[" * 5000
    _, calls = pieces(f'<tool_call>{{"name": "weather", "arguments": {{"city": {deep}', size)
    assert calls == [["weather", '{"city": ' + deep, False]]


@pytest.mark.parametrize(
    "bad", ["not json", "", '{"name": "wea', "[1]", '{"name": "weather"', '{"arguments": {"a": 1}}']
)
def test_what_is_no_call_before_its_beginning_is_text(bad):
    said, calls = pieces(f"<tool_call>{bad}</tool_call>!", 1)
    assert said == f"<tool_call>{bad}</tool_call>!" and not calls


def test_calls_that_cannot_come_in_pieces_come_whole():
    _, calls = pieces('<tool_call>{"arguments": {"city":"Oslo"}, "name": "weather"}</tool_call>', 1)
    assert calls == [["weather", '{"city": "Oslo"}', True]]
