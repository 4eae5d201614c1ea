"""16-bit weights and the lean forward pass on the CPU: the same answers as float32 and transformers' own code."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models.test_batching import (
    KINDS,
    PROMPTS,
    SHAPE,
    alone,
    answers,
    batching,
    job,
    lora,
    same,
    save_model,
    together,
)
from workbench.config.options import EngineConfig
from workbench.engine.batching.cache import PagedCache
from workbench.engine.batching.fit import find_fit
from workbench.engine.batching.quick import quick_forward
from workbench.engine.batching.runner import Piece, Runner
from workbench.engine.transformers_backend import TransformersDecoder
from workbench.models import half_linear
from workbench.models.cpu import library
from workbench.models.cpu.linear import BlockedLinear
from workbench.models.half_linear import HalfLinear, PackedLinear, exact
from workbench.models.rope_lengths import RopeLengths

pytestmark = pytest.mark.skipif(not half_linear.available(), reason="PyTorch has no FBGEMM here")
FAMILIES = {"llama": ("Llama", {}), "qwen2": ("Qwen2", {}), "qwen3": ("Qwen3", {"head_dim": 16}),
            "mistral": ("Mistral", {"sliding_window": 24}), "moe": KINDS["qwen3_moe"]}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def folder(request, tiny_model, tmp_path, monkeypatch):
    """A model with the digits of bf16."""
    monkeypatch.setitem(KINDS, request.param, FAMILIES[request.param])
    path = save_model(request.param, tmp_path / request.param, tiny_model)
    model = AutoModelForCausalLM.from_pretrained(path)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.save_pretrained(path)
    return path


def decoder_of(folder, workspace, weights: str) -> TransformersDecoder:
    config = EngineConfig(model_name_or_path=str(folder), cpu_weights=weights)
    return TransformersDecoder(config, workspace, lambda *_: None, lambda *_: None)


def packed(decoder) -> int:
    return sum(isinstance(module, PackedLinear) for module in decoder.base.modules())


def test_answers_of_packed_models_are_those_of_float32(folder, workspace):
    plain, half = (decoder_of(folder, workspace, weights) for weights in ("float32", "auto"))
    assert packed(plain) == 0 and packed(half) >= SHAPE["num_hidden_layers"] * 4
    want = [alone(plain, job(prompt)) for prompt in PROMPTS]
    backend = batching(half)
    assert (backend.batch.passes.runner.quick is not None) == (folder.name != "moe")
    if library.load(workspace, lambda _: None):
        assert (backend.batch.passes.runner.step is not None) == (folder.name != "moe")
    same([answers(backend.submit(job(PROMPTS[0])))], want[:1])
    for _ in range(2):
        same(together(backend, [job(prompt) for prompt in PROMPTS]), want)
    same([answers(backend.submit(job(PROMPTS[1], n=2)))], [alone(plain, job(PROMPTS[1], n=2))])


def test_adapters_on_packed_layers(tiny_model, workspace, tmp_path):
    """Also those that replace a whole layer, which is a plain one again."""
    kinds = {
        "one": {}, "two": {"r": 8}, "dora": {"use_dora": True}, "whole": {"modules_to_save": ["lm_head", "norm"]},
        "weight": {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    }  # fmt: skip
    wanted = [None, *kinds]
    results = []
    for weights in ("float32", "float16"):
        decoder = decoder_of(tiny_model, workspace, weights)
        assert bool(packed(decoder)) == (weights == "float16")
        for name, more in kinds.items():
            if weights == "float32":
                lora(tmp_path, tiny_model, name, **more)
            decoder.add_adapter(name, str(tmp_path / name))
        results.append([alone(decoder, job("Who are you?", 6, adapter=name)) for name in wanted])
        backend = batching(decoder)
        assert backend.batch.passes.runner.quick is not None
        assert [bool(backend.mixed.apart(decoder._inner[name])) for name in kinds] == [False, False, True, True, True]
        same(together(backend, [job("Who are you?", 6, adapter=name) for name in wanted]), results[-1])
        for name in kinds:
            backend.remove_adapter(name)
        same(together(backend, [job("Who are you?", 6)]), results[-1][:1])
    for plain, half in zip(*results, strict=True):  # float16 rounds these weights: near, not equal
        assert half[0][1][0] == pytest.approx(plain[0][1][0], abs=0.05)


def test_only_what_float16_holds_is_packed_by_itself(tiny_model, workspace):
    assert packed(decoder_of(tiny_model, workspace, "auto")) == 0  # float32 digits
    assert packed(decoder_of(tiny_model, workspace, "float16")) > 0
    bf16 = torch.tensor([[1e-9, 3.0, -65504.0, 2.0**-20]]).bfloat16().float()
    assert exact(bf16[:, :2]) and exact(bf16[:, 3:]) and not exact(torch.tensor([70000.0]).bfloat16().float())
    assert not exact(torch.tensor([1.0001]))
    linear = torch.nn.Linear(48, 32)
    half = HalfLinear(linear)
    x = torch.randn(2, 3, 48)
    rounded = torch.nn.functional.linear(x, linear.weight.half().float(), linear.bias)
    assert torch.allclose(half(x), rounded, atol=1e-5) and torch.equal(half.weight, linear.weight.half().float())
    assert torch.allclose(half.restored()(x), rounded, atol=1e-5)


def test_a_lean_pass_that_computes_something_else_is_not_used(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    assert find_fit(model, RopeLengths(model)).quick is not None
    for layer in model.model.layers:
        mlp = layer.mlp
        mlp.forward = lambda x, mlp=mlp: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)) * 1.2
    fit = find_fit(model, RopeLengths(model))
    assert fit.quick is None and not fit.reason


@pytest.mark.parametrize("bits", [16, 8])
def test_products_of_blocks(bits, workspace):
    if not (kernels := library.load(workspace, lambda _: None)):
        pytest.skip("no kernels here")
    torch.manual_seed(1)
    linear = torch.nn.Linear(96, 20)
    linear.weight.data[3, 32:64] = 0  # a group without a scale
    found = BlockedLinear(linear, kernels, bits)
    weight = linear.weight.detach()
    if bits == 16:
        assert torch.equal(found.weight, weight.half().float())
    else:
        most = weight.view(20, 3, 32).abs().amax(-1, keepdim=True).expand(-1, -1, 32).reshape(20, 96)
        assert ((found.weight - weight).abs() <= most / 127 * 0.5001).all()
    assert found.nbytes == 20 * 96 * bits // 8 + (20 * 3 * 4 if bits == 8 else 0)
    x = torch.randn(70, 96)
    out = found(x)
    assert torch.allclose(out, torch.nn.functional.linear(x, found.weight, linear.bias), atol=1e-5)
    for count in (1, 2, 3, 5, 69):  # alone and in company, to the last bit
        assert torch.equal(found(x[:count]), out[:count])
    assert torch.equal(found(x.view(7, 10, 96)[:, :1]), out.view(7, 10, 20)[:, :1])


def test_weights_in_8_bits_answer_alone_as_in_company(folder, workspace):
    decoder = decoder_of(folder, workspace, "int8")
    if not any(isinstance(module, BlockedLinear) for module in decoder.base.modules()):
        pytest.skip("no kernels here")
    want = [alone(decoder, job(prompt)) for prompt in PROMPTS]
    backend = batching(decoder)
    same([answers(backend.submit(job(prompt))) for prompt in PROMPTS], want)
    same(together(backend, [job(prompt) for prompt in PROMPTS]), want)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_without_a_compiler_the_products_are_pytorchs(folder, workspace, monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    lines: list[str] = []
    config = EngineConfig(model_name_or_path=str(folder), cpu_weights="int8")
    decoder = TransformersDecoder(config, workspace, lambda *_: None, lines.append)
    assert any(isinstance(module, HalfLinear) for module in decoder.base.modules())
    assert any("C compiler" in line or "AVX2" in line for line in lines) and any("16 bits" in line for line in lines)
    broken = workspace.cache / "false"
    broken.parent.mkdir(exist_ok=True, parents=True)
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(library.shutil, "which", lambda name: str(broken))
    if library.processor()[1] >= {"avx2", "fma", "f16c"}:
        assert library.load(workspace, lines.append) is None and "it is broken" in lines[-1]
        assert not list((workspace.cache / "cpu").glob("*.part"))


def test_rows_of_a_step_get_what_they_get_alone(folder, workspace):
    """To the last bit: rows of unlike lengths, over pages, more than a sliding window."""
    if folder.name == "moe" or not library.load(workspace, lambda _: None):
        pytest.skip("no step in one call here")
    decoder = decoder_of(folder, workspace, "auto")
    model, cache = decoder.base.eval(), PagedCache(40, 4)
    runner = Runner(
        model, cache, RopeLengths(model), find_fit(model, RopeLengths(model)).form, quick_forward(model), True
    )
    size = model.config.vocab_size
    texts = [[(5 * i + row) % size for i in range(count)] for row, count in enumerate((3, 41, 8, 1, 30, 12, 2))]
    pages, free = [], iter(range(2, 40))
    for text in texts:
        pages.append([next(free) for _ in range(len(text) // 4 + 1)][::-1])  # not one behind the other
        runner.run([Piece(text, 0, pages[-1], None)])
    assert runner.step and runner.step.ready()
    last = [Piece([7 + row], len(text), pages[row], None) for row, text in enumerate(texts)]
    alone_, calls = [runner.run([piece])[0] for piece in last], []
    step = runner.step
    runner.step = lambda *inputs: (calls.append(len(inputs[0])), step(*inputs))[1]
    runner.step.ready = step.ready
    company = runner.run(last)
    assert calls == [len(texts)] and company.shape == (len(texts), size)
    assert all(map(torch.equal, company, alone_))
    for row, piece in enumerate(last):  # and transformers' own
        ids = torch.tensor([texts[row] + piece.tokens])
        with torch.inference_mode():
            want = model(input_ids=ids).logits[0, -1].float()
        assert torch.allclose(company[row], want, atol=1e-4)
