"""From tokens to text and log-probabilities: SentencePiece's first space, letters of several tokens, stop texts."""

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.serving import tiny_decoder
from workbench.engine.backend import Job, Sampling, Score, TokenInfo
from workbench.engine.detokenizer import AnswerRow
from workbench.engine.logprobs import logprob_entry, token_text
from workbench.storage.workspace import Workspace


def llama_2_like() -> PreTrainedTokenizerFast:
    """Llama-2's layout: `▁` for a space, bytes for what is not known, a decoder that drops the first space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁Hello", "▁world", "q", "]"]
    raw = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def info(token: int, raw: bytes) -> TokenInfo:
    return TokenInfo(token, "", raw, -1.0, 1, 0.0, [(token, raw, -1.0, False)])


def run(tokenizer, pieces: list[str], prompt: list[str], stops=(), plain=True):
    """Text and entries of an answer that is written as these tokens."""
    ids = tokenizer.convert_tokens_to_ids
    row = AnswerRow(0, tokenizer, stops, plain, [ids(p) for p in prompt])
    tokens = []
    for number, piece in enumerate(pieces):
        raw = bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
        tokens.append(
            row.add(ids(piece), info(ids(piece), raw), end=False, ended=False, full=number == len(pieces) - 1)
        )
        if tokens[-1].finish:
            break
    return "".join(t.text for t in tokens), [i for t in tokens for i in t.infos], tokens[-1].finish


def test_the_first_space_after_a_prompt_is_kept():
    tokenizer = llama_2_like()
    for prompt in (["q"], ["<s>", "q", "]"], ["<s>", "▁Hello", "</s>"]):
        assert run(tokenizer, ["▁Hello", "▁world"], prompt)[0] == " Hello world"
    # nothing before it, or nothing that is text: the tokenizer puts that space there itself
    for prompt in ([], ["<s>"]):
        assert run(tokenizer, ["▁Hello", "▁world"], prompt)[0] == "Hello world"
    half = [f"<0x{b:02X}>" for b in "é".encode()]
    assert run(tokenizer, [half[1], "▁world"], ["q", half[0]])[0].endswith(" world")


def test_a_letter_of_several_tokens_that_begins_a_stop_text_leaves_no_logprobs():
    tokenizer = llama_2_like()
    letters = {text: [f"<0x{b:02X}>" for b in text.encode()] for text in ("é", "你")}
    pieces = ["▁Hello", *letters["é"], "▁world", *letters["你"], "q"]
    text, infos, finish = run(tokenizer, pieces, ["q"])
    assert text == " Helloé world你q" and len(infos) == len(pieces) and finish == "length"
    for stop, expected, count in (
        ("你", " Helloé world", 4),
        ("é", " Hello", 1),
        (" world你", " Helloé", 3),
        ("q", " Helloé world你", 7),
    ):
        text, infos, finish = run(tokenizer, pieces, ["q"], stops=(stop,))
        assert (text, len(infos), finish) == (expected, count, "stop"), stop
        assert "".join(i.text for i in infos) == expected


def test_tokens_that_are_no_whole_letter_are_told_apart():
    assert token_text("é".encode()) == "é" and token_text(b"\xe4\xbd") == "bytes:\\xe4\\xbd"
    entry = info(5, b"\xe4")
    entry.top = [(6, b"\xbd", -0.5, False), (7, b"\xe5", -0.7, False)]
    written = logprob_entry(entry)
    assert [(t["token"], t["bytes"]) for t in written["top_logprobs"]] == [
        ("bytes:\\xbd", [0xBD]), ("bytes:\\xe5", [0xE5]), ("bytes:\\xe4", [0xE4])
    ]  # fmt: skip


def test_the_engine_keeps_that_space_too(tmp_path):
    """A model of that layout that has to write ▁Hello ▁world: in a completion, in a chat, and where it is scored."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = llama_2_like()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    decoder = tiny_decoder(tmp_path / "m", Workspace(tmp_path / "w").create(), template="auto", context=64)
    hello, world = decoder.tokenizer.convert_tokens_to_ids(["▁Hello", "▁world"])
    sampling = Sampling(max_tokens=1, temperature=0, logit_bias={hello: 100}, logprobs=0)
    for job in (Job(None, [], sampling, prompt="q"), Job(None, [{"role": "user", "content": "q"}], sampling)):
        (token,) = decoder.open(job)
        assert token.text == " Hello" == token.infos[0].text
    scored = decoder.score(Score(None, [{"role": "user", "content": "q"}], [hello, world], 0))
    assert [info.text for info in scored] == [" Hello", " world"]
