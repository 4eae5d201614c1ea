"""What is told of a model from its config alone, against what transformers builds and the engine keeps."""

import copy

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.models.test_batching import KINDS, SHAPE
from workbench.engine.batching.cache import PagedCache, View
from workbench.models import deepseek_moe
from workbench.models.adapters import lora_targets
from workbench.models.anatomy import bundled, cache, rope
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.anatomy.sizes import FAMILIES, read_sizes

deepseek_moe.install()
BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
# the families that no bundled config has, and other settings of those that have one
OTHERS = {
    "mistral": {"head_dim": 8},
    "qwen2": {},
    "glm4": {"head_dim": 16, "attention_bias": True},
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "num_hidden_layers": 7},
    "llama": BIASED,
    "qwen3": BIASED | {"head_dim": 32},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1],
        "decoder_sparse_step": 2, "num_hidden_layers": 5, "head_dim": 16,
    },
    "deepseek_v2": {**KINDS["deepseek_v2"][1], "q_lora_rank": 24, "attention_bias": True},
}  # fmt: skip


def built(config: dict):
    """The model without its numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(config)))


def shapes(model) -> dict:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def small(kind: str, changes: dict) -> dict:
    return {"model_type": kind, "vocab_size": 300, **SHAPE, **changes}


@pytest.mark.parametrize("name", bundled.ORDER)
def test_weights_of_every_bundled_model_are_those_that_transformers_builds(name):
    config = bundled.configs()[name]
    model, anatomy = built(config), Anatomy(read_sizes(config).sizes)
    assert {full: weight.shape for full, weight in anatomy.weights()} == shapes(model)
    assert anatomy.total == sum(parameter.numel() for parameter in model.parameters())
    assert sum(anatomy.by_component().values()) == anatomy.total


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_of_other_architectures_and_settings(kind):
    config = small(kind, OTHERS[kind])
    reading = read_sizes(config)
    assert {full: weight.shape for full, weight in Anatomy(reading.sizes).weights()} == shapes(built(config))


def test_every_architecture_is_compared():
    assert {config["model_type"] for config in bundled.configs().values()} | set(OTHERS) == set(FAMILIES)


@pytest.mark.parametrize("name", ["DeepSeek-V2", "DeepSeek-V2-Lite", "gpt-oss-20b", "Phi-3.5-mini", "Qwen3-30B-A3B"])
def test_lora_targets_are_those_of_a_run(name):
    config = dict(bundled.configs()[name]) | {"num_hidden_layers": 2}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:2]
    model = built(config)
    modules, experts = lora_targets(model, "all")
    expected: dict = {}
    for full in modules:
        weight = model.get_submodule(full).weight
        key = full.rpartition(".")[2], tuple(weight.shape), 0
        expected[key] = expected.get(key, 0) + 1
    for full in experts:
        number, *sides = model.get_parameter(full).shape
        sides = sides[::-1] if name == "gpt-oss-20b" else sides
        key = ".".join(full.split(".")[-2:]), tuple(sides), number
        expected[key] = expected.get(key, 0) + 1
    found: dict = {}
    for one in Anatomy(read_sizes(config).sizes).linears():
        key = one.name, (one.out_features, one.in_features), one.experts
        found[key] = found.get(key, 0) + one.count
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_is_as_large_as_the_engines_own(kind):
    name, changes = KINDS[kind]
    model = AutoModelForCausalLM.from_config(
        getattr(transformers, f"{name}Config")(vocab_size=300, **(SHAPE | changes))
    )
    sizes = read_sizes(small(model.config.model_type, {k: v for k, v in model.config.to_dict().items() if v is not None}
                             | {k: v for k, v in changes.items() if v is None})).sizes  # fmt: skip
    pages = PagedCache(8, 4)
    pages.view = View(torch.arange(8, 12), torch.tensor([[2]]))
    places = torch.arange(4)
    with torch.no_grad():
        model.eval()(
            input_ids=places[None],
            position_ids=places[None],
            attention_mask=torch.zeros(1, 1, 4, 4),
            past_key_values=pages,
            use_cache=True,
        )
    assert pages.bytes_per_token == cache.cache_bytes(sizes, 1, windows=False, bits=32)  # float32 here


@pytest.mark.parametrize("name", bundled.ORDER)
def test_turns_are_those_of_transformers(name):
    config = bundled.configs()[name]
    sizes = read_sizes(config).sizes
    one, _ = rope.read_rope(config, sizes)
    kinds = {"linear": 4.0, "dynamic": 4.0, "yarn": 4.0, "llama3": 8.0} | {one.kind: one.factor}
    kinds.pop("default", None)
    for kind, factor in kinds.items():
        theirs = AutoConfig.for_model(**copy.deepcopy(config))
        theirs.head_dim = sizes.latent.rope if sizes.latent else sizes.head
        if kind != one.kind:
            theirs.rope_parameters = {
                "rope_type": kind, "rope_theta": one.theta, "factor": factor, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": one.original,
                "partial_rotary_factor": one.dims / theirs.head_dim,
            }  # fmt: skip
        length = 2 * one.context
        turns, temperature = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"), seq_len=length)
        assert rope.scaled(one, kind, factor, length) == pytest.approx(turns.tolist(), rel=1e-4), kind
        if kind == one.kind:
            assert rope.attention_factor(one) == pytest.approx(temperature)
