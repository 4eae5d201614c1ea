"""Tokenizers and chat templates in llama.cpp's and Ollama's forms."""

import json
import re
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.data import templates
from workbench.errors import UserError
from workbench.models.gguf import vocabulary
from workbench.models.gguf.beside import modelfile
from workbench.models.gguf.chat_form import chat_form
from workbench.models.gguf.export import unmarked

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


# as the models' own tokenizer.json have it
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence([split(LLAMA3), BYTES]),
    "qwen2": pre_tokenizers.Sequence([split(LLAMA3.replace("{1,3}", "")), BYTES]),
    "deepseek-v3": pre_tokenizers.Sequence([split(p) for p in vocabulary.PRETOKENIZERS["deepseek-v3"][0]] + [BYTES]),
}


def trained(how, sizes: int = 1200):
    """A byte-level BPE that has learned merges of numbers, words, spaces and signs that it may not split otherwise."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = how, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes, special_tokens=["<end>", "<other>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator([vocabulary._TEXT] * 4, trainer)
    return raw


@pytest.mark.parametrize("name", SPLITS)
def test_how_text_is_split_is_found_out(name):
    raw = trained(SPLITS[name])
    if name == "llama-bpe":
        raw.model.ignore_merges = True
    assert vocabulary.pretokenizer(raw, json.loads(raw.to_str())) == name


def test_a_way_of_splitting_that_llama_cpp_does_not_know():
    raw = trained(pre_tokenizers.Sequence([split("[aeiou]"), BYTES]))
    with pytest.raises(UserError, match=r"it splits text in none of the ways smollm, qwen2"):
        vocabulary.pretokenizer(raw, json.loads(raw.to_str()))
    raw = trained(SPLITS["gpt-2"])
    raw.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="none of the ways"):
        vocabulary.pretokenizer(raw, json.loads(raw.to_str()))


class Writer:
    """What a GGUFWriter is told, by the method's name without `add_`."""

    def __init__(self):
        self.told = {}

    def __getattr__(self, name):
        return lambda value: self.told.__setitem__(name.removeprefix("add_"), value)


def described(tokenizer, rows: int, ends=(), log=lambda line: None) -> dict:
    writer = Writer()
    vocabulary.describe(tokenizer, rows, list(ends), writer, log)
    return writer.told


def fast(raw, **special) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def test_a_vocabulary_with_its_kinds_ends_and_unused_rows():
    raw = trained(SPLITS["gpt-2"], 400)
    raw.add_tokens(["<tool>"])
    tokenizer = fast(raw, bos_token="<other>", eos_token="<end>")
    size = len(tokenizer)
    told = described(tokenizer, size + 2, [0, 1, size - 1])
    assert (told["tokenizer_model"], told["tokenizer_pre"]) == ("gpt2", "gpt-2")
    assert told["token_list"][:2] == ["<end>", "<other>"] and told["token_list"][-3:] == [
        "<tool>",
        f"[PAD{size}]",
        f"[PAD{size + 1}]",
    ]
    assert [int(kind) for kind in told["token_types"]][-3:] == [4, 5, 5]
    assert [int(kind) for kind in told["token_types"]][:3] == [3, 3, 1]
    assert (told["eos_token_id"], told["eot_token_id"], told["eom_token_id"]) == (0, 1, size - 1)
    assert told["bos_token_id"] == 1 and told["add_bos_token"] is False
    assert len(told["token_merges"]) == size - 2 - 256 - 1
    left, right = told["token_merges"][0].split(" ")
    assert left + right in told["token_list"]
    with pytest.raises(UserError, match=rf"{size} tokens, the model's embeddings {size - 1} rows"):
        described(tokenizer, size - 1)


def test_a_fourth_end_token_is_named_in_the_log():
    raw = trained(SPLITS["gpt-2"], 300)
    raw.add_special_tokens(["<a>", "<b>", "<|im_end|>"])
    tokenizer, lines = fast(raw, eos_token="<end>"), []
    described(tokenizer, 400, tokenizer.convert_tokens_to_ids(["<end>", "<a>", "<b>", "<|im_end|>"]), lines.append)
    assert lines == []  # llama.cpp knows the fourth by its text
    described(tokenizer, 400, tokenizer.convert_tokens_to_ids(["<end>", "<other>", "<a>", "<b>"]), lines.append)
    assert len(lines) == 1 and lines[0].endswith("not named in it: <b>.")


@pytest.mark.parametrize(
    ("adds", "template", "wanted"),
    [
        (True, "{{ bos_token }}{{ messages[0].content }}", True),
        (True, "{{ messages[0].content }}", False),  # a conversation was trained without it
        (False, "{{ bos_token }}{{ messages[0].content }}", False),  # the template brings it
        (True, None, True),
        (False, None, False),
    ],
)
def test_who_puts_the_first_token(adds, template, wanted):
    raw = trained(SPLITS["gpt-2"], 300)
    if adds:
        raw.post_processor = processors.TemplateProcessing(single="<other> $A", special_tokens=[("<other>", 1)])
    tokenizer = fast(raw, bos_token="<other>", eos_token="<end>")
    tokenizer.chat_template = template
    assert vocabulary.begins_with_bos(tokenizer) is wanted


def pieces(words: list[str], all_pairs: bool = True) -> Tokenizer:
    """A tokenizer of Llama 2's kind: `words` are pieces, likeliest first."""
    letters = sorted({letter for word in words for letter in word})
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    ids = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in ids and word[cut:] in ids
    ]
    if not all_pairs:
        merges.remove(("h", "ere"))
    raw = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    return raw


WORDS = ["he", "re", "▁t", "▁the", "in", "ere", "here"]


def test_sentencepiece_has_scores_and_bytes():
    tokenizer = fast(pieces(WORDS), unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    told = described(tokenizer, len(tokenizer), [2])
    texts, scores, kinds = (told[key] for key in ("token_list", "token_scores", "token_types"))
    by_text = dict(zip(texts, zip(scores, map(int, kinds), strict=True), strict=True))
    assert told["tokenizer_model"] == "llama" and told["add_space_prefix"] is True
    assert (by_text["<unk>"][1], by_text["<s>"][1], by_text["<0x0A>"][1], by_text["▁the"][1]) == (2, 3, 6, 1)
    made = sorted(WORDS, key=lambda word: -by_text[word][0])
    assert made == WORDS  # the order in which they are merged


def test_merges_that_are_no_scores():
    tokenizer = fast(pieces(WORDS, all_pairs=False), unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match=r"its merges are no order of tokens \(here"):
        described(tokenizer, len(tokenizer), [2])


def test_tokenizers_of_other_kinds():
    unigram = fast(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)))
    with pytest.raises(UserError, match="no form for this model's tokenizer: Unigram"):
        described(unigram, 10)
    with pytest.raises(UserError, match=r"it has no tokenizer.json"):
        described(SimpleNamespace(), 10)


# --- templates

BUNDLED = [name for name in templates.names() if templates.read(name)]


def conversations() -> list[list[dict]]:
    system, user, said = (
        {"role": role, "content": f"{role} says {{x}} <b>"} for role in ("system", "user", "assistant")
    )
    return [[user], [system, user], [user, said, user], [system, user, said, user, said, user]]


@pytest.mark.parametrize("name", BUNDLED)
def test_a_template_without_marks_renders_the_same(tokenizer, name):
    marked = templates.read(name)
    assert "generation" not in re.findall(r"\{%-?\s*(\w+)", unmarked(marked))
    for talk in conversations():
        for answer in (True, False):
            texts = []
            for template in (marked, unmarked(marked)):
                tokenizer.chat_template = template
                texts.append(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=answer))
            assert texts[0] == texts[1]


def ollama(text: str, messages: list[dict]) -> str:
    """What Go's text/template makes of the forms that are written: range, if, else if, end, .Content and strings."""
    parts = re.split(r"(\{\{.*?\}\})", text, flags=re.DOTALL)
    for number, part in enumerate(parts):
        if part.startswith("{{-"):
            parts[number - 1] = parts[number - 1].rstrip()
    begin = next(i for i, part in enumerate(parts) if "range .Messages" in part)
    end = max(i for i, part in enumerate(parts) if part == "{{- end }}")

    def said(part: str, message: dict | None) -> str:
        if not part.startswith("{{"):
            return part
        inside = part.strip("{}- ").strip()
        return message["content"] if message and inside == ".Content" else json.loads(inside)

    made = "".join(said(part, None) for part in parts[:begin])
    for message in messages:
        taken = False
        for part in parts[begin + 1 : end]:
            if test := re.fullmatch(r'\{\{- (?:else )?if eq \.Role "(\w+)" \}\}', part):
                taken = test[1] == message["role"]
            elif part == "{{- end }}":
                taken = False
            elif taken:
                made += said(part, message)
    return made + "".join(said(part, None) for part in parts[end + 1 :])


@pytest.mark.parametrize("name", ["chatml", "llama3", "deepseek", "qwen", "glm4"])
def test_ollamas_form_of_a_template_gives_its_text(tokenizer, name):
    tokenizer.chat_template = templates.read(name)
    form = chat_form(tokenizer, drop_bos=False)
    assert form is not None
    for talk in conversations():
        wanted = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        own = [{"role": "system", "content": form.system}] if form.system and talk[0]["role"] != "system" else []
        assert ollama(form.go(), [*own, *talk]) == wanted


def test_the_demo_models_own_system_message_goes_into_the_modelfile(demo_model):
    made = modelfile("x.gguf", AutoTokenizer.from_pretrained(demo_model), ["<|im_end|>"], drop_bos=False)
    assert 'SYSTEM """You are a helpful AI assistant named SmolLM, trained by Hugging Face"""' in made
    template = re.search(r'TEMPLATE """(.*)"""\nSYSTEM', made, re.DOTALL)[1]
    assert ollama(template, [{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_with_another_form_for_the_last_message_has_no_template_there(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last %}LAST {% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
    )
    made = modelfile("x.gguf", tokenizer, ["<end>"], drop_bos=False)
    assert 'TEMPLATE "' not in made and "No TEMPLATE: the model's chat template has no form" in made
    tokenizer.chat_template = None
    assert "No TEMPLATE: the model has no chat template" in modelfile("x.gguf", tokenizer, [], drop_bos=False)
