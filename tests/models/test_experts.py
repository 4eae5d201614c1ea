"""4-bit experts against a plain reference: the same codes dequantized, transformers' eager experts, float32, CPU."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from workbench.errors import UserError
from workbench.models.quantized import loader
from workbench.models.quantized.expert_lora import lora_factors, unscaled_factors
from workbench.models.quantized.experts import experts_in_halves, packed_experts_forward
from workbench.models.quantized.layout import expert_parameters, is_fused_experts
from workbench.models.quantized.weights import is_packed, unpacked

SMALL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
MODELS = {
    "deepseek_v2": LATENT | {"n_routed_experts": 8, "num_experts_per_tok": 3, "q_lora_rank": None, "topk_method": "greedy"},
    "deepseek_v3": LATENT | {"n_routed_experts": 8, "num_experts_per_tok": 2, "q_lora_rank": 32, "n_group": 2, "topk_group": 1},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16, "decoder_sparse_step": 1},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "glm4_moe": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16,
                 "n_group": 1, "topk_group": 1},
}  # fmt: skip
NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)


@pytest.fixture(scope="module", autouse=True)
def installed():
    loader.install()


def random_model(kind: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | MODELS[kind])), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """`(4-bit model, reference with the same weights dequantized, its checkpoint folder)`."""
    folder = tmp_path_factory.mktemp(request.param)
    model = random_model(request.param)
    model.save_pretrained(folder)
    packed = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=NF4).eval()
    reference = copy.deepcopy(model).eval()
    weights = {n: unpacked(p) if is_packed(p) else p.data for n, p in packed.named_parameters()}
    reference.load_state_dict(weights, strict=False)
    reference.set_experts_implementation("eager")
    return packed, reference, folder


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def experts_of(model) -> list:
    return [module for module in model.modules() if is_fused_experts(module)]


def test_experts_are_packed_and_nothing_else_that_must_not_be(pair):
    packed, _, _ = pair
    found = experts_of(packed)
    assert found and all(is_packed(m._parameters[n]) for m in found for n in expert_parameters(m))
    assert all(m._parameters[n].data.dtype is torch.uint8 for m in found for n in expert_parameters(m))
    for name, parameter in packed.named_parameters():
        if any(part in name for part in ("norm", "embed", "lm_head")) or name.endswith(
            ("gate.weight", "router.weight")
        ):
            assert not is_packed(parameter), name


def test_logits_equal_the_reference(pair):
    packed, reference, _ = pair
    ids = torch.randint(1, 300, (2, 23), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0  # padding
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in (packed, reference))
    assert relative(ours, theirs) < 1e-5


def test_saved_and_reloaded_in_4_bits_is_identical(pair, tmp_path):
    packed, _, _ = pair
    packed.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert all(is_packed(m._parameters[n]) for m in experts_of(again) for n in expert_parameters(m))
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, packed(ids).logits)


@pytest.mark.parametrize("double", [True, False])
def test_parameters_with_too_many_elements_for_bitsandbytes_are_packed_in_parts(double, monkeypatch):
    value = torch.randn(5, 24, 64, generator=torch.Generator().manual_seed(3))
    options = {"quant_type": "nf4", "quant_storage": torch.uint8, "compress_statistics": double, "bnb_quantized": False}
    whole = loader._pack(value, options)
    monkeypatch.setattr(loader, "_AT_ONCE", 1000)  # 960 elements, so eight parts
    parts = loader._pack(value, options)
    assert type(parts) is type(whole) and torch.equal(parts.data, whole.data)
    ours, theirs = parts.quant_state.as_dict(packed=True), whole.quant_state.as_dict(packed=True)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(unpacked(parts), unpacked(whole))


@pytest.fixture(params=[False, True], ids=["whole", "in halves"])
def in_halves(request, pair):
    if request.param:
        experts_in_halves(pair[0])
        assert all(module.in_halves for module in experts_of(pair[0]))
    yield request.param
    for module in experts_of(pair[0]):
        module.in_halves = False


ROUTINGS = ["random", "one token", "all to one expert", "empty experts"]


@pytest.mark.parametrize("kept", [False, True], ids=["", "gate_up kept"])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("pair", ["deepseek_v2", "mixtral"], indirect=True)
def test_gradients_of_inputs_and_routing_weights(pair, routing, in_halves, kept):
    packed, reference, _ = pair
    ours, theirs = experts_of(packed)[-1], experts_of(reference)[-1]
    ours.keep_gate_up = kept
    count, k = ours.num_experts, 2
    tokens = 1 if routing == "one token" else 19
    generator = torch.Generator().manual_seed(2)
    limit = {"all to one expert": 1, "empty experts": 3}.get(routing, count)
    index = torch.stack([torch.randperm(max(limit, k), generator=generator)[:k] for _ in range(tokens)])
    if routing == "all to one expert":
        index = index[:, :1] * 0 + 1
        k = 1
    hidden = torch.randn(tokens, 64, generator=generator)
    weights = torch.rand(tokens, k, generator=generator)
    grad = torch.randn(tokens, 64, generator=generator)
    results = []
    for forward in (lambda *a: packed_experts_forward(ours, *a), theirs.forward):
        h, w = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
        out = forward(h, index, w)
        out.backward(grad)
        results.append((out.detach(), h.grad, w.grad))
    for ours_value, theirs_value in zip(*results, strict=True):
        assert relative(ours_value, theirs_value) < 1e-5
    ours.keep_gate_up = False
    assert all(p.grad is None for p in ours.parameters())


@pytest.mark.parametrize("pair", ["deepseek_v2", "qwen3_moe"], indirect=True)
def test_lora_gradients_and_50_steps_follow_the_reference(pair):
    from peft import LoraConfig, get_peft_model

    from workbench.models.adapters import lora_targets

    packed, reference, _ = pair
    tuned = []
    for model in (packed, reference):
        model = copy.deepcopy(model) if model is reference else model
        torch.manual_seed(3)
        targets, _ = lora_targets(
            reference, "q_proj,o_proj" if model.config.model_type == "deepseek_v2" else "q_proj,v_proj"
        )
        tuned.append(get_peft_model(model, LoraConfig(r=4, target_modules=targets)))
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randint(1, 300, (2, 16), generator=generator) for _ in range(5)]
    curves = []
    for model in tuned:
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for step in range(50):
            ids = batches[step % 5]
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    assert curves[1][-5:].mean() < curves[1][:5].mean()
    assert relative(*curves) < 1e-5
    tuned[0].unload()


def test_every_linear_layer_but_no_router_gets_lora(pair):
    from workbench.models.adapters import linear_modules

    leaves = linear_modules(pair[0])
    assert "gate" not in leaves and "lm_head" not in leaves and "o_proj" in leaves


def test_an_unknown_layout_is_one_sentence():
    class Odd(torch.nn.Module):
        _apply_gate, has_gate, is_transposed = None, True, True

        def __init__(self):
            super().__init__()
            self.gate_up_proj = torch.nn.Parameter(torch.zeros(2, 8, 4))
            self.down_proj = torch.nn.Parameter(torch.zeros(2, 4, 4))

    with pytest.raises(UserError, match="transposed weights, gate_up_proj of a size"):
        loader.check_layout("layers.0", Odd())


def test_real_rotary_equals_the_complex_one():
    from workbench.models.rotary import complex_rotation, rotate_pairs

    generator = torch.Generator().manual_seed(5)
    q, k = torch.randn(2, 4, 7, 16, generator=generator), torch.randn(2, 1, 7, 16, generator=generator)
    angles = torch.polar(torch.full((2, 7, 8), 1.3), torch.randn(2, 7, 8, generator=generator))
    for ours, theirs in zip(
        rotate_pairs(q, k, torch.view_as_real(angles)), complex_rotation(q, k, angles), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("pair", ["deepseek_v2"], indirect=True)
def test_compiled_layers_give_the_same_loss_and_gradients(pair):
    from peft import LoraConfig, get_peft_model

    from workbench.train.fast.compiled import compile_layers

    packed, _, folder = pair
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=NF4)
    ids = torch.randint(1, 300, (2, 16), generator=torch.Generator().manual_seed(6))
    grads = []
    for model in (packed, fresh):
        torch.manual_seed(7)
        tuned = get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "kv_b_proj"], init_lora_weights=False)
        ).train()
        if model is fresh:
            assert compile_layers(tuned.get_base_model()) == 3
        tuned(input_ids=ids, labels=ids).loss.backward()
        grads.append({n: p.grad for n, p in tuned.named_parameters() if p.grad is not None})
        if model is packed:
            tuned.unload()
    packed_names, compiled_names = (sorted(g) for g in grads)
    assert packed_names == compiled_names and packed_names
    for name in packed_names:
        assert relative(grads[1][name], grads[0][name]) < 1e-4, name


RUN = {"model_name_or_path": "x", "dataset": "x", "lora_rank": 4, "lora_target": "all"}


def with_lora(model, **changes):
    """PEFT's LoRA on every linear layer and all experts, with B that is not zero."""
    from workbench.config.options import RunConfig
    from workbench.models.adapters import add_lora

    torch.manual_seed(11)
    tuned = add_lora(model, RunConfig(**(RUN | changes)), print)
    generator = torch.Generator().manual_seed(12)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return tuned


@pytest.mark.parametrize("pair", ["deepseek_v2", "qwen3_moe", "mixtral"], indirect=True)
def test_lora_on_packed_experts_is_what_peft_does_on_unpacked_ones(pair, tmp_path):
    from peft import PeftModel

    from workbench.models.adapters import lora_targets

    packed, reference, _ = pair
    ids = torch.randint(1, 300, (2, 17), generator=torch.Generator().manual_seed(13))
    results = []
    for model in (packed, copy.deepcopy(reference)):
        tuned = with_lora(model).train()
        assert {"experts.gate_up_proj", "experts.down_proj"} <= set(tuned.peft_config["default"].target_parameters)
        loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        grads = {n: p.grad for n, p in tuned.named_parameters() if p.requires_grad}
        wanted, experts = lora_targets(reference, "all")
        assert len(grads) == 2 * (len(wanted) + len(experts))
        results.append((loss.item(), grads))
        if model is packed:
            tuned.save_pretrained(tmp_path / "adapter")
            with torch.no_grad():
                ours = tuned(ids).logits
                with tuned.disable_adapter():
                    plain = tuned(ids).logits
            base = tuned.unload()
            with torch.no_grad():
                assert torch.equal(base(ids).logits, plain)
    (ours_loss, ours_grads), (theirs_loss, theirs_grads) = results
    assert abs(ours_loss - theirs_loss) < 1e-5 and ours_grads.keys() == theirs_grads.keys()
    for name, grad in theirs_grads.items():
        assert relative(ours_grads[name], grad) < 2e-5, name
    assert relative(plain, ours) > 1e-3
    plainly_loaded = PeftModel.from_pretrained(copy.deepcopy(reference), tmp_path / "adapter").eval()
    reloaded = PeftModel.from_pretrained(packed, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert relative(plainly_loaded(ids).logits, ours) < 1e-5
        assert torch.equal(reloaded(ids).logits, ours)
    reloaded.unload()


@pytest.mark.parametrize("pair", ["deepseek_v2"], indirect=True)
def test_two_adapters_on_experts_add_up_and_merging_says_why_not(pair):
    from peft import LoraConfig

    packed, _, _ = pair
    tuned = with_lora(packed, lora_target="experts").eval()
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        one = tuned(ids).logits
        wanted = 2.0  # alpha is twice the rank where it is not given
        for module, name in ((m, n) for m in experts_of(tuned) for n in expert_parameters(m)):
            (a, b), scale = unscaled_factors(module, name)
            scaled = lora_factors(module, name)
            assert scale == wanted and torch.equal(a, scaled[0]) and torch.equal(b * scale, scaled[1])
        tuned.add_adapter("second", LoraConfig(r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"]))
        assert torch.equal(tuned(ids).logits, one)
        tuned.base_model.set_adapter(["default", "second"])
        assert relative(tuned(ids).logits, one) < 1e-6  # the second one's B is zero
    with pytest.raises(UserError, match="cannot be merged into 4-bit experts"):
        tuned.merge_and_unload()
    tuned.unload()


@pytest.mark.parametrize("pair", ["deepseek_v2"], indirect=True)
def test_which_experts_lora_target_means(pair):
    from workbench.config.options import RunConfig
    from workbench.models.adapters import add_lora, lora_targets

    packed, _, _ = pair
    everything = [f"model.layers.{i}.mlp.experts.{p}" for i in (1, 2) for p in ("gate_up_proj", "down_proj")]
    assert lora_targets(packed, "all")[1] == everything
    assert lora_targets(packed, "q_proj") == ([f"model.layers.{i}.self_attn.q_proj" for i in range(3)], [])
    assert lora_targets(packed, "experts") == ([], sorted(everything))
    assert lora_targets(packed, "experts.down_proj") == ([], [n for n in everything if n.endswith("down_proj")])
    modules, parameters = lora_targets(packed, "down_proj")
    assert len(modules) == 3 and len(parameters) == 2  # shared and dense layers, and the routed experts
    with pytest.raises(UserError, match=r"v_proj matches no module.*It has: down_proj, gate_proj, gate_up_proj"):
        lora_targets(packed, "v_proj")
    with pytest.raises(UserError, match="works without lora_dropout only"):
        with_lora(packed, lora_target="experts", lora_dropout=0.1)
    said = []
    tuned = add_lora(packed, RunConfig(**RUN, lora_dropout=0.1), said.append)
    assert "these get no adapters" in said[0] and not tuned.peft_config["default"].target_parameters
    tuned.unload()


@pytest.mark.parametrize("pair", ["deepseek_v2"], indirect=True)
def test_only_one_matrix_of_the_experts(pair, in_halves):
    packed, reference, _ = pair
    ids = torch.arange(1, 20)[None]
    for target in ("experts.gate_up_proj", "experts.down_proj"):
        losses, grads = [], []
        for model in (packed, copy.deepcopy(reference)):
            tuned = with_lora(model, lora_target=target).train()
            loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
            grads.append([p.grad for p in tuned.parameters() if p.requires_grad])
            tuned.unload()
        assert abs(losses[0] - losses[1]) < 1e-5
        assert all(relative(a, b) < 2e-5 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("pair", ["deepseek_v2"], indirect=True)
def test_compiled_layers_that_store_less_or_more_give_the_same_gradients(pair):
    """LoRA everywhere, 4-bit layers as single operators: plain, as operators, computed again, kept."""
    from workbench.models.quantized.linears import use_packed_linears
    from workbench.train.fast.compiled import compile_layers, keep_layers

    _, _, folder = pair
    ids = torch.randint(1, 300, (2, 16), generator=torch.Generator().manual_seed(6))
    results, stored = {}, {}
    for kind in ("plain", "operators", "computed again", "kept"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=NF4)
        tuned = with_lora(model).train()
        if kind != "plain":
            assert use_packed_linears(tuned) == (21, 0)
        if kind in ("computed again", "kept"):
            assert compile_layers(tuned.get_base_model()) == 3
        if kind == "kept":
            keep_layers(tuned.get_base_model(), 3)
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(0 if isinstance(t, torch.nn.Parameter) else t.numel()) or t, lambda t: t
        )
        with hooks:
            loss = tuned(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        stored[kind] = sum(sizes)
        results[kind] = {n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}
    for kind, grads in results.items():
        assert grads.keys() == results["plain"].keys()
        assert max(relative(grads[n], g) for n, g in results["plain"].items()) < 1e-5, kind
    assert stored["computed again"] < 0.6 * stored["kept"] < stored["plain"]
