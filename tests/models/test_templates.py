"""Public chat templates and ours: what is trained is the answer and its end; what is left out is named."""

from pathlib import Path

import jinja2
import pytest
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.chat.session import Session, bubbles, sent
from workbench.data import templates
from workbench.data.encode import IGNORE, Encoder
from workbench.data.formats import detect, to_example
from workbench.data.pipeline import look
from workbench.data.readers import BadRow, Raw
from workbench.data.registry import DatasetInfo
from workbench.data.thinking import switches, with_choice
from workbench.errors import UserError

FOLDER = Path(trl.__file__).parent / "chat_templates"
MARKED = sorted(file.name.removesuffix("_training.jinja") for file in FOLDER.glob("*_training.jinja"))
PUBLIC = sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training"))
TALK = [
    {"role": "user", "content": "QUEST1"},
    {"role": "assistant", "content": "ANSW1"},
    {"role": "user", "content": "QUEST2"},
    {"role": "assistant", "content": "ANSW2"},
]
IM_END, NO_THOUGHT = "<|im_end|>", "<think>\n\n</think>\n\n"

# what a model of this family writes: (between the prompt and the answer, end of a turn, end of the last turn)
WRITTEN = {
    "cohere": ("", "<|END_OF_TURN_TOKEN|>"),
    "cohere2": ("", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseek_r1_distill": ("", "<｜end▁of▁sentence｜>"),
    "deepseekv3": ("", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("", "<turn|>"),
    "gemma": ("", "<end_of_turn>"),
    "gemma3": ("", "<end_of_turn>"),
    "glm4moe": ("\n<think></think>\n", "<|user|>"),
    "gptoss": ("<|channel|>final<|message|>", "<|end|>", "<|return|>"),
    "lfm2": ("", IM_END),
    "lfm2_v2": ("", IM_END),
    "llama3": ("", "<|eot_id|>"),
    "muse_glimmer": (" to=user<|message|>", "<|eot|>"),
    "nemotron_3_5_lightning": ("</think>", IM_END),
    "nemotron_3_nano": ("</think>", IM_END),
    "nemotron_3_super": ("</think>", IM_END),
    "nemotron_3_ultra": ("</think>", IM_END),
    "phi3": ("", "<|end|>"),
    "phi3_5": ("", "<|end|>"),
    "qwen2_5": ("", IM_END),
    "qwen2_5_vl": ("", IM_END),
    "qwen3": (NO_THOUGHT, IM_END),
    "qwen3_5_nothink": ("", IM_END),
    "qwen3_5_think": ("\n</think>\n\n", IM_END),
    "qwen3_6": ("\n</think>\n\n", IM_END),
    "qwen3_8": ("\n</think>\n\n", IM_END),
    "qwen3_instruct_2507": ("", IM_END),
    "qwen3_vl": ("", IM_END),
}
# templates of models for images, which take no plain text
NOT_TEXT = ("idefics3", "smolvlm", "llava_next")
OURS = {
    "chatml": ("", IM_END),
    "deepseek": (" ", IM_END),  # the end token of the tokenizer here
    "default": (" ", IM_END),
    "glm4": ("\n", "<|user|>", IM_END),
    "llama3": ("", "<|eot_id|>"),
    "qwen": ("", IM_END),
}


def public(tokenizer, name: str) -> Encoder:
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return Encoder(tokenizer)


def trained(tokenizer, encoded) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORE])


def written(before: str, end: str, last: str = "") -> str:
    return f"{before}ANSW1{end}{before}ANSW2{last or end}"


def test_every_marked_template_is_listed():
    assert sorted([*WRITTEN, *NOT_TEXT]) == MARKED and sorted(OURS) == sorted(templates.names())


@pytest.mark.parametrize("name", WRITTEN)
def test_what_trl_marks_is_trained_without_the_header(tokenizer, name):
    encoder = public(tokenizer, name)
    assert encoder._markers
    assert trained(tokenizer, encoder.encode(TALK)) == written(*WRITTEN[name])


@pytest.mark.parametrize("name", OURS)
def test_what_we_mark_is_the_answer_and_its_end(tokenizer, name):
    assert trained(tokenizer, Encoder(tokenizer, name).encode(TALK)) == written(*OURS[name])


@pytest.mark.parametrize("name", NOT_TEXT)
def test_templates_for_images_drop_plain_text_and_are_refused(tokenizer, name):
    with pytest.raises(UserError):
        public(tokenizer, name).encode(TALK)


# --- single turns


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("name", ["qwen3", "diffusion_gemma", "gptoss"])
def test_a_turn_of_weight_0_is_context_only(tokenizer, name, key):
    turns = [dict(turn) for turn in TALK]
    turns[1][key], turns[3][key] = 0, 1
    row = {"messages": turns}
    example = to_example(row, detect(row, DatasetInfo("d", None)))
    encoded = public(tokenizer, name).encode_example(example)[0]
    before, end, *last = WRITTEN[name]
    assert trained(tokenizer, encoded) == f"{before}ANSW2{(last or [end])[0]}"
    assert "ANSW1" in encoded.text


def test_weights_between_0_and_1_are_refused():
    row = {"messages": [TALK[0], {**TALK[1], "weight": 0.5}]}
    with pytest.raises(BadRow, match=r"turn 2: the weight 0\.5 should be 0 or 1"):
        to_example(row, detect(row, DatasetInfo("d", None)))


# --- what is left out


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "w",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
BESIDE = [
    {"role": "user", "content": "Weather in Rome?"},
    {"role": "assistant", "content": "LETMESEE first.", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny 20"},
    {"role": "assistant", "content": "Sunny."},
]


def problems(encoder, row: dict) -> list[str]:
    info = detect(row, DatasetInfo("d", None))
    return [problem.kind for problem in look(Raw("d:1", row), info, encoder)[2]]


@pytest.mark.parametrize("name", ["llama3_1", "gptoss"])
def test_text_beside_a_call_that_the_template_drops_is_named(tokenizer, name):
    encoder = public(tokenizer, name)
    assert "LETMESEE" not in encoder.render(to_example({"messages": BESIDE, "tools": TOOLS}, detect({"messages": BESIDE}, DatasetInfo("d", None))).messages, TOOLS)  # fmt: skip
    assert problems(encoder, {"messages": BESIDE, "tools": TOOLS}) == ["left_beside"]


def test_a_call_that_the_template_drops_breaks_the_row(tokenizer):
    row = {"messages": [BESIDE[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, *BESIDE[2:]]}
    assert problems(public(tokenizer, "lfm2"), row | {"tools": TOOLS}) == ["template"]
    assert problems(public(tokenizer, "qwen2_5"), row | {"tools": TOOLS}) == []


def test_a_thought_is_rendered_or_named(tokenizer):
    answer = "<think>\nTHOUGHT two and two\n</think>\n\n4"
    for thought in ({"reasoning_content": "THOUGHT"}, {"thinking": "THOUGHT"}, {"reasoning": "THOUGHT"}):
        row = {"messages": [TALK[0], {"role": "assistant", "content": "4", **thought}]}
        assert problems(public(tokenizer, "deepseekv3"), row) == ["left_thought"]
        assert problems(Encoder(tokenizer, "chatml"), row) == ["left_thought"]
        for name, shown in (("qwen3", "<think>\nTHOUGHT\n</think>\n\n4"), ("qwen3_5_think", "THOUGHT\n</think>\n\n4")):
            encoder = public(tokenizer, name)
            example = to_example(row, detect(row, DatasetInfo("d", None)))
            assert problems(encoder, row) == []
            assert trained(tokenizer, encoder.encode_example(example)[0]) == shown + IM_END
    row = {"messages": [TALK[0], {"role": "assistant", "content": answer}]}
    assert problems(public(tokenizer, "deepseekv3"), row) == ["left_thought"]
    assert problems(Encoder(tokenizer, "chatml"), row) == []


def test_a_prompt_that_opens_a_thought_and_an_answer_without_one(tokenizer):
    assert problems(public(tokenizer, "deepseekv3"), {"messages": TALK}) == ["opened_thought"]
    assert problems(public(tokenizer, "qwen3"), {"messages": TALK}) == ["empty_thought"]


def test_a_system_text_without_a_place_is_named(tokenizer):
    row = {"messages": [{"role": "system", "content": "SYSTEMTEXT be short"}, *TALK]}
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert problems(Encoder(tokenizer), row) == ["left_system"]
    assert problems(Encoder(tokenizer, "chatml"), row) == []


def test_a_short_text_that_stands_elsewhere_by_chance_is_not_taken_for_another(tokenizer):
    """The answer 'a' is dropped; that the question holds an 'a' does not hide it."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content if m.role == 'user' else '' }}{{ eos_token }}{% endfor %}"
    )
    row = {"messages": [{"role": "user", "content": "Say a"}, {"role": "assistant", "content": "a"}]}
    assert problems(Encoder(tokenizer), row) == ["template"]


def test_a_template_that_drops_by_content_is_caught(tokenizer):
    """Of two rows with the same structure only one is dropped."""
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '' if 'SECRET' in m.content else m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = Encoder(tokenizer)
    talk = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "I am very well."}]
    assert problems(encoder, {"messages": talk}) == []
    talk[1]["content"] = "The SECRET is mine."
    assert problems(encoder, {"messages": talk}) == ["template"]


# --- rows that are not conversations alone


def test_a_text_with_its_own_bos_gets_no_second_one(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    encoder = Encoder(tokenizer, "chatml")
    for text in ("<s>[INST] Hi [/INST] Hello", "plain text"):
        ids = encoder.pieces(text)[0].input_ids
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "<image>What?"}, TALK[1]], "images": ["cat.jpg"]},
        {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A."}], "videos": ["a.mp4"]},
        {"instruction": "<audio>What?", "output": "A.", "audio": "a.wav"},
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}, TALK[1]]},
    ],
)
def test_rows_with_media_are_refused(row):
    with pytest.raises(BadRow):
        to_example(row, detect(row, DatasetInfo("d", None)))


def test_rows_that_only_speak_of_images_are_text():
    row = {"instruction": "What is <image> in HTML?", "output": "Nothing.", "image": None, "images": []}
    assert to_example(row, detect(row, DatasetInfo("d", None))).messages[0]["content"] == row["instruction"]


# --- anything


@st.composite
def conversations(draw):
    """`(messages, tools, {word: kinds of problems that may name its absence})`; every piece is a word of its own."""
    words: dict[str, str] = {}

    def word(kind: str) -> str:
        words[piece := f"piece{len(words)}word"] = kind
        return piece

    messages, tools = [], None
    if draw(st.booleans()):
        messages.append({"role": "system", "content": word("left_system")})
    if draw(st.booleans()):
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
        tool = {"name": "look_up", "description": "d", "parameters": parameters}
        tools = [{"type": "function", "function": tool}]
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": word("template")})
        if tools and draw(st.booleans()):
            arguments = {"city": word("template")}
            if draw(st.booleans()):
                arguments["more"] = {"inner": [word("template")]}
            call = {"type": "function", "id": "call00000", "function": {"name": "look_up", "arguments": arguments}}
            turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            if draw(st.booleans()):
                turn["content"] = word("left_beside")
            if draw(st.booleans()):
                turn["reasoning_content"] = word("left_thought")
            result = {"role": "tool", "content": word("template"), "name": "look_up", "tool_call_id": "call00000"}
            messages += [turn, result]
        turn = {"role": "assistant", "content": word("template")}
        how = draw(st.sampled_from(["", "field", "tags"]))
        if how == "field":
            turn["reasoning_content"] = word("left_thought")
        elif how == "tags":
            turn["content"] = f"<think>\n{word('left_thought')}\n</think>\n\n{turn['content']}"
        if draw(st.integers(0, 3)) == 0:
            turn["weight"] = 0
        messages.append(turn)
    return messages, tools, words


@pytest.mark.parametrize("name", [*OURS, *PUBLIC])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=conversations())
def test_each_piece_is_in_the_text_or_in_the_problems(tokenizer, name, conversation):
    messages, tools, words = conversation
    encoder = Encoder(tokenizer, name) if name in OURS else public(tokenizer, name)
    row = {"messages": messages} | ({"tools": tools} if tools else {})
    example, encoded, found = look(Raw("d:1", row), detect(row, DatasetInfo("d", None)), encoder)
    kinds = {problem.kind for problem in found}
    if example is None:
        assert kinds == {"template"}
        return
    for word, kind in words.items():
        assert word in encoded[0].text or kind in kinds, (word, kind, encoded[0].text)


# --- the switch


PLAIN = [{"role": "user", "content": "QUEST"}, {"role": "assistant", "content": "ANSW1"}]
THOUGHT = [PLAIN[0], PLAIN[1] | {"reasoning_content": "THOUGHT"}]


def switched(tokenizer, name: str, choice: str) -> Encoder:
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return Encoder(tokenizer, enable_thinking=choice)


SWITCHED = ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_8", "glm4moe", "nemotron_3_nano"]


@pytest.mark.parametrize("name", SWITCHED)
def test_without_thinking_the_prompt_brings_the_empty_thought_and_the_answer_alone_is_trained(tokenizer, name):
    encoder = switched(tokenizer, name, "off")
    encoded = encoder.encode(PLAIN)
    prompt = encoder.render(PLAIN[:1], add_generation_prompt=True)
    asked = tokenizer.apply_chat_template(PLAIN[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert prompt == asked and "</think>" in prompt
    assert encoded.text.startswith(prompt)
    answer = trained(tokenizer, encoded)
    assert answer.lstrip("\n").startswith("ANSW1") and "think" not in answer
    assert encoded.notices == []


@pytest.mark.parametrize("name", ["qwen3", "qwen3_8", "nemotron_3_nano"])
def test_an_empty_thought_that_is_trained_is_named_with_its_tokens(tokenizer, name):
    encoder = switched(tokenizer, name, "on")
    encoded = encoder.encode(PLAIN)
    before = trained(tokenizer, encoded).partition("ANSW1")[0]
    assert before.rstrip().endswith("</think>")
    count = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    assert [kind for kind, _ in encoded.notices] == ["empty_thought"]
    assert f"and {count} tokens of it are trained" in encoded.notices[0][1]
    assert encoder.encode(THOUGHT).notices == []


def test_an_answer_with_a_thought_where_chat_does_not_think_is_named(tokenizer):
    for name in ("qwen3", "qwen3_5_nothink"):
        encoded = switched(tokenizer, name, "off").encode(THOUGHT)
        assert [kind for kind, _ in encoded.notices] == ["closed_thought"]
        assert "THOUGHT" in trained(tokenizer, encoded)


def test_the_choice_is_a_default_that_a_request_overrides(tokenizer):
    switched(tokenizer, "qwen3", "off")
    ask = lambda **more: tokenizer.apply_chat_template(PLAIN[:1], tokenize=False, add_generation_prompt=True, **more)  # noqa: E731
    assert ask().endswith("<think>\n\n</think>\n\n")
    assert ask(enable_thinking=True).endswith("assistant\n")


def test_a_choice_can_be_changed_and_an_exported_model_keeps_its_marks(tokenizer):
    """The template of an exported model holds the choice; it is still known as one that TRL has marked."""
    encoder = switched(tokenizer, "qwen3", "off")
    again = Encoder(tokenizer)
    assert again.training_template == encoder.training_template and again._markers
    assert (
        Encoder(tokenizer, enable_thinking="on").render(PLAIN[:1], add_generation_prompt=True).endswith("assistant\n")
    )
    assert tokenizer.chat_template.count("{% set enable_thinking") == 1


def test_switches_are_told_from_what_only_sounds_like_them():
    assert switches("{{ '<t>' if enable_thinking else '' }}") == ["enable_thinking"]
    assert switches("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}") == [
        "thinking"
    ]
    assert switches("{% for m in messages %}{{ m.thinking }}{{ m['enable_thinking'] }}{% endfor %}thinking") == []
    assert switches("{% generation %}{{ enable_thinking }}{% endgeneration %}") == ["enable_thinking"]
    assert switches("{% if enable_thinking") == []
    plain = "{{ messages[0].content }}"
    assert with_choice(plain, "off") == plain


# --- tools through our own templates


TWO_CALLS = [
    {"role": "user", "content": " Weather in Rome?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "sunny {20}"},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "Sunny, or rain."},
]
ONE_CALL = [TWO_CALLS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, *TWO_CALLS[2:3], *TWO_CALLS[4:]]
SYSTEM = {"role": "system", "content": "Be short."}


@pytest.mark.parametrize(("ours", "models"), [("qwen", "qwen2_5"), ("llama3", "llama3_1")])
@pytest.mark.parametrize("talk", [ONE_CALL, TWO_CALLS, ONE_CALL[:2], [SYSTEM, *ONE_CALL], [SYSTEM, *TWO_CALLS]])
def test_calls_through_our_templates_are_those_of_the_models_own(tokenizer, ours, models, talk):
    def text(encoder):
        try:
            return encoder.render(talk, TOOLS, add_generation_prompt=talk[-1]["role"] != "assistant")
        except UserError:
            return "refused"  # Llama makes one call in a turn

    assert text(Encoder(tokenizer, ours)) == text(public(tokenizer, models))


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("qwen", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'),
        ("chatml", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'),
        ("llama3", '{"name": "get_weather", "parameters": {"city": "Rome"}}<|eot_id|>'),
        ("glm4", 'get_weather\n{"city": "Rome"}<|observation|>'),
    ],
)
def test_a_call_is_trained_with_its_end_and_the_result_is_not(tokenizer, name, calls):
    encoder = Encoder(tokenizer, name)
    encoded = encoder.encode(ONE_CALL, TOOLS)
    answer = encoder.encode(TWO_CALLS[:1] + TWO_CALLS[-1:])
    assert trained(tokenizer, encoded) == calls + trained(tokenizer, answer)
    assert "sunny {20}" in encoded.text.replace("\\u007b", "{") and encoded.notices == []
    prompt = encoder.render(ONE_CALL[:1], TOOLS, add_generation_prompt=True)
    assert encoded.text.startswith(prompt)


@pytest.mark.parametrize("name", ["deepseek", "default"])
def test_templates_of_models_without_tools_refuse_them(tokenizer, name):
    assert problems(Encoder(tokenizer, name), {"messages": ONE_CALL, "tools": TOOLS}) == ["template"]


def test_a_question_after_one_without_an_answer_suits_templates_whose_roles_alternate():
    session = Session()
    session.next_turn([[{"role": "user", "content": "What is 2 plus 2?"}, {"role": "assistant", "content": ""}]])
    assert len(session.left) == 1  # an answer that never began is no part of the conversation
    session.next_turn([[*session.left, {"role": "user", "content": "And 3 plus 3?"}]])
    assert [bubble["content"] for bubble in bubbles(session.left)] == ["What is 2 plus 2?", "And 3 plus 3?"]

    def refuse(message):
        raise AssertionError(message)

    source = (FOLDER / "gemma.jinja").read_text("utf-8")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    rendered = template.render(
        messages=sent(session.left), raise_exception=refuse, add_generation_prompt=True, bos_token="<bos>"
    )
    expected = "<start_of_turn>user\nWhat is 2 plus 2?\n\nAnd 3 plus 3?<end_of_turn>\n<start_of_turn>model\n"
    assert rendered == "<bos>" + expected
    assert [message["content"] for message in session.left] == ["What is 2 plus 2?", "And 3 plus 3?"]  # left as it was
