"""Estimates against what torch, bitsandbytes and PEFT do: bytes of packed weights, trained parameters, tensors that
autograd keeps."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from workbench.config.run_config import validated
from workbench.models.anatomy import bundled
from workbench.models.anatomy.shapes import Anatomy, Weight
from workbench.models.anatomy.sizes import read_sizes
from workbench.models.cost.adapters import trained
from workbench.models.cost.layers import How, layer_cost
from workbench.models.cost.split import split
from workbench.models.cost.weights import Form, Loaded, packed_bytes
from workbench.train.float32_weights import Float32Weights

SIZES = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 1024, "moe_intermediate_size": 128,
    "num_experts": 8, "num_experts_per_tok": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS = ["llama", "qwen3", "qwen3_moe"]


def made(kind: str) -> tuple[torch.nn.Module, Anatomy]:
    """A random model on the CPU, and what its config tells."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SIZES)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    sizes = read_sizes(config.to_dict() | {"model_type": kind}).sizes
    assert sizes is not None
    return model, Anatomy(sizes)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(256, 512), (64, 96, 128)])
def test_packed_weights_are_as_large_as_bitsandbytes_makes_them(shape, double):
    import bitsandbytes as bnb

    packed = bnb.nn.Params4bit(
        torch.randn(shape), requires_grad=False, compress_statistics=double, quant_type="nf4"
    ).to("cpu")
    state = packed.quant_state
    tensors = [state.absmax, state.code]
    if double:
        tensors += [state.state2.absmax, state.state2.code, state.offset]
    data, constants = packed_bytes(Weight("w.weight", "mlp", shape, linear=True), Form(4, double))
    assert data == packed.data.nbytes
    assert constants == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["all", "q_proj,o_proj"])
def test_trained_parameters_are_pefts(kind, target):
    from workbench.models.adapters import add_lora

    model, anatomy = made(kind)
    config = validated({"model_name_or_path": "m", "dataset": "d", "lora_rank": 4, "lora_target": target})
    adapted = add_lora(model, config, print)
    assert trained(anatomy, config).adapters == adapted.get_nb_trainable_parameters()[0]
    plain = sum(p.nbytes for name, p in adapted.named_parameters() if "lora_" not in name)
    assert Loaded(anatomy, Form()).bytes.total == plain


@pytest.mark.parametrize(
    "options",
    [
        {"finetuning_type": "oft"},
        {"finetuning_type": "oft", "oft_rank": 6, "oft_target": "q_proj,o_proj"},  # 6 divides no width
        {"finetuning_type": "oft", "oft_block_size": 24},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        {"finetuning_type": "freeze", "freeze_trainable_layers": -1, "freeze_trainable_modules": "self_attn",
         "freeze_extra_modules": "embed_tokens,norm"},
        {"use_llama_pro": True, "freeze_trainable_layers": 1},
        {"pissa_init": True, "lora_rank": 4},
        {"use_dora": True, "lora_rank": 4},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_counted_as_it_is_made(kind, options, tmp_path):
    from workbench.models.tuning import tuned
    from workbench.storage.workspace import Workspace

    model, anatomy = made(kind)
    config = validated({"model_name_or_path": "m", "dataset": "d"} | options)
    model = tuned(model.float(), config, Workspace(tmp_path), tmp_path, lambda line: None)
    expected = trained(anatomy, config)
    assert expected.adapters + expected.modules == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("optimizer", ["galore", "muon", "adam_mini", "badam"])
def test_optimizers_are_smaller_than_adamw(optimizer):
    model, anatomy = made("llama")
    config = validated({"model_name_or_path": "m", "dataset": "d", "finetuning_type": "full"})
    own = config.model_copy(update={f"use_{optimizer}": True, "galore_rank": 8})
    learned = trained(anatomy, own)
    assert 0 < learned.state_of(own, 4) < trained(anatomy, config).state_of(config, 4)
    if optimizer == "muon":
        from workbench.train.optimizers import Together

        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        rest = [p for n, p in model.named_parameters() if not any(p is m for m in matrices)]
        together = Together([torch.optim.Muon(matrices), torch.optim.AdamW(rest)])
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        together.step()
        kept = sum(t.nbytes for state in together.state.values() for t in state.values() if t.dim())
        alone = own.model_copy(update={"pure_bf16": True})
        assert learned.state_of(alone, 2) == pytest.approx(kept, rel=0.01)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_float32_copies_of_weights_are_part_of_the_state(optim):
    model, anatomy = made("llama")
    assert next(model.parameters()).dtype is torch.bfloat16
    config = validated({"model_name_or_path": "m", "dataset": "d", "finetuning_type": "full", "optim": optim})
    parameters = list(model.requires_grad_(True).parameters())
    made_ = torch.optim.AdamW(parameters) if optim == "adamw_torch" else torch.optim.SGD(parameters)
    optimizer = Float32Weights(made_)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = sum(copied.nbytes for copied in optimizer.copies)
    kept += sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t is not None and t.dim())
    assert trained(anatomy, config).state_of(config, 2) == kept


@pytest.mark.parametrize("what", ["frozen", "lora", "full", "oft"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_keeps_what_autograd_was_seen_to_keep(kind, what):
    """Of a layer in bfloat16; what does not grow with the tokens (factors cast to 16 bits), and rotary angles, aside."""
    from workbench.models.adapters import add_lora

    model, anatomy = made(kind)
    tokens, values = 61, {"model_name_or_path": "m", "dataset": "d", "lora_rank": 4, "lora_target": "all"}
    if what == "full":
        values["finetuning_type"] = "full"
        model.requires_grad_(True)
    config = validated(values)
    if what == "oft":
        from workbench.models.adapters import add_oft

        config = config.model_copy(update={"finetuning_type": "oft", "oft_target": "q_proj,v_proj,o_proj"})
        add_oft(model, config, print)
        for name, parameter in model.named_parameters():
            if "oft_" in name:
                parameter.data = parameter.data.float()
    if what == "lora":
        if kind == "qwen3_moe":  # PEFT adds adapters of unpacked experts to all of their weights
            config = config.model_copy(update={"lora_target": "q_proj,v_proj,o_proj"})
        add_lora(model, config, print)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []
    inputs = torch.randn(1, tokens, 256, dtype=torch.bfloat16, requires_grad=True)
    places = torch.arange(tokens)[None]
    angles = model.model.rotary_emb(inputs, places)
    others = {t.untyped_storage().data_ptr() for t in (*_tensors(model), *angles)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        grows = any(side in (tokens, 2 * tokens) for side in tensor.shape)
        if storage.data_ptr() not in others and grows:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no later tensor gets its place
        return tensor

    (layer,) = anatomy.layers
    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=what in ("lora", "oft"), cache_enabled=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        model.model.layers[0](inputs, position_embeddings=angles, attention_mask=None, position_ids=places)
    adapted = trained(anatomy, config).targets.of_layer(0) if what in ("lora", "oft") else set()
    how = How(rank=0 if what == "oft" else 4, mixed=True, full=what == "full", turned=what == "oft")
    cost = layer_cost(anatomy.sizes, layer, adapted, how, tokens)
    assert cost.input == inputs.nbytes
    assert cost.kept == pytest.approx(sum(kept.values()), rel=0.03)


def _tensors(model) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


@pytest.mark.parametrize("kept", [False, True], ids=["", "packed before"])
@pytest.mark.parametrize(("name", "bits"), [("Llama-3-8B", 0), ("Qwen3-8B", 4), ("DeepSeek-V2", 4)])
def test_several_gpus_get_the_layers_that_transformers_gives_them(name, bits, kept):
    """`device_map: auto` of a model on the meta device, for GPUs that are not here."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations.accelerate import _get_device_map

    if kept and not bits:
        pytest.skip("nothing is packed")
    from workbench.models.quantized import loader

    loader.install()
    values = bundled.configs()[name] | ({"num_hidden_layers": 9} if name == "DeepSeek-V2" else {})
    loaded = Loaded(Anatomy(read_sizes(values).sizes), Form(bits))
    config = AutoConfig.for_model(values["model_type"], **{k: v for k, v in values.items() if k != "model_type"})
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    quantizer = None
    if bits:
        options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        quantizer = loader.ExpertsQuantizer(options, pre_quantized=kept)
        model._weight_conversions = []
        quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    for cards in (2, 3):
        memory = {**dict.fromkeys(range(cards), 80 << 30), "cpu": 1 << 40}
        places = _get_device_map(model, "auto", memory, quantizer)
        layers = Counter(place for name, place in places.items() if ".layers." in name)
        assert [part.layers for part in split(loaded, cards)] == [layers[number] for number in range(cards)]
