"""One encoder for preview, statistics and run: what is rendered, what is trained, what is cut."""

import json
from pathlib import Path

import pytest

from tests.unit.test_formats import TOOL, read
from workbench.data import templates
from workbench.data.encode import IGNORE, Encoder
from workbench.data.registry import DatasetInfo
from workbench.data.validate import Report, problems_of
from workbench.errors import UserError

ROOT = Path(__file__).parents[2]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 你好"},
    {"role": "assistant", "content": "Hello 你"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long."},
]


def trained_text(tokenizer, encoded) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORE])


def test_deepseek_renders_exactly_as_the_models_own_template(tokenizer):
    encoder = Encoder(tokenizer, "deepseek")
    assert (
        encoder.render(TALK[1:])
        == "<s>User: Hi 你好\n\nAssistant: Hello 你<|im_end|>User: Bye\n\nAssistant: So long.<|im_end|>"
    )
    assert encoder.render(TALK[:2], add_generation_prompt=True) == "<s>Be brief.\n\nUser: Hi 你好\n\nAssistant:"


@pytest.mark.parametrize("name", templates.names())
def test_the_prompt_is_a_prefix_of_the_trained_text(tokenizer, name):
    """What chat sends is how training saw it, up to the assistant's first token."""
    encoder = Encoder(tokenizer, name)
    prompt = encoder.render(TALK[:4], add_generation_prompt=True)
    whole = encoder.encode(TALK)
    assert whole.text.startswith(prompt)
    prefix = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert whole.input_ids[: len(prefix)] == prefix


@pytest.mark.parametrize("name", ["chatml", "deepseek", "default", "qwen"])
def test_loss_on_every_assistant_turn_with_its_end_token(tokenizer, name):
    encoder = Encoder(tokenizer, name)
    text = trained_text(tokenizer, encoder.encode(TALK))
    assert text.replace(" ", "") == "Hello你<|im_end|>Solong.<|im_end|>"


def test_masks_agree_with_transformers(tokenizer):
    encoder = Encoder(tokenizer, "chatml")
    theirs = tokenizer.apply_chat_template(TALK, return_assistant_tokens_mask=True, return_dict=True)
    ours = encoder.encode(TALK)
    assert ours.input_ids == theirs["input_ids"]
    assert [int(label != IGNORE) for label in ours.labels] == theirs["assistant_masks"]


def test_a_template_without_markers_gives_the_same_mask(tokenizer):
    """The model's own template, told apart by rendering turn by turn."""
    marked = Encoder(tokenizer, "chatml").encode(TALK)
    plain = templates.read("chatml").replace(" endgeneration ", " endif ").replace(" generation ", " if true ")
    tokenizer.chat_template = plain
    unmarked = Encoder(tokenizer, "auto")
    assert not unmarked._markers
    assert unmarked.encode(TALK) == marked


def test_train_on_prompt_and_mask_history(tokenizer):
    whole = Encoder(tokenizer, "chatml", train_on_prompt=True).encode(TALK)
    # nothing comes before the first token from which it could be predicted
    assert whole.labels == [IGNORE, *whole.input_ids[1:]]
    assert trained_text(tokenizer, Encoder(tokenizer, "chatml", mask_history=True).encode(TALK)) == "So long.<|im_end|>"


@pytest.mark.parametrize("cutoff", range(40, 70))
def test_nothing_is_cut_within_a_character(tokenizer, cutoff):
    """Byte-level tokens: a Chinese character is three of them, an emoji four."""
    talk = [{"role": "user", "content": "你好🙂" * 9}, {"role": "assistant", "content": "好的🙂" * 9}]
    encoder = Encoder(tokenizer, "chatml", cutoff_len=cutoff)
    for one in (encoder.encode(talk), *encoder.pieces("x你好🙂" * 30)):
        assert len(one.input_ids) <= cutoff and tokenizer.decode(one.input_ids) == one.text and "\ufffd" not in one.text


def test_long_conversations_lose_their_oldest_turns(tokenizer):
    whole = Encoder(tokenizer, "chatml").encode(TALK)
    short = Encoder(tokenizer, "chatml", cutoff_len=len(whole.input_ids) - 1).encode(TALK)
    assert short.dropped_turns == 2 and short.cut_tokens == 0
    assert "Be brief." in short.text and "Hello" not in short.text and short.text.endswith("So long.<|im_end|>\n")
    skeleton = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    talk = [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "y" * 60}]
    room = len(tokenizer(skeleton)["input_ids"])
    asked = Encoder(tokenizer, "chatml", cutoff_len=room + 90).encode(
        talk
    )  # the question loses its middle, the answer is whole
    assert len(asked.input_ids) == len(asked.labels) == room + 90 and not asked.answer_cut
    assert trained_text(tokenizer, asked) == "y" * 60 + "<|im_end|>" and asked.text.count("x") == 30
    assert tokenizer.decode(asked.input_ids) == asked.text and sum(n for _, n in asked.cuts) == 70
    answered = Encoder(tokenizer, "chatml", cutoff_len=room + 40).encode(
        talk
    )  # the end token is there, but not trained
    assert (
        answered.answer_cut
        and answered.text.endswith("y<|im_end|>\n")
        and trained_text(tokenizer, answered) == "y" * 24
    )


def test_unknown_template_and_model_without_one(tokenizer):
    with pytest.raises(UserError, match="There is no template 'nope'"):
        Encoder(tokenizer, "nope")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template of its own"):
        Encoder(tokenizer, "auto")


def test_sentencepiece_tokens_are_shown_as_the_text_they_stand_for():
    """`▁` for a space, bytes for what is not in the vocabulary: Chinese characters are three tokens each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from workbench.data.preview import encoded_view
    from workbench.models.vocabulary import Vocabulary

    special = ["<unk>", "<s>", "<|im_end|>", "<|im_start|>"]
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?\n"
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        pad_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    talk = [{"role": "user", "content": "Hello there 你好" * 8}, {"role": "assistant", "content": "Good day 🙂!"}]
    for cutoff in (0, 90, 91, 92):
        one = Encoder(tokenizer, "chatml", cutoff_len=cutoff).encode(talk)
        tokens = encoded_view(one, Vocabulary(tokenizer))["tokens"]
        assert "".join(text for _, text, _ in tokens) == one.text
        assert "".join(text for _, text, trained in tokens if trained) == "Good day 🙂!<|im_end|>"


TOOLS_TEMPLATE = (
    "{%- if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}{%- for m in messages"
    " %}<|im_start|>{{ m.role }}\n{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{%- for c in"
    " m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor"
    " %}<|im_end|>{% endgeneration %}{%- else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


def test_tools_through_the_template(tokenizer):
    row = {
        "tools": json.dumps([TOOL]),
        "conversations": [
            {"from": "human", "value": "Time?"}, {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": "UTC"}}'},
            {"from": "observation", "value": "12:00"}, {"from": "gpt", "value": "Noon."},
        ],
    }  # fmt: skip
    example = read(row)
    tokenizer.chat_template = TOOLS_TEMPLATE
    encoded = Encoder(tokenizer).encode_example(example)[0]
    theirs = tokenizer.apply_chat_template(
        example.messages, tools=example.tools, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.input_ids == theirs["input_ids"]
    assert [int(label != IGNORE) for label in encoded.labels] == theirs["assistant_masks"]
    assert (
        tokenizer.decode([x for x in encoded.labels if x != IGNORE])
        == '<call>clock {"zone": "UTC"}</call><|im_end|>Noon.<|im_end|>'
    )
    with pytest.raises(UserError, match="leaves tools out"):
        Encoder(tokenizer, "deepseek").encode_example(example)


def test_plain_text_keeps_every_token(tokenizer):
    encoder = Encoder(tokenizer, "chatml", cutoff_len=10)
    pieces = encoder.encode_example(read({"text": "abcdefghijklmnopqrstuvwxy"}))
    assert "".join(piece.text for piece in pieces) == "abcdefghijklmnopqrstuvwxy<|im_end|>"
    assert all(p.labels == [IGNORE, *p.input_ids[1:]] for p in pieces)
    assert max(len(p.input_ids) for p in pieces) <= 10 and pieces[-1].input_ids[-1] == tokenizer.eos_token_id


def test_duplicates_rows_of_the_evaluation_and_long_ones(tmp_path, tokenizer):
    def file(name, texts):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": t, "completion": "yes"}) + "\n" for t in texts))
        return DatasetInfo(name, tmp_path / name)

    train = file("train.jsonl", ["a", "b", "a", "c", "x" * 300])
    report = Report()
    encoder = Encoder(tokenizer, "chatml", cutoff_len=128)
    found = [
        p for p in problems_of(train, report, encoder=encoder, held_out=[file("eval.jsonl", ["c"])], workers=1) if p
    ]
    assert [(p.place, p.kind) for p in found] == [
        ("train.jsonl:3", "duplicate"),
        ("train.jsonl:4", "in_eval"),
        ("train.jsonl:5", "too_long"),
    ]
    assert "train.jsonl:1" in found[0].reason and "eval.jsonl:1" in found[1].reason and report.broken == 0
