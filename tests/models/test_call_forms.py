"""Calls of tools in every template's own form: found, written by a grammar, and read back.

What a call looks like is what the template itself makes of one. Where no template is at hand, a small one of ours
writes calls in the form that the model's documentation shows.
"""

import json
import random
import re
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from workbench.data import templates
from workbench.engine.backend import Job, Sampling
from workbench.engine.grammars import matcher
from workbench.engine.prompts import Prompts
from workbench.engine.reply_parser import Reply
from workbench.engine.sampling import _Masked
from workbench.errors import UserError

_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]"
    "{% if tools and loop.first %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}CALLS{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
OWN = {
    # lists of calls with ids of nine letters, mistral-common's v3
    "mistral": _TURNS.replace(
        "CALLS",
        "{% for c in m.tool_calls if c.id | length != 9 %}{{ raise_exception('nine') }}{% endfor %}"
        "[TOOL_CALLS] [{% for c in m.tool_calls %}"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
        "{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}",
    ),
    # name and arguments beside each other, v11 and later
    "mistral-v11": _TURNS.replace(
        "CALLS",
        "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
        "{% endfor %}{{ eos_token }}",
    ),
    # arguments as JSON text, in a fence
    "deepseek-v3": _TURNS.replace(
        "CALLS",
        "<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name + '\\n```json\\n' + c.function.arguments + '\\n```' }}"
        "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>{{ eos_token }}",
    ),
    "deepseek-v31": _TURNS.replace(
        "CALLS",
        "<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>"
        "{{ c.function.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>{{ eos_token }}",
    ),
    "command-r7b": _TURNS.replace(
        "CALLS",
        "<|START_ACTION|>[{% for c in m.tool_calls %}{{ '\\n    ' }}"
        '{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.function.name }}", "parameters": '
        "{{ c.function.arguments | tojson }}}{% if not loop.last %},{% endif %}{% endfor %}{{ '\\n' }}]<|END_ACTION|>"
        "{{ eos_token }}",
    ),
    "sections": _TURNS.replace(
        "CALLS",
        "<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>functions.{{ c.function.name }}"
        "<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>{% endfor %}"
        "<|tool_calls_section_end|>{{ eos_token }}",
    ),
    # no name but within the id: Kimi-K2's
    "kimi-k2": _TURNS.replace(
        "CALLS",
        "<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}"
        "{% endif %}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>{{ eos_token }}",
    ).replace(
        "{% elif m.tool_calls %}",
        "{% elif m.role == 'tool' %}## Return of {{ m.tool_call_id }}\n{{ m.content }}{% elif m.tool_calls %}",
    ),
    "minimax-m2": _TURNS.replace(
        "CALLS",
        "<minimax:tool_call>{% for c in m.tool_calls %}{{ '\\n' }}"
        '<invoke name="{{ c.function.name }}">{% for k, v in c.function.arguments.items() %}{{ "\\n" }}'
        '<parameter name="{{ k }}">{{ v if v is string else v | tojson }}</parameter>{% endfor %}{{ "\\n" }}</invoke>'
        "{% endfor %}{{ '\\n' }}</minimax:tool_call>{{ eos_token }}",
    ),
}
# templates that show tools, and no calls
SILENT = {
    "phi-4-mini": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'system' and m.tools %}<|tool|>"
        "{{ m.tools }}<|/tool|>{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        '<|tool_call|>[{"name": "book", "arguments": {"city": "Oslo", "nights": 2}}]<|/tool_call|>',
    ),
    "granite-3": (
        "{% if tools %}<|tools|>{{ tools | tojson }} Write <|tool_call|> and a list.{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end_of_text|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        '<|tool_call|>[{"name": "book", "arguments": {"city": "Oslo", "nights": 2}}]',
    ),
}
NO_CALLS = [
    "cohere",
    "cohere2",
    "deepseekv3",
    "gemma",
    "gemma3",
    "idefics3",
    "lfm2",
    "llama3",
    "llava_next",
    "phi3",
    "phi3_5",
    "qwen2_5_vl",
    "smolvlm",
    "deepseek",
    "default",
]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "nights": {"type": "integer"},
        "quiet": {"type": "boolean"},
        "near": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "book", "description": "Book", "parameters": PARAMETERS}},
    {
        "type": "function",
        "function": {"name": "look.up-2", "description": "L", "parameters": {"type": "object", "properties": {}}},
    },
]
CALLS = [("book", {"city": "Oslo, Norway", "nights": 2}), ("book", {"city": "Rome"})]


def _trl() -> dict[str, str]:
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {f.stem: f.read_text() for f in sorted(folder.glob("*.jinja")) if "training" not in f.name}


ALL = _trl() | {f"bundled-{name}": templates.read(name) for name in templates.names() if templates.read(name)} | OWN
# forms whose arguments are JSON, and those of them that are read by us
PIECEWISE = ["qwen2_5", "llama3_1", "bundled-glm4", "mistral", "mistral-v11", "deepseek-v3", "deepseek-v31",
             "command-r7b", "sections", "kimi-k2"]  # fmt: skip
SEVERAL = {name for name in ALL if not name.endswith(("llama3_1", "llama3_2", "bundled-llama3", "glm4", "gptoss"))}


def tokenizer_for(template: str, tiny_model, marks: tuple[str, ...] = ()):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    tokenizer.add_tokens(list(marks), special_tokens=True)
    return tokenizer


def marks_in(text: str) -> tuple[str, ...]:
    found = re.findall(r"<[^<>\s=\"]+>|\[TOOL_CALLS\]|\[ARGS\]|<\|\"\|>", text)
    return tuple(sorted(set(found) - {"<|im_end|>", "<|im_start|>", "<s>"}))


def written(template: str, calls, text_arguments: bool = False) -> str:
    """What the template itself makes of calls: all that follows the question."""
    listed = [
        {
            "id": f"functions.{name}:{n}" if template == OWN["kimi-k2"] else f"abcdefgh{n}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given) if text_arguments else given},
        }
        for n, (name, given) in enumerate(calls)
    ]
    asked = [{"role": "user", "content": "Zq"}]
    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    whole = render_jinja_template(
        [[*asked, {"role": "assistant", "content": "", "tool_calls": listed}]],
        tools=TOOLS,
        chat_template=template,
        **tokens,
    )[0][0]
    begun = render_jinja_template([asked], tools=TOOLS, chat_template=template, add_generation_prompt=True, **tokens)
    start = next((i for i, (a, b) in enumerate(zip(whole, begun[0][0], strict=False)) if a != b), len(begun[0][0]))
    text = whole[start:]
    for end in ("<|im_end|>", "<|eot_id|>", "<|call|>", "<turn|>", "<|tool_response>", "<|eot|>"):
        text = text.partition(end)[0]
    return text.rpartition("</think>")[2].strip() if "</think>" in text else text.rstrip()


def planned(tokenizer, forced=(), several=True, tools=TOOLS, grammar=None, strict=()) -> Job:
    ends = {2} | {i for t in ("<|call|>",) if (i := tokenizer.convert_tokens_to_ids(t)) is not None}
    job = Job(None, [{"role": "user", "content": "Zq"}], Sampling(grammar=grammar), tools=tools)
    job.forced, job.several_calls, job.strict = list(forced), several, list(strict)
    Prompts(tokenizer, ends).ids(job)
    return job


def read(job: Job, text: str, size: int, end: str = "") -> list[tuple[str, dict]]:
    reply = Reply(job.response_template, job.prompt_text, job.tools, job.thinking)
    parts = [part for i in range(0, len(text), size) for part in reply.add(text[i : i + size])] + reply.rest(end)
    assert not "".join(part.text for part in parts if part.kind == "content").strip()
    return [(part.name, json.loads(part.text)) for part in parts if part.kind == "tool_call"]


def streamed(job: Job, text: str, size: int, end: str = "") -> tuple[list[tuple[str, str]], int]:
    """Names and joined arguments of calls that come piecewise, and in how many pieces they came."""
    reply = Reply(job.response_template, job.prompt_text, job.tools, job.thinking, piecewise=True)
    parts = [part for i in range(0, len(text), size) for part in reply.add(text[i : i + size])] + reply.rest(end)
    assert not "".join(part.text for part in parts if part.kind == "content").strip()
    calls: list[tuple[str, str]] = []
    ended = []
    for part in parts:
        if part.kind == "tool_call":
            calls.append((part.name, part.text))
            ended.append(not part.open)
        elif part.kind == "arguments":
            assert not ended[-1]
            calls[-1] = calls[-1][0], calls[-1][1] + part.text
        elif part.kind == "call_end":
            ended[-1] = True
    assert all(ended) and reply.calls == len(calls)
    return calls, sum(part.kind == "arguments" for part in parts)


def accepts(tokenizer, job: Job, text: str) -> bool:
    """Whether the grammar takes the text, and takes its end."""
    found = matcher(tokenizer, job.sampling.grammar, len(tokenizer))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found.try_consume_tokens(ids) == len(ids) and found.is_accepting()


def text_arguments(name: str) -> bool:
    return name in ("deepseek-v3", "deepseekv3", "deepseek_r1_distill")


@pytest.mark.parametrize("name", sorted(set(ALL) - set(NO_CALLS) - {f"bundled-{n}" for n in NO_CALLS}))
def test_what_a_template_writes_is_read_and_what_the_grammar_allows(name, tiny_model):
    template = ALL[name]
    if name == "deepseek_r1_distill":
        pytest.skip("TRL's own: it does not close a turn of one call, so that it cannot be told where that ends")
    several = name in SEVERAL
    texts = [(CALLS[:1], written(template, CALLS[:1], text_arguments(name)))]
    if several:
        texts.append((CALLS, written(template, CALLS, text_arguments(name))))
    marks = marks_in(texts[-1][1])
    for chosen in ((), marks):  # marks as plain letters, and as one token each
        tokenizer = tokenizer_for(template, tiny_model, chosen)
        job = planned(tokenizer, ["book"])
        end = "<|call|>" if name == "gptoss" else ""
        for calls, text in texts:
            thought = "so\n</think>\n\n" if job.thinking else ""
            for size in (1, 7, 10_000):
                assert read(job, thought + text, size, end) == calls, (text, size)
                whole = [(name, json.dumps(given, ensure_ascii=False)) for name, given in calls]
                pieces, count = streamed(job, thought + text, size, end)
                assert pieces == whole, (text, size)
                if size == 1 and name in PIECEWISE:
                    assert count > 10 * len(calls)
            assert accepts(tokenizer, job, thought + text), text
        one = planned(tokenizer, ["book"], several=False)
        if several:
            assert not accepts(tokenizer, one, thought + texts[1][1])
        other = planned(tokenizer, ["look.up-2"])
        assert not accepts(tokenizer, other, thought + texts[0][1])


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_6", "glm4moe", "gemma4", "lfm2_2_5", "gptoss", "muse_glimmer", "llama3_1",
                                  "bundled-glm4", *OWN])  # fmt: skip
@pytest.mark.parametrize("seed", range(2))
def test_whatever_the_grammar_lets_a_model_write_is_a_call(name, seed, tiny_model):
    """A model that draws at random among the tokens allowed: calls come out that follow the schema."""
    schema = {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["red", "a b, c"]},
            "nights": {"type": "integer", "minimum": 1, "maximum": 9},
            "quiet": {"type": "boolean"},
            "deep": {
                "type": "object",
                "properties": {"x": {"enum": [1, "y"]}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
        "required": ["nights", "deep"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "f-1", "description": "", "parameters": schema}}]
    tokenizer = tokenizer_for(ALL[name], tiny_model, marks_in(ALL[name]))
    job = planned(tokenizer, ["f-1"], several=name == "mistral", tools=tools)
    found = matcher(tokenizer, job.sampling.grammar, len(tokenizer))
    mask, rng, ids = _Masked(found, len(tokenizer)), random.Random(seed), []
    think = tokenizer.convert_tokens_to_ids("</think>") if job.thinking else None
    while not found.is_stopped() and len(ids) < 2000:
        allowed = (mask(torch.zeros(len(tokenizer))) == 0).nonzero()[:, 0].tolist()
        if think in allowed:
            allowed, think = [think], None
        if not job.thinking and (opened := tokenizer.convert_tokens_to_ids("<think>")) in allowed:
            allowed = [i for i in allowed if i != opened] or allowed
        ids.append(rng.choice(allowed))
        if ids[-1] == 2:
            ids.pop()
            break
        assert found.consume_token(ids[-1])
    text, end = tokenizer.decode(ids), ""
    if text.endswith("<|call|>"):
        text, end = text.removesuffix("<|call|>"), "<|call|>"
    calls = read(job, text, 5, end or ("<|call|>" if name == "gptoss" else ""))
    assert 1 <= len(calls) <= 16
    for called, given in calls:
        assert called == "f-1" and set(given) <= set(schema["properties"]) and {"nights", "deep"} <= set(given)
        assert 1 <= given["nights"] <= 9 and given["deep"]["x"] in (1, "y") and len(given["deep"]) == 1
        assert given.get("kind", "red") in ("red", "a b, c") and given.get("quiet", True) in (True, False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("kimi-k2", ["functions.book:0", "functions.book:1"]), ("mistral", ["000000000", "000000001"])],
)
def test_calls_that_clients_send_back_have_ids_that_the_template_takes(name, expected, tiny_model):
    tokenizer = tokenizer_for(OWN[name], tiny_model)
    messages = [{"role": "user", "content": "Zq"}]
    for number in range(2):
        call = {
            "id": f"call_{number}aaaaaaaaaa",
            "type": "function",
            "function": {"name": "book", "arguments": {"a": 1}},
        }
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "content": f"Done {number}.", "tool_call_id": call["id"]})
    job = Job(None, [*messages, {"role": "user", "content": "Thanks"}], Sampling(), tools=TOOLS)
    Prompts(tokenizer, {2}).ids(job)
    assert [job.prompt_text.count(id_) for id_ in expected] == [2 if name == "kimi-k2" else 1] * 2
    assert "call_" not in job.prompt_text.replace("tool_call", "") and messages[1]["tool_calls"][0]["id"].startswith(
        "call_"
    )


@pytest.mark.parametrize("name", ["qwen2_5", "mistral", "deepseek-v31", "kimi-k2", "bundled-qwen", "qwen3_5_nothink"])
@pytest.mark.parametrize("special", [True, False])
def test_a_strict_function_is_called_by_its_schema_and_text_is_free(name, special, tiny_model):
    template = ALL[name]
    text = written(template, CALLS[:1])
    tokenizer = tokenizer_for(template, tiny_model, marks_in(text) if special else ())
    job = planned(tokenizer, strict=["book", "look.up-2"])
    thought = "so\n</think>\n\n" if job.thinking else ""
    for free in ("Just words, 1 < 2 and [a].", "", "Let me look.\n" + text, text):
        assert accepts(tokenizer, job, thought + free), free
    wrong = [(CALLS[0][0], CALLS[0][1] | {"nobody": "asked"})]
    assert not accepts(tokenizer, job, thought + written(template, wrong))
    assert not accepts(tokenizer, job, thought + "Words. " + written(template, [("nobody", CALLS[0][1])]))
    assert read(job, thought + text, 5) == CALLS[:1]
    assert planned(tokenizer, tools=TOOLS).sampling.grammar is None  # without strict the model is free


@pytest.mark.parametrize("name", sorted(SILENT))
def test_templates_that_show_tools_and_no_calls(name, tiny_model):
    template, text = SILENT[name]
    tokenizer = tokenizer_for(template, tiny_model, marks_in(text))
    job = planned(tokenizer, ["book"])
    assert '"name": "book"' in job.prompt_text and accepts(tokenizer, job, text)
    assert read(job, text, 3) == [("book", {"city": "Oslo", "nights": 2})]


@pytest.mark.parametrize(
    "name", [n for n in NO_CALLS if n in ALL and n not in ("idefics3", "llava_next", "smolvlm", "lfm2")]
)
def test_templates_without_a_place_for_tools_say_so(name, tiny_model):
    with pytest.raises(UserError, match="no place for tools"):
        planned(tokenizer_for(ALL[name], tiny_model))


@pytest.mark.parametrize("name", ["qwen3_5_nothink", "qwen2_5"])
def test_hostile_tools_cost_little(name, tiny_model):
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(2000)}}
    odd = {"a": 5, "b": {"type": ["string", 3]}, "c": {"enum": []}, "d": {"anyOf": 3}, "e": {"$ref": "#/$defs/e"}}
    schemas = {
        "wide": ([wide], True),
        "wider": ([{"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(20_000)}}], False),
        "many": ([{"type": "object", "properties": {f"k{i}": {} for i in range(100)}}] * 128, None),
        "keys": ([{"properties": {"a\n</parameter>": {"type": "string"}, "": {}, 'é"\\': {"type": "integer"}}}], True),
        "odd": ([{"type": "object", "properties": odd, "$defs": {"e": {"$ref": "#/$defs/e"}}}], None),
        "away": ([{"type": "object", "properties": {"e": {"$ref": "http://x/y"}}}], None),
    }
    tokenizer = tokenizer_for(ALL[name], tiny_model)
    for what, (given, works) in schemas.items():
        names = [f"f{i}" for i in range(len(given))]
        pairs = zip(names, given, strict=True)
        tools = [{"type": "function", "function": {"name": n, "description": "", "parameters": s}} for n, s in pairs]
        job, began = planned(tokenizer, names, tools=tools), time.monotonic()
        try:
            matcher(tokenizer, job.sampling.grammar, len(tokenizer))
            assert works is not False, what
        except UserError as error:
            assert not works, what
            assert "panic" not in str(error) and len(str(error)) < 400
        assert time.monotonic() - began < 5, what


def test_a_conversation_with_calls_is_rendered_where_arguments_have_to_be_text(tiny_model):
    tokenizer = tokenizer_for(OWN["deepseek-v3"], tiny_model)
    call = {"id": "x", "type": "function", "function": {"name": "book", "arguments": {"city": "Malmö"}}}
    talk = [{"role": "user", "content": "A room"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    job = Job(None, talk, Sampling(), tools=TOOLS)
    Prompts(tokenizer, {2}).ids(job)
    assert 'book\n```json\n{"city": "Malmö"}\n```' in job.prompt_text


@pytest.mark.parametrize(
    "text",
    [
        "[book(city='Oslo', nights=2), look.up-2()]",
        "[book('Oslo')]",
        "[book(city=Oslo)]",
        "[__import__('os').system(command='x')]",
        "[" * 5000,
        "book(city='" + "x" * 200_000 + "')",
    ],
    ids=["good", "positional", "no-literal", "attribute", "deep", "long"],
)
def test_calls_as_in_python_are_literals_or_text(text, tiny_model):
    job = planned(tokenizer_for(ALL["lfm2_2_5"], tiny_model))
    reply = Reply(job.response_template, job.prompt_text, job.tools)
    written = f"Well. <|tool_call_start|>{text}<|tool_call_end|>"
    parts = reply.add(written) + reply.rest()
    calls = [(part.name, json.loads(part.text)) for part in parts if part.kind == "tool_call"]
    if text.startswith("[book(city='Oslo', n"):
        assert calls == [("book", {"city": "Oslo", "nights": 2}), ("look.up-2", {})]
    else:
        assert not calls and "".join(part.text for part in parts) == written


def test_numbers_in_text_arguments_stay_what_the_schema_says(tiny_model):
    tokenizer = tokenizer_for(ALL["qwen3_5_nothink"], tiny_model)
    text = (
        "<tool_call>\n<function=book>\n<parameter=city>\n75001\n</parameter>\n<parameter=nights>\n3\n</parameter>\n"
        "<parameter=quiet>\nTrue\n</parameter>\n</function>\n</tool_call>"
    )
    assert read(planned(tokenizer), text, 4) == [("book", {"city": "75001", "nights": 3, "quiet": True})]
