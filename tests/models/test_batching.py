"""Requests that share forward passes: each answer is what it is alone, whatever the others are and do."""

import threading
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.engine.backend import Job, Sampling
from workbench.engine.batching import fit as fitting
from workbench.engine.batching.batch import Limits
from workbench.engine.batching.fit import find_fit
from workbench.engine.batching.scheduler import BatchingScheduler, backend_of
from workbench.engine.scheduler import Scheduler
from workbench.engine.transformers_backend import TransformersDecoder
from workbench.errors import UserError

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4, "moe_intermediate_size": 64, "kv_lora_rank": 32, "q_lora_rank": None,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "topk_method": "greedy", "norm_topk_prob": False,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING = ["sliding_attention", "full_attention"]
KINDS = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "deepseek_v2": ("DeepseekV2", LATENT),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 24, "layer_types": SLIDING}),
    "gpt_oss": ("GptOss", {"head_dim": 16, "sliding_window": 24, "layer_types": SLIDING, "num_local_experts": 4,
                           "num_experts_per_tok": 2, "rope_parameters": PLAIN}),
}  # fmt: skip
PROMPTS = ["ab", "The quick brown fox " * 4, "x" * 17, "One two three. " * 12, "The quick brown fox " * 4 + "jumps"]


def save_model(kind: str, folder, like):
    name, more = KINDS[kind]
    tokenizer = AutoTokenizer.from_pretrained(like)
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **(SHAPE | more))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # decided answers, not near ties
        parameter.data *= 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def decoder_of(folder, workspace) -> TransformersDecoder:
    return TransformersDecoder(
        EngineConfig(model_name_or_path=str(folder)), workspace, lambda *_: None, lambda *_: None
    )


def batching(decoder, tokens: int | None = None) -> BatchingScheduler:
    fit = find_fit(decoder.base, decoder.rope)
    assert not fit.reason
    return BatchingScheduler(decoder, fit, tokens)


def job(prompt, max_tokens: int = 12, adapter: str | None = None, **more) -> Job:
    return Job(
        adapter, [], Sampling(**({"max_tokens": max_tokens, "temperature": 0, "logprobs": 2} | more)), prompt=prompt
    )


def answers(tokens) -> dict[int, tuple[list[int], list[float], str]]:
    """Token ids, log-probabilities and text of each answer."""
    found: dict[int, tuple[list[int], list[float], str]] = {}
    for token in tokens:
        ids, logprobs, text = found.get(token.index, ([], [], ""))
        more = token.infos
        found[token.index] = ids + [i.id for i in more], logprobs + [i.logprob for i in more], text + token.text
    return found


def alone(decoder, asked: Job):
    decoder.select(asked.adapter)
    return answers(decoder.open(asked))


def together(backend, jobs: list[Job]):
    """All of them in the queue before the first step."""
    backend.call(lambda: [backend.submit(one) for one in jobs])
    return [answers(one) for one in jobs]


def same(found, want) -> None:
    for one, other in zip(found, want, strict=True):
        assert set(one) == set(other)
        for index, (ids, logprobs, text) in one.items():
            assert ids == other[index][0] and text == other[index][2]
            assert logprobs == pytest.approx(other[index][1], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_same_alone_and_in_company(kind, tiny_model, workspace, tmp_path):
    decoder = decoder_of(save_model(kind, tmp_path / kind, tiny_model), workspace)
    want = [alone(decoder, job(prompt)) for prompt in PROMPTS]
    assert len({tuple(one[0][0]) for one in want}) > 2  # the prompts matter
    backend = batching(decoder)
    same(together(backend, [job(prompt) for prompt in PROMPTS]), want)
    same(together(backend, [job(prompt) for prompt in PROMPTS]), want)  # now beginnings are known
    figures = backend.metrics()
    assert figures["prompt_tokens_reused_total"] >= 300 and figures["kv_tokens_used"] == 0
    assert figures["rows_decoded_total"] > figures["steps_total"]  # they did share steps


def test_it_is_what_transformers_generates(tiny_model, workspace, tmp_path):
    """Sliding windows too: nothing here is compared with our own code only."""
    for kind in ("mistral", "gemma3", "deepseek_v2"):
        folder = save_model(kind, tmp_path / kind, tiny_model)
        decoder = decoder_of(folder, workspace)
        (found,) = together(batching(decoder), [job(PROMPTS[3], 20)])
        ids = torch.tensor([decoder.tokenizer(PROMPTS[3])["input_ids"]])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        want = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert found[0][0] == want[0, ids.shape[1] :].tolist()


def test_the_cache_grows_when_it_is_too_small(decoder):
    want = [alone(decoder, job(prompt, 40)) for prompt in PROMPTS]
    fit = find_fit(decoder.base, decoder.rope)
    backend = BatchingScheduler(decoder, fit, tokens=4096, first=32)
    assert backend.metrics()["kv_tokens"] == 32 and backend.metrics()["kv_tokens_most"] == 4096
    same(together(backend, [job(prompt, 40) for prompt in PROMPTS]), want)
    figures = backend.metrics()
    assert 32 < figures["kv_tokens"] <= 4096 and figures["rows_put_back_total"] == 0
    same(together(backend, [job(prompt, 40) for prompt in PROMPTS]), want)  # what lay in it has stayed
    assert backend.metrics()["prompt_tokens_reused_total"] > 0


@pytest.mark.parametrize("roomy", [0, 512])
def test_a_small_cache_grows_rather_than_forget(decoder, roomy):
    fit = find_fit(decoder.base, decoder.rope)
    backend = BatchingScheduler(decoder, fit, tokens=4096, first=128, roomy=roomy)
    for letter in "abcd":  # conversations of 90 tokens, one after the other
        list(backend.submit(job(letter * 80, 4)))
    before = backend.metrics()["prompt_tokens_reused_total"]
    list(backend.submit(job("a" * 80, 4)))
    assert (backend.metrics()["prompt_tokens_reused_total"] > before) == bool(roomy)
    assert backend.metrics()["kv_tokens"] == (512 if roomy else 128)


def test_a_cache_that_cannot_grow_ends_one_request_only(decoder, monkeypatch):
    want = alone(decoder, job(PROMPTS[0], 4))
    backend = BatchingScheduler(decoder, find_fit(decoder.base, decoder.rope), tokens=4096, first=64)

    def grow(pages):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend.batch.passes.runner, "grow", grow)
    with pytest.raises(UserError) as error:
        list(backend.submit(job(PROMPTS[3] * 2)))
    assert error.value.message.code == "request_memory"
    same([answers(backend.submit(job(PROMPTS[0], 4)))], [want])
    assert backend.metrics()["kv_tokens_most"] == 64


@pytest.fixture
def decoder(tiny_model, workspace):
    return decoder_of(tiny_model, workspace)


def test_prompts_in_pieces_rows_that_are_put_back_and_a_cache_that_is_too_small(decoder):
    """A cache of 200 tokens for answers that want 500 together: rows give their place up and are read again."""
    prompts = [letter * length for letter, length in zip("abcdef", (3, 90, 40, 33, 80, 64), strict=True)]
    want = [alone(decoder, job(prompt, 40)) for prompt in prompts]
    backend = batching(decoder, tokens=200)
    backend.batch.limits = Limits(rows=32, piece_alone=24, piece_beside=24)
    too_long = job("z" * 300)
    found = together(backend, [too_long_free := job(prompt, 40) for prompt in prompts])
    same(found, want)
    assert backend.metrics()["rows_put_back_total"] > 0 and too_long_free.completion_tokens == 40
    backend.submit(too_long)
    with pytest.raises(UserError, match="300 tokens, but the memory that is left for its cache holds 192"):
        list(too_long)
    assert backend.metrics()["kv_tokens_used"] == 0


def test_samples_share_the_prompt_and_each_has_its_seed(decoder):
    backend = batching(decoder)
    wanted = {"temperature": 1.5, "seed": 7, "top_p": 0.9}
    alone_, _ = together(backend, [job("q" * 70, 10, n=5, **wanted), job("other", 10)])
    again, _ = together(backend, [job("q" * 70, 10, n=5, **wanted), job("q" * 33, 30, **wanted)])
    assert len({tuple(ids) for ids, _, _ in again.values()}) == 5
    (single,) = together(backend, [job("q" * 70, 10, **wanted)])
    same([again, single], [alone_, {0: alone_[0]}])
    assert backend.metrics()["prompt_tokens_reused_total"] >= 2 * 64


@pytest.mark.parametrize("more", [
    {"repetition_penalty": 1.3}, {"presence_penalty": 1.0, "frequency_penalty": 0.5}, {"grammar": "json"},
    {"grammar": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}, {"stop": ("a", "b")},
    {"temperature": 1.0, "seed": 5, "top_k": 20},
], ids=str)  # fmt: skip
def test_what_a_row_is_asked_for_stays_its_own(decoder, more):
    want = [alone(decoder, one) for one in (job("Say:", 24, **more), job("Say:", 24), job("Other", 24, **more))]
    backend = batching(decoder)
    same(together(backend, [job("Say:", 24, **more), job("Say:", 24), job("Other", 24, **more)]), want)


def test_a_client_that_goes_away_frees_its_place_within_a_step(decoder):
    decoder._ends = set()  # nothing ends by itself
    backend = batching(decoder)
    endless = backend.submit(job("a", 400, logprobs=None, temperature=2.0, seed=1, stop=()))
    other = backend.submit(job("b", 300, temperature=2.0, seed=2))
    next(iter(endless))
    seen = []

    step, freed = backend.batch.step, threading.Event()

    def watched():
        step()
        seen.append(backend.metrics())
        if seen[-1]["places_freed_total"] > seen[0]["places_freed_total"]:
            freed.set()

    def cancel():  # between two steps
        endless.cancel()
        seen.append(backend.metrics())
        backend.batch.step = watched

    backend.call(cancel)
    assert freed.wait(60)
    at = next(one for one in seen if one["places_freed_total"] > seen[0]["places_freed_total"])
    assert at["steps_total"] <= seen[0]["steps_total"] + 1 and at["requests_cancelled_total"] == 1
    assert all(token.finish is None for token in endless)
    other.cancel()
    list(other)


def test_memory_that_runs_out_ends_one_request_only(decoder):
    """The allocator fails for whatever pass holds the fattest row: it gets one sentence, the others their answers."""
    prompts = ["a" * 9, "b" * 50, "c" * 21]
    want = [alone(decoder, job(prompt)) for prompt in prompts]
    backend = batching(decoder)
    run, failed = backend.batch.passes.runner.run, []

    def out_of_memory(pieces, own=False, mixed=False):
        if any(piece.start + len(piece.tokens) > 55 for piece in pieces):
            failed.append(len(pieces))
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return run(pieces, own, mixed)

    backend.batch.passes.runner.run = out_of_memory
    jobs = [job(prompt) for prompt in prompts]
    backend.call(lambda: [backend.submit(one) for one in jobs])
    same([answers(jobs[0]), answers(jobs[2])], [want[0], want[2]])
    with pytest.raises(UserError, match="memory ran out in the middle of this request"):
        list(jobs[1])
    assert failed and backend.metrics()["requests_failed_total"] == 1 and backend.metrics()["kv_tokens_used"] == 0


def test_a_bad_request_and_a_fault_reach_their_clients_and_the_engine_lives_on(decoder):
    backend = batching(decoder)
    for asked, words in (
        (job([]), "prompt is empty"),
        (job("x" * 600), "maximum context length is 512 tokens. However, your prompt resulted in 600"),
    ):
        with pytest.raises(UserError, match=words):
            list(backend.submit(asked))
    step, backend.batch._choose_rows = backend.batch._choose_rows, lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(backend.submit(job("a")))
    backend.batch._choose_rows = step
    assert together(backend, [job("a")])[0][0][0]


def lora(folder, model, name: str, **more):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(sum(map(ord, name)))
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(**({"r": 4, "target_modules": ["q_proj", "down_proj"]} | more)),
    )
    for key, parameter in tuned.named_parameters():
        if "lora_" in key or "modules_to_save" in key:
            torch.nn.init.normal_(parameter, std=0.4)
    tuned.save_pretrained(folder / name)
    return folder / name


def test_adapters_and_the_base_in_one_batch(tiny_model, decoder, tmp_path):
    """Plain ones are mixed; DoRA, whole modules, embeddings and DeepSeek's experts get passes of their own."""
    kinds = {
        "one": {}, "two": {"r": 8, "use_rslora": True}, "dora": {"use_dora": True},
        "whole": {"modules_to_save": ["lm_head"]}, "embedded": {"target_modules": ["embed_tokens", "v_proj"]},
    }  # fmt: skip
    for name, more in kinds.items():
        decoder.add_adapter(name, str(lora(tmp_path, tiny_model, name, **more)))
    decoder.merge_adapters("sum", {"one": 0.5, "two": 0.5})
    names = [None, *kinds, "sum"]
    want = [alone(decoder, job("Who are you?", adapter=name)) for name in names]
    assert len({tuple(one[0][0]) for one in want}) >= 6
    backend = batching(decoder)
    apart = {name for name in names[1:] if backend.mixed.apart(decoder._inner[name])}
    assert apart == {"dora", "whole", "embedded"}
    for _ in range(2):  # the second time from the cache, where no adapter may find another's keys
        same(together(backend, [job("Who are you?", adapter=name) for name in [*names, *names]]), want + want)
    steps, passes = (backend.metrics()[f"{what}_total"] for what in ("steps", "passes"))
    assert passes < 14 * steps


def test_lora_on_experts_is_not_mixed(tiny_moe, workspace, tmp_path):
    decoder = decoder_of(tiny_moe, workspace)
    decoder.add_adapter("attention", str(lora(tmp_path, tiny_moe, "attention", target_modules=["q_proj", "kv_b_proj"])))
    experts = lora(tmp_path, tiny_moe, "experts", target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    decoder.add_adapter("experts", str(experts))
    names = [None, "attention", "experts"]
    want = [alone(decoder, job("Who are you?", adapter=name)) for name in names]
    backend = batching(decoder)
    assert [bool(backend.mixed.apart(decoder._inner[name])) for name in names[1:]] == [False, True]
    same(together(backend, [job("Who are you?", adapter=name) for name in names]), want)


def test_twenty_adapter_loads_leave_nothing_behind(tiny_model, decoder, tmp_path):
    folder = str(lora(tmp_path, tiny_model, "one"))
    backend = batching(decoder)
    base = together(backend, [job("Hi")])

    def size() -> int:
        return sum(p.numel() for p in decoder.model.parameters())

    before, modules = size(), len(list(decoder.model.modules()))
    backend.add_adapter("kept", folder)
    loaded = size()
    for number in range(20):
        backend.add_adapter(f"same-{number}", folder)
        assert size() == loaded  # the same weights under another name
        tuned = together(backend, [job("Hi", adapter=f"same-{number}"), job("Hi")])
        assert tuned[0] != tuned[1]
        same(tuned[1:], base)
        backend.remove_adapter(f"same-{number}")
    for number in range(20):
        backend.remove_adapter("kept") if number == 0 else None
        backend.add_adapter(f"new-{number}", folder)
        busy = backend.submit(job("Hi", 300, adapter=f"new-{number}", temperature=2.0, seed=3))
        next(iter(busy))
        with pytest.raises(UserError, match="is using the adapter"):
            backend.remove_adapter(f"new-{number}")
        busy.cancel()
        list(busy)
        backend.remove_adapter(f"new-{number}")
        assert size() == before and len(list(decoder.model.modules())) == modules
    same(together(backend, [job("Hi")]), base)
    with pytest.raises(UserError, match="no adapter named kept"):
        backend.remove_adapter("kept")


def test_a_model_that_does_not_fit_takes_turns_and_says_so(tiny_model, workspace, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    said: list[str] = []
    backend = backend_of(decoder_of(tmp_path / "mamba", workspace), said.append)
    assert type(backend) is Scheduler and not backend.capabilities.batching
    assert said == ["Requests take turns instead of sharing forward passes: it has layers of kind linear_attention."]
    assert backend.capabilities.not_batched in said[0]


def test_thirty_two_clients_none_waits_long(decoder):
    backend = batching(decoder)
    done, lock = [], threading.Lock()

    def client(number: int) -> None:
        for turn in range(3):
            asked = job(f"{number} {turn} " * (1 + number % 5), 10 + number % 7, temperature=1.0, seed=number)
            first = next(iter(backend.submit(asked)))
            count = 1 + sum(1 for _ in asked)
            with lock:
                done.append((number, turn, first, count))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 96 and all(count for *_, count in done)
    figures = backend.metrics()
    assert figures["requests_finished_total"] == 96 and figures["requests_failed_total"] == 0
    assert figures["rows_decoded_total"] / figures["steps_total"] > 4 and figures["kv_tokens_used"] == 0


@pytest.mark.parametrize(
    "settings", [{"quantization_bit": 4}, {"quantization_bit": 8}, {"flash_attn": "eager"}], ids=str
)
def test_quantized_models_and_eager_attention(tiny_model, workspace, settings):
    config = validated({"model_name_or_path": str(tiny_model)} | settings, EngineConfig)
    decoder = TransformersDecoder(config, workspace, lambda *_: None, lambda *_: None)
    want = [alone(decoder, job(prompt, 6)) for prompt in PROMPTS]
    backend = batching(decoder)
    found = together(backend, [job(prompt, 6) for prompt in PROMPTS])
    for one, other in zip(found, want, strict=True):
        near = 0.05 if settings.get("quantization_bit") == 8 else 1e-4  # inputs in 8 bits: rounding is coarser
        assert one[0][1][0] == pytest.approx(other[0][1][0], abs=near)


@pytest.mark.parametrize(
    ("dtype", "apart", "own", "same"),
    [
        (torch.bfloat16, 0.1, 0.0, True),
        (torch.bfloat16, 0.3, 0.02, False),  # the model itself does not do that
        (torch.bfloat16, 0.3, 0.25, True),
        (torch.bfloat16, 0.7, 2.0, False),  # so far apart are other texts
        (torch.float32, 0.01, 0.25, False),
    ],
)
def test_a_model_may_differ_by_what_it_differs_by_itself(dtype, apart, own, same, monkeypatch):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    want = list(logits - logits.mean(1, keepdim=True))

    def moved(share: float) -> list[torch.Tensor]:
        return [(1 + share) * one for one in want]

    asked = []
    monkeypatch.setattr(fitting, "_alone", lambda model, one_by_one: asked.append(one_by_one) or moved(own))
    table = SimpleNamespace(weight=torch.zeros(1, dtype=dtype))
    model = SimpleNamespace(get_input_embeddings=lambda: table)
    assert fitting._as_alone(model, moved(apart), want) is same
    assert asked == ([True] if dtype is torch.bfloat16 and apart > 0.15 else [])
