"""Every RoPE scaling: prompts in pieces, at once, side by side and in turns give what transformers itself generates."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.config.options import EngineConfig
from workbench.engine.backend import Job, Sampling, Score
from workbench.engine.batching.batch import Limits
from workbench.engine.batching.fit import find_fit
from workbench.engine.batching.scheduler import BatchingScheduler
from workbench.engine.transformers_backend import TransformersDecoder

ORIGINAL = 64
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, **LLAMA3},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)], "factor": 4.0},
}
LENGTHS = (10, ORIGINAL - 6, ORIGINAL - 1, ORIGINAL, 100, 140)  # the second and third cross the original length
NEW = 16


def save(kind: str, folder, like):
    tokenizer = AutoTokenizer.from_pretrained(like)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    scaling = {"rope_type": kind, "rope_theta": 10000.0, **SCALINGS[kind]}
    if kind == "longrope":
        config = transformers.Phi3Config(
            **shape, max_position_embeddings=4 * ORIGINAL, original_max_position_embeddings=ORIGINAL,
            rope_parameters=scaling | {"original_max_position_embeddings": ORIGINAL},
        )  # fmt: skip
    else:
        longest = ORIGINAL if kind in ("linear", "dynamic") else 4 * ORIGINAL
        config = transformers.LlamaConfig(**shape, max_position_embeddings=longest, rope_parameters=scaling)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data *= 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompt_of(length: int) -> list[int]:
    return [4 + (i * i + 3 * i + length) % 250 for i in range(length)]


def generated(folder, prompt: list[int]) -> tuple[list[int], list[float]]:
    """transformers' own: a fresh model, which has seen no other request."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    tokens = out.sequences[0, len(prompt) :].tolist()
    return tokens, [float(one[0].float().log_softmax(-1)[token]) for one, token in zip(out.logits, tokens, strict=True)]


def job(prompt: list[int], n: int = 1) -> Job:
    return Job(None, [], Sampling(max_tokens=NEW, temperature=0, logprobs=1, n=n), prompt=prompt)


def check(tokens, want, index: int = 0) -> None:
    infos = [info for token in tokens if token.index == index for info in token.infos]
    assert [info.id for info in infos] == want[0]
    assert [info.logprob for info in infos] == pytest.approx(want[1], abs=1e-4)


@pytest.mark.parametrize("kind", SCALINGS)
def test_in_pieces_at_once_and_side_by_side_as_transformers(kind, tiny_model, workspace, tmp_path):
    folder = save(kind, tmp_path / kind, tiny_model)
    prompts = [prompt_of(length) for length in LENGTHS]
    want = [generated(folder, prompt) for prompt in prompts]

    def load() -> TransformersDecoder:
        config = EngineConfig(model_name_or_path=str(folder))
        loaded = TransformersDecoder(config, workspace, lambda *_: None, lambda *_: None)
        assert loaded.context == 4 * ORIGINAL
        return loaded

    for chunk in (500, 16):  # in turns: the longest first, which nothing may remember
        decoder = load()
        decoder._chunk = chunk
        for prompt, right in list(zip(prompts, want, strict=True))[::-1]:
            check(list(decoder.open(job(prompt))), right)
        check(list(decoder.open(job(prompts[1], n=2))), want[1], index=1)
    for piece in (500, 16):
        decoder = load()
        fit = find_fit(decoder.base, decoder.rope)
        assert not fit.reason
        backend = BatchingScheduler(decoder, fit)
        backend.batch.limits = Limits(rows=16, piece_alone=piece, piece_beside=piece)
        for _ in range(2):  # the second time with known beginnings
            jobs = [job(prompt, n=1 + (place == 1)) for place, prompt in enumerate(prompts)]
            backend.call(lambda jobs=jobs, to=backend: [to.submit(one) for one in jobs])
            for one, right in zip(jobs, want, strict=True):
                tokens = list(one)
                for index in range(one.sampling.n):
                    check(tokens, right, index)
        assert backend.metrics()["prompt_tokens_reused_total"] > 0


def test_lengths_change_nothing_in_the_other_scalings_and_everything_in_these(tiny_model, workspace, tmp_path):
    """The test above could pass on a model that does not care."""
    right = {}
    for kind in SCALINGS:
        folder = save(kind, tmp_path / kind, tiny_model)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        decoder = TransformersDecoder(
            EngineConfig(model_name_or_path=str(folder)), workspace, lambda *_: None, lambda *_: None
        )
        assert decoder.rope.kind == (kind if kind in ("dynamic", "longrope") else "")
        ids = torch.tensor([prompt_of(140)])
        whole = model(ids).logits[0, -1]
        cache = transformers.DynamicCache(config=model.config)
        model(ids[:, :50], past_key_values=cache)
        pieces = model(ids[:, 50:], past_key_values=cache).logits[0, -1]
        right[kind] = float((whole - pieces).detach().abs().max())
    assert all(right[kind] < 1e-3 for kind in ("linear", "yarn", "llama3"))
    assert all(right[kind] > 1e-2 for kind in ("dynamic", "longrope"))


def test_a_given_answer_is_measured_as_it_was_generated(tiny_model, workspace, tmp_path):
    for kind in ("dynamic", "longrope"):
        decoder = TransformersDecoder(
            EngineConfig(model_name_or_path=str(save(kind, tmp_path / kind, tiny_model))),
            workspace,
            lambda *_: None,
            lambda *_: None,
        )
        messages = [{"role": "user", "content": "x" * 120}]
        tokens = list(decoder.open(Job(None, messages, Sampling(max_tokens=NEW, temperature=0, logprobs=1))))
        infos = [info for token in tokens for info in token.infos]
        measured = decoder.score(Score(None, messages, [info.id for info in infos], 1))
        assert [i.logprob for i in measured] == pytest.approx([i.logprob for i in infos], abs=1e-4)
