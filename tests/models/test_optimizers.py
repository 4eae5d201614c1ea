"""Optimizers with options of their own: the losses of the same optimizer set up by hand, resumed, or a sentence.

The packages of GaLore, APOLLO, BAdam and Adam-mini are in requirements-dev.txt.
"""

import copy
import importlib.util

import pytest
import torch

from tests.models.test_tuning import lora
from tests.trained import by_hand, losses, ready
from workbench.config.methods import OPTIMIZERS
from workbench.config.run_config import validated
from workbench.data.preflight import check_names
from workbench.errors import UserError
from workbench.train import trainer as trainer_module
from workbench.train.fast.strategy import PlainStep
from workbench.train.optimizers import Together, target_parameters

FULL = {"finetuning_type": "full", "learning_rate": 1e-3}


def same(ours, plain, within=1e-5):
    assert len(ours) == len(plain) and ours[-1] < ours[0]
    assert torch.allclose(ours, plain, rtol=0, atol=within), (ours - plain).abs().max()


def split(model) -> tuple[list, list]:
    """The matrices of linear layers but the head, and the rest."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    linear = [p for name, p in trained if "_proj." in name]
    return linear, [p for name, p in trained if "_proj." not in name]


@pytest.mark.parametrize("by_layer", [False, True])
def test_galore_is_that_of_its_authors(by_layer, values, workspace, tmp_path):
    galore = pytest.importorskip("galore_torch")
    options = {"use_galore": True, "galore_rank": 4, "galore_update_interval": 5, "galore_scale": 0.5}
    options |= {"max_grad_norm": 0.0}
    trainer, rows, run = ready(values, workspace, **FULL, **options, galore_layerwise=by_layer)
    assert (type(trainer.step_strategy) is PlainStep) == by_layer == bool(run.state().warning)
    trainer.train()

    def by_authors(model):
        linear, rest = split(model)
        low = {"params": linear, "rank": 4, "update_proj_gap": 5, "scale": 0.5, "proj_type": "std"}
        return galore.GaLoreAdamW([{"params": rest}, low], lr=1e-3, eps=1e-8)

    plain = by_hand(values, rows, tmp_path / "plain", lambda base: base, by_authors, max_grad_norm=0.0)
    same(losses(trainer), plain)


@pytest.mark.parametrize("projection", ["random", "svd"])
def test_apollo_is_that_of_its_authors(projection, values, workspace, tmp_path):
    apollo = pytest.importorskip("apollo_torch")
    options = {"use_apollo": True, "apollo_rank": 4, "apollo_update_interval": 5, "apollo_scale": 2.0}
    trainer, rows, _ = ready(values, workspace, **FULL, **options, apollo_proj=projection, max_grad_norm=0.0)
    trainer.train()

    def by_authors(model):
        linear, rest = split(model)
        low = {"params": linear, "rank": 4, "update_proj_gap": 5, "scale": 2.0, "proj_type": "std", "proj": projection}
        return apollo.APOLLOAdamW([{"params": rest}, low | {"scale_type": "channel"}], lr=1e-3, eps=1e-8)

    plain = by_hand(values, rows, tmp_path / "plain", lambda base: base, by_authors, max_grad_norm=0.0)
    same(losses(trainer), plain)


def only_mlps(base):
    for name, parameter in base.named_parameters():
        parameter.requires_grad_("layers.1.mlp." in name)
    return base


@pytest.mark.parametrize("method", ["freeze", "lora"])
def test_muon_is_pytorchs(method, values, workspace, tmp_path, monkeypatch):
    # on padded rows, as Muon computes in bfloat16, which makes roundings large
    monkeypatch.setattr(trainer_module, "why_padded", lambda *_: "the test wants it")
    options = {"finetuning_type": method, "freeze_trainable_layers": 1, "freeze_trainable_modules": "mlp"}
    options |= {"use_muon": True, "weight_decay": 0.1, "learning_rate": 1e-3, "max_grad_norm": 0.0}
    trainer, rows, _ = ready(values, workspace, **options)
    trainer.train()

    def muon(model):
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.Muon(trained, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")

    adapt = lora if method == "lora" else only_mlps
    same(losses(trainer), by_hand(values, rows, tmp_path / "plain", adapt, muon, max_grad_norm=0.0), 1e-4)


def test_muon_leaves_embeddings_head_and_norms_to_adamw(values, workspace):
    trainer, _, _ = ready(values, workspace, **FULL, use_muon=True)
    together = trainer.create_optimizer()
    muon, adamw = together.parts
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for group in adamw.param_groups for p in group["params"]} == {
        "embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm",
    }  # fmt: skip
    assert all(names[id(p)].endswith("_proj.weight") for group in muon.param_groups for p in group["params"])
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_several_optimizers_step_and_are_kept_as_one():
    torch.manual_seed(0)

    def made():
        torch.manual_seed(1)
        parts = [torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)]
        return parts, Together(
            [torch.optim.Muon(parts[0].parameters(), lr=0.1), torch.optim.AdamW(parts[1].parameters())]
        )

    def step(parts, optimizer):
        parts[1](parts[0](torch.ones(2, 4))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    parts, optimizer = made()
    assert not optimizer.state
    for group in optimizer.param_groups:
        group["lr"] = 0.05  # as a scheduler sets it
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.05}
    step(parts, optimizer)
    assert len(optimizer.state) == 3
    others, other = made()
    for mine, its in zip(parts, others, strict=True):
        its.load_state_dict(mine.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {group["lr"] for part in other.parts for group in part.param_groups} == {0.05}
    step(parts, optimizer)
    step(others, other)
    for mine, its in zip(parts, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), its.parameters(), strict=True))


OWN = {
    "galore": {"galore_rank": 4, "galore_update_interval": 3},
    "apollo": {"apollo_rank": 4, "apollo_update_interval": 3},
    "badam": {"badam_switch_interval": 3},
    "adam_mini": {},
    "muon": {},
}


@pytest.mark.parametrize("name", OWN)
def test_a_run_learns_and_goes_on_from_a_checkpoint(name, values, workspace):
    if OPTIMIZERS[name][0]:
        pytest.importorskip(OPTIMIZERS[name][0])
    options = FULL | {f"use_{name}": True} | OWN[name]
    whole, _, _ = ready(values, workspace, **options)
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    first, _, run = ready(values, workspace, **options, save_strategy="steps", save_steps=9)
    first.args.max_steps = 9
    first.train()
    again, _, _ = ready(values, workspace, **options)
    again.train(resume_from_checkpoint=str(run.path / "checkpoint-9"))
    # BAdam's state is not part of its checkpoints: it begins anew with its first block
    within = 0.05 if name == "badam" else 1e-4
    assert torch.allclose(losses(again)[-11:], losses(whole)[-11:], rtol=0, atol=within)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name][0]])
def test_a_missing_package_is_told_before_the_run(name, values, workspace, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError) as caught:
        check_names(validated(values | FULL | {f"use_{name}": True}), workspace)
    assert caught.value.message.code == "optimizer_missing"
    assert f"pip install {OPTIMIZERS[name][1]}" in str(caught.value)


def test_names_of_layers_that_are_not_there(values, workspace):
    trainer, _, _ = ready(values, workspace, **FULL)
    with pytest.raises(UserError) as caught:
        target_parameters(trainer.model, "q_porj", "galore_target")
    assert caught.value.message.code == "optimizer_target"
    some = target_parameters(trainer.model, "q_proj,mlp", "galore_target")
    assert len(some) == 2 * 4


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"use_galore": True, "use_muon": True, "finetuning_type": "full"}, "optimizers_several"),
        ({"use_muon": True, "loraplus_lr_ratio": 16}, "optimizer_loraplus"),
        ({"use_galore": True}, "optimizer_method"),
        ({"use_badam": True, "finetuning_type": "oft"}, "optimizer_method"),
        ({"use_apollo": True, "finetuning_type": "full", "optim": "adamw_8bit"}, "optimizer_base"),
        ({"use_muon": True, "optim": "sgd"}, "optimizer_base"),
        ({"use_galore": True, "finetuning_type": "full", "galore_layerwise": True, "gradient_accumulation_steps": 2}, "layerwise_accumulation"),
        ({"use_apollo": True, "finetuning_type": "full", "apollo_layerwise": True, "fp16": True}, "layerwise_fp16"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(options, code, values):
    with pytest.raises(UserError) as caught:
        validated(values | options)
    (problem,) = caught.value.message.values["problems"]
    assert problem.code == code
