import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data import templates
from workbench.data.dataset import examples
from workbench.data.encode import IGNORE, Encoder
from workbench.data.formats import BadRow, detect, to_example
from workbench.data.registry import DatasetInfo, read_registry, select
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
    plain = templates.read("chatml").replace("{% generation %}", "").replace("{% endgeneration %}", "")
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


def test_bundled_dataset():
    info = select("abilities", ROOT / "data")[0]
    rows = [json.loads(line) for line in info.path.read_text(encoding="utf-8").splitlines()]
    talks = [example.messages for _, example in examples(info)]
    assert len(talks) == len(rows) >= 150
    languages = [row["lang"] for row in rows]
    assert languages.count("en") >= 80 and languages.count("zh") >= 50
    asked = [" ".join(m["content"] for m in talk if m["role"] == "user").lower() for talk in talks]
    assert len(set(asked)) == len(asked)
    from tests.browser.test_story import HELD_OUT

    assert not any(question.lower() in text for question in HELD_OUT for text in asked)


def to_messages(row: dict, formatting: str) -> list[dict]:
    return to_example(row, detect(row, DatasetInfo("d", None, formatting=formatting))).messages


def test_alpaca_rows():
    row = {"instruction": "Add", "input": "1+1", "output": "2", "system": "S", "history": [["a", "b"]]}
    assert [(m["role"], m["content"]) for m in to_messages(row, "alpaca")] == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Add\n1+1"),
        ("assistant", "2"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "q"}, "'output' is missing"),
        ({"instruction": "", "output": "a"}, "'instruction' is empty"),
        ({"instruction": 3, "output": "a"}, "should be text"),
        ({"instruction": "q", "output": "a", "history": "x"}, "list of \\[question, answer\\]"),
    ],
)
def test_bad_alpaca_rows(row, words):
    with pytest.raises(BadRow, match=words):
        to_messages(row, "alpaca")


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ("x", "of turns|no turns"),
        ([], "of turns|no turns"),
        ([{"role": "user", "content": "a"}], "never speaks"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "no text"),
        ([{"role": "wizard", "content": "a"}], "unknown role"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], "ends with a turn of the user"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}],
            "out of order",
        ),
    ],
)
def test_bad_conversations(turns, words):
    with pytest.raises(BadRow, match=words):
        to_messages({"messages": turns}, "openai")


def test_naming_one_column_keeps_the_others(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([{"q": "Q", "output": "A", "system": "S"}]))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "d.json", "columns": {"prompt": "q"}}}))
    ((_, example),) = examples(select("d", tmp_path)[0])
    assert [m["content"] for m in example.messages] == ["S", "Q", "A"]


def test_broken_files_name_file_and_line(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"instruction": "q", "output": "a"}\n{"instruction": \n')
    (tmp_path / "l.jsonl").write_bytes(b'{"instruction": "\xff\xff"}\n')
    (tmp_path / "e.json").write_text("[]")
    entries = {
        name: {"file_name": file}
        for name, file in {"d": "d.jsonl", "l": "l.jsonl", "e": "e.json", "m": "none.json"}.items()
    }
    (tmp_path / "dataset_info.json").write_text(
        json.dumps(entries | {"r": {"file_name": "e.json", "ranking": True}, "bad": 3})
    )
    for name, words in {
        "d": "d.jsonl:2: not valid JSON",
        "l": "not UTF-8",
        "e": "no rows",
        "m": "does not exist",
        "r": "no rows",
        "bad": "should be an object",
        "x": "There is no dataset 'x'",
    }.items():
        with pytest.raises(UserError, match=words):
            list(examples(select(name, tmp_path)[0]))
    assert read_registry(tmp_path)["m"].problem and not read_registry(tmp_path)["d"].problem


def test_broken_registry(tmp_path):
    with pytest.raises(UserError, match=r"no dataset_info\.json"):
        read_registry(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{\n 'x'")
    with pytest.raises(UserError, match="line 2"):
        read_registry(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["instruction", "input", "output", "history", "system", "messages", "role"]), json_values
    )
)
def test_any_row_is_read_or_refused_with_a_reason(row):
    for formatting in ("alpaca", "openai"):
        try:
            messages = to_messages(row, formatting)
        except BadRow as reason:
            assert str(reason)
        else:
            assert messages[-1]["role"] == "assistant"


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
