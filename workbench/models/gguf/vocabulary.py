"""A tokenizer as llama.cpp keeps one: tokens, merges or scores, how text is split before, and what ends an answer.

Which of llama.cpp's ways of splitting text is a tokenizer's (`tokenizer.ggml.pre`) is tried out: the one with which
its own merges give its own tokens, on a text with all that the ways differ in.
"""

import json
from collections.abc import Callable
from typing import Any

from workbench.errors import UserError
from workbench.messages.message import Message

_LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# letters of the scripts that DeepSeek's first tokenizer splits off
_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ"
    "-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-"
    "\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
# llama.cpp's name -> its patterns, one after the other, and whether words that are tokens are never merged from parts
PRETOKENIZERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "smollm": ((r"\p{N}", _GPT2), False),
    "qwen2": ((_LLAMA3.replace("{1,3}", ""),), False),
    "llama-bpe": ((_LLAMA3,), True),
    "deepseek-llm": (
        (r"[\r\n]", rf"\s?[{_LETTERS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+"),
        False,
    ),
    "deepseek-coder": ((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"), False),
    "deepseek-v3": (
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
            r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
        ),
        False,
    ),
    "gpt-2": ((_GPT2,), False),
}
_TEXT = (
    "Hello world,  two   spaces\tand\ttabs \n\n  lines\r\n\r\n\r\nend.\n \n\n \n\n\n I'm I'M don't DON'T we'll"
    " WE'LL you've it's IT'S he'd they'RE\n1 12 123 1234 12345 3.14 1,000,000 2024-11-27 $5.00 100% #1 x2 a1b2c3\n"
    'def f(x):\n    return x ** 2  # a comment\n\tif (a != b) { c[0]->d += "é\\n"; }\n!!! ... ?!?! ---- ==== ~~'
    " `code` _under_\nÄpfel naïve café straße Ελληνικά Кириллица עברית العربية हिन्दी ภาษาไทย 한국어 문장"
    " 日本語のテキスト、カタカナ。中文字符，标点。“引号”……全角ＡＢＣ１２３ ½ ² Ⅷ ₿ € 🚀 👩\u200d💻 🏳\ufe0f\u200d🌈"
    " e\u0301 \u00a0nbsp\u3000wide — dash …  \n end   "
)
_ENDS_BY_FIELD = ("eos", "eot", "eom")
# texts of tokens at which llama.cpp ends an answer whatever the fields say
_KNOWN_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>", "<|eom_id|>", "</s>", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip


def describe(tokenizer: Any, rows: int, ends: list[int], writer: Any, log: Callable[[str], None]) -> None:
    """Write a tokenizer into a GGUFWriter.

    Args:
        rows: of the embedding matrix. Ids without a token get one that is never used.
        ends: ids of the tokens at which an answer ends.

    Raises:
        UserError: a tokenizer that llama.cpp has no form for.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("gguf_tokenizer", problem=Message("gguf_slow_tokenizer"))
    spec = json.loads(backend.to_str())
    if spec["model"]["type"] != "BPE":
        raise UserError("gguf_tokenizer", problem=spec["model"]["type"])
    added = {entry["id"]: entry for entry in spec["added_tokens"]}
    tokens = {number: token for token, number in spec["model"]["vocab"].items()}
    tokens |= {number: entry["content"] for number, entry in added.items()}
    if tokens and max(tokens) >= rows:
        raise UserError("gguf_tokens_many", tokens=max(tokens) + 1, rows=rows)
    if spec["model"].get("byte_fallback"):
        _sentencepiece(backend, spec, tokens, added, rows, writer)
    else:
        _byte_level(backend, spec, tokens, added, rows, writer)
    _special(tokenizer, tokens, ends, writer, log)


def _kinds(tokens: dict[int, str], added: dict[int, dict], rows: int, kind_of: Callable[[int], int]) -> tuple:
    """Texts and types of all ids up to `rows`."""
    import gguf

    kinds = []
    for number in range(rows):
        if number not in tokens:
            kinds.append(gguf.TokenType.UNUSED)
        elif number in added:
            kinds.append(gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(kind_of(number))
    return [tokens.get(number, f"[PAD{number}]") for number in range(rows)], kinds


def _byte_level(backend, spec: dict, tokens: dict, added: dict, rows: int, writer) -> None:
    import gguf

    name = pretokenizer(backend, spec)
    texts, kinds = _kinds(tokens, added, rows, lambda number: gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]]
    writer.add_token_merges(merges or ["[NONE] [NONE]"])  # llama.cpp wants the field; no text has such a pair
    writer.add_add_space_prefix(False)


def pretokenizer(backend, spec: dict) -> str:
    """llama.cpp's name for the way in which a byte-level BPE splits text. Raises UserError: it has none."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

    wanted = backend.encode(_TEXT, add_special_tokens=False).ids
    tried = Tokenizer.from_str(backend.to_str())
    if tried.normalizer is not None:  # NFC is left out by llama.cpp, and changes little; whatever else changes a lot
        tried.normalizer = normalizers.NFC() if spec["normalizer"]["type"] == "NFC" else normalizers.Sequence([])
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for name, (patterns, whole_words) in PRETOKENIZERS.items():
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        tried.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
        tried.model.ignore_merges = whole_words
        if tried.encode(_TEXT, add_special_tokens=False).ids == wanted:
            return name
    raise UserError("gguf_tokenizer", problem=Message("gguf_no_pretokenizer", names=list(PRETOKENIZERS)))


def _sentencepiece(backend, spec: dict, tokens: dict, added: dict, rows: int, writer) -> None:
    """Llama 2's kind: merged in the order of the pieces' scores, bytes for what is unknown."""
    import gguf

    model = spec["model"]
    ranks, listed = _ranks(model)
    ids = model["vocab"]
    for token, number in ids.items():  # llama.cpp merges any two neighbors that make a token
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair[0] in ids and pair[1] in ids and pair not in listed and number not in added:
                raise UserError(
                    "gguf_tokenizer", problem=Message("gguf_no_scores", token=token, rank=ranks.get(token, "–"))
                )
    unknown = model.get("unk_token")

    def kind_of(number: int) -> int:
        text = tokens[number]
        if text == unknown:
            return gguf.TokenType.UNKNOWN
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return gguf.TokenType.BYTE
        return gguf.TokenType.NORMAL

    texts, kinds = _kinds(tokens, added, rows, kind_of)
    if unknown in ids:
        kinds[ids[unknown]] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(ranks.get(text, len(ranks))) for text in texts])
    writer.add_token_types(kinds)
    first = backend.encode("a", add_special_tokens=False).tokens
    writer.add_add_space_prefix(bool(first) and first[0].startswith("▁"))


def _ranks(model: dict) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Merged token -> its place in the order of merging, and all pairs. Raises UserError: not one order of tokens."""
    ranks: dict[str, int] = {}
    listed, last = set(), ""
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        token = left + right
        if token in ranks and token != last:
            raise UserError("gguf_tokenizer", problem=Message("gguf_no_scores", token=token, rank=ranks[token]))
        ranks.setdefault(token, len(ranks))
        listed.add((left, right))
        last = token
    return ranks, listed


def _special(tokenizer: Any, tokens: dict[int, str], ends: list[int], writer, log: Callable[[str], None]) -> None:
    ends = sorted(set(ends) & set(tokens), key=lambda number: (number != tokenizer.eos_token_id, number))
    for field, number in zip(_ENDS_BY_FIELD, ends, strict=False):
        getattr(writer, f"add_{field}_token_id")(number)
    if left := [tokens[number] for number in ends[3:] if tokens[number] not in _KNOWN_ENDS]:
        log(f"GGUF has fields for three end tokens; not named in it: {', '.join(left)}.")
    for field, value in (
        ("bos", tokenizer.bos_token_id),
        ("unk", tokenizer.unk_token_id),
        ("pad", tokenizer.pad_token_id),
    ):
        if value is not None and value in tokens:
            getattr(writer, f"add_{field}_token_id")(value)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(False)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether llama.cpp is to put the BOS token before every text and take the template's own away: if the tokenizer
    does so and conversations begin with it, too. A template that brings it alone keeps it."""
    if tokenizer.bos_token_id is None or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return False
    if not tokenizer.chat_template:
        return True
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        return text.startswith(tokenizer.bos_token)
    except Exception:  # a template that wants something else: what holds for text
        return True
