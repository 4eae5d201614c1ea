"""Estimates against what torch, bitsandbytes and PEFT do: bytes of packed weights, trained parameters, tensors that
autograd keeps."""

import json
from collections.abc import Iterator

import pytest
import torch

from tests.tiny import make_tiny_data, make_tiny_model
from workbench.config.run_config import validated
from workbench.models.anatomy.shapes import Anatomy, Weight
from workbench.models.anatomy.sizes import read_sizes
from workbench.models.cost.adapters import trained
from workbench.models.cost.layers import How, layer_cost
from workbench.models.cost.weights import Form, Loaded, packed_bytes

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


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_keeps_what_autograd_was_seen_to_keep(kind):
    """Of a plain layer in bfloat16 whose weights are frozen, tokens and rotary angles aside."""
    model, anatomy = made(kind)
    tokens = 64
    kept: dict[int, int] = {}
    inputs = torch.randn(1, tokens, 256, dtype=torch.bfloat16, requires_grad=True)
    places = torch.arange(tokens)[None]
    angles = model.model.rotary_emb(inputs, places)
    others = {t.untyped_storage().data_ptr() for t in (*_tensors(model), *angles)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in others:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no later tensor gets its place
        return tensor

    alive: list[torch.Tensor] = []
    (layer,) = anatomy.layers
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](inputs, position_embeddings=angles, attention_mask=None, position_ids=places)
    cost = layer_cost(anatomy.sizes, layer, set(), How(), tokens)
    assert cost.input == inputs.nbytes
    assert cost.kept == pytest.approx(sum(kept.values()), rel=0.02)


def _tensors(model) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


@pytest.mark.process
def test_a_run_keeps_its_estimate_and_what_was_measured(tmp_path):
    from workbench.runs.run import create_run
    from workbench.storage.workspace import Workspace
    from workbench.train.estimates import history, record
    from workbench.train.supervise import supervise

    workspace = Workspace(tmp_path / "w").create()
    config = validated(
        {
            "model_name_or_path": str(make_tiny_model(tmp_path / "model")),
            "dataset": "small", "dataset_dir": str(make_tiny_data(tmp_path / "data")), "max_steps": 2, "cutoff_len": 64,
            "logging_steps": 1, "save_strategy": "no", "plot_loss": False, "devices": "cpu",
        }
    )  # fmt: skip
    run = create_run(workspace, config)
    assert supervise(run, config, workspace, echo=False) == 0
    kept = record.read(run)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert kept["measured"] == max(row["peak_memory"] for row in rows)
    assert kept["estimate"] == pytest.approx(kept["measured"], rel=0.15)
    (one,) = history.read(workspace)
    assert (one.run, one.device, one.measured) == (run.id, "CPU", kept["measured"])
    assert one.estimate <= kept["estimate"]  # rows are counted by then
