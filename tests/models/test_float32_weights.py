"""Float32 copies of bfloat16 weights: what an optimizer does with float32 weights, whole and in parts, saved, loaded."""

import copy

import pytest
import torch

from tests.trained import STEPS as STEPS_OF_A_RUN
from tests.trained import ready
from workbench.config.conflicts import keeps_float32
from workbench.config.run_config import validated
from workbench.train import float32_weights
from workbench.train.float32_weights import Float32Weights
from workbench.train.optimizers import Together

SHAPES = [(64, 48), (48,), (32, 64), (16, 16), (7,)]
STEPS = 12


def weights(dtype) -> list[torch.nn.Parameter]:
    torch.manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape).to(torch.bfloat16).to(dtype)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in SHAPES]


def groups(parameters) -> list[dict]:
    return [{"params": parameters[:3], "weight_decay": 0.1}, {"params": parameters[3:], "weight_decay": 0.0}]


def step(optimizer, parameters, number: int) -> None:
    for parameter, gradient in zip(parameters, gradients(number), strict=True):
        parameter.grad = gradient.to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


def muon(parameters):
    matrices = [p for p in parameters if p.ndim == 2]
    rest = [p for p in parameters if p.ndim != 2]
    return Together([torch.optim.Muon(matrices, lr=1e-5, weight_decay=0.1), torch.optim.AdamW(rest, lr=1e-5)])


def galore(parameters):
    cls = pytest.importorskip("galore_torch").GaLoreAdamW
    low = {"params": parameters[:1], "rank": 4, "update_proj_gap": 5, "scale": 0.5, "proj_type": "std"}
    return cls([{"params": parameters[1:]}, low], lr=1e-5, no_deprecation_warning=True)


def apollo(parameters):
    cls = pytest.importorskip("apollo_torch").APOLLOAdamW
    low = {"params": parameters[:1], "rank": 4, "proj": "random", "update_proj_gap": 5, "scale": 2.0}
    low |= {"scale_type": "channel", "proj_type": "std", "scale_front": False}
    return cls([{"params": parameters[1:]}, low], lr=1e-5)


def adam_mini(parameters):
    cls = pytest.importorskip("adam_mini").Adam_mini
    named = [(f"{n}.mlp.up_proj.weight" if p.ndim == 2 else f"{n}.bias", p) for n, p in enumerate(parameters)]
    return cls(named_parameters=named, lr=1e-5, weight_decay=0.1, dim=64, n_heads=4, verbose=False)


MAKERS = {
    "adamw": lambda parameters: torch.optim.AdamW(groups(parameters), lr=1e-5),
    "adamw fused": lambda parameters: torch.optim.AdamW(groups(parameters), lr=1e-5, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(groups(parameters), lr=1e-5, momentum=0.9),
    "adagrad": lambda parameters: torch.optim.Adagrad(groups(parameters), lr=1e-5),
    "rmsprop": lambda parameters: torch.optim.RMSprop(groups(parameters), lr=1e-5),
    "adafactor": lambda parameters: torch.optim.Adafactor(groups(parameters), lr=1e-5),
    "muon": muon,
    "galore": galore,
    "apollo": apollo,
    "adam_mini": adam_mini,
}  # fmt: skip


@pytest.mark.parametrize("at_once", [1 << 28, 4096])
@pytest.mark.parametrize("name", MAKERS)
def test_copies_are_what_float32_weights_would_be(name, at_once, monkeypatch):
    monkeypatch.setattr(float32_weights, "_AT_ONCE", at_once)
    half, full, alone = weights(torch.bfloat16), weights(torch.float32), weights(torch.bfloat16)
    wrapped, plain, rounding = Float32Weights(MAKERS[name](half)), MAKERS[name](full), MAKERS[name](alone)
    before = [p.detach().clone() for p in full]
    for number in range(STEPS):
        step(wrapped, half, number)
        step(plain, full, number)
        step(rounding, alone, number)
    copies = {copied.shape: copied for copied in wrapped.copies}  # Muon's groups have another order
    for float32, weight, first in zip(full, half, before, strict=True):
        copied = copies[float32.shape]
        assert torch.equal(copied, float32) and not torch.equal(float32, first)
        assert torch.equal(weight, copied.to(torch.bfloat16)) and weight.dtype is torch.bfloat16
        assert copied.grad is None
    # what this is for: the larger weights do not move at all in bfloat16
    large = before[0].abs() > 0.5
    assert torch.equal(alone[0][large].float(), before[0][large]) and not (full[0][large] == before[0][large]).all()


def test_groups_are_those_that_a_scheduler_changes():
    half, full = weights(torch.bfloat16), weights(torch.float32)
    optimizers = [Float32Weights(MAKERS["adamw"](half)), MAKERS["adamw"](full)]
    schedulers = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=STEPS) for o in optimizers]
    for number in range(STEPS):
        for optimizer, parameters in zip(optimizers, (half, full), strict=True):
            step(optimizer, parameters, number)
        for scheduler in schedulers:
            scheduler.step()
    assert all(map(torch.equal, optimizers[0].copies, full)) and optimizers[0].param_groups[0]["lr"] == 0


def test_a_saved_state_goes_on_as_if_it_had_not_stopped(tmp_path):
    half, again = weights(torch.bfloat16), weights(torch.bfloat16)
    first, second = Float32Weights(MAKERS["adamw"](half)), Float32Weights(MAKERS["adamw"](again))
    for number in range(5):
        step(first, half, number)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    with torch.no_grad():  # a checkpoint's weights are rounded
        for weight, saved in zip(again, half, strict=True):
            weight.copy_(saved)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert len(second.state) == len(SHAPES)
    for number in range(5, STEPS):
        step(first, half, number)
        step(second, again, number)
    assert all(map(torch.equal, first.copies, second.copies)) and all(map(torch.equal, half, again))


def test_a_state_without_copies_is_loaded_too():
    half, alone = weights(torch.bfloat16), weights(torch.bfloat16)
    wrapped, plain = Float32Weights(MAKERS["adamw"](half)), MAKERS["adamw"](alone)
    step(plain, alone, 0)
    wrapped.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert len(wrapped.state) == len(SHAPES) and all(map(torch.equal, wrapped.copies, [p.float() for p in half]))
    step(wrapped, half, 1)


def test_weights_of_another_format_and_without_gradients_stay_as_they_are():
    float32, half, idle = (
        torch.nn.Parameter(torch.ones(4, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    optimizer = Float32Weights(torch.optim.SGD([float32, half, idle], lr=0.5))
    float32.grad, half.grad = torch.ones(4), torch.ones(4, dtype=torch.bfloat16)
    optimizer.step()
    assert float32.tolist() == half.tolist() == [0.5] * 4 and idle.tolist() == [1.0] * 4
    assert [copied.shape for copied in optimizer.copies] == [(4,), (4,)]
    optimizer.zero_grad(set_to_none=False)
    assert not float32.grad.any() and not half.grad.any() and idle.grad is None


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"finetuning_type": "full"}, True),
        ({"finetuning_type": "lora", "additional_target": "embed_tokens"}, True),  # trained copies of whole modules
        ({"finetuning_type": "full", "pure_bf16": True}, False),
        ({"finetuning_type": "full", "use_badam": True}, False),
        ({"finetuning_type": "full", "use_galore": True}, True),
        ({"finetuning_type": "full", "use_galore": True, "galore_layerwise": True}, False),
        ({"finetuning_type": "full", "deepspeed": '{"zero_optimization": {"stage": 2}}'}, False),
    ],
)
def test_which_runs_keep_copies(options, kept, values):
    assert keeps_float32(validated(values | options)) is kept


def test_a_run_in_bfloat16_learns_as_in_float32_where_its_steps_are_small(values, workspace):
    """With weights in bfloat16, as on a GPU; a run on the CPU makes them float32."""
    moved = {}
    for name in ("float32", "copies", "alone"):
        trainer, _, run = ready(
            values, workspace, finetuning_type="full", learning_rate=1e-6, pure_bf16=name == "alone", save_steps=10,
            save_strategy="steps",
        )  # fmt: skip
        if name != "float32":
            trainer.model.to(torch.bfloat16)
        first = {key: p.detach().float().clone() for key, p in trainer.model.named_parameters()}
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert isinstance(optimizer, Float32Weights) == (name == "copies")
        named = {id(p): key for key, p in trainer.model.named_parameters()}
        known = {named[id(p)]: p for p in trainer.model.parameters()}
        if name == "copies":
            known = {named[id(weight)]: copied for copied, weight in optimizer.pairs}
            saved = torch.load(run.path / f"checkpoint-{STEPS_OF_A_RUN}" / "optimizer.pt", weights_only=True)
            assert all(map(torch.equal, saved["weights"], optimizer.copies))
        moved[name] = torch.cat([(known[key].detach().float() - first[key]).flatten() for key in sorted(first)])
    # most weights of a model are larger than 256 steps of this size
    assert (moved["float32"] != 0).float().mean() > 0.8 and (moved["alone"] != 0).float().mean() < 0.2
    agreement = torch.nn.functional.cosine_similarity(moved["copies"], moved["float32"], dim=0)
    assert agreement > 0.8 and 0.8 < moved["copies"].norm() / moved["float32"].norm() < 1.25


@pytest.mark.parametrize("options", [{"pure_bf16": True}, {"use_muon": True, "pure_bf16": True}, {}])
def test_a_run_with_copies_goes_on_without_them(options, values, workspace):
    """With `pure_bf16`, or, as the last one, on a device where weights are float32."""
    common = {"finetuning_type": "full", "learning_rate": 1e-4, "save_steps": 10, "save_strategy": "steps"}
    first, _, run = ready(values, workspace, **common | {k: v for k, v in options.items() if k != "pure_bf16"})
    first.model.to(torch.bfloat16)
    first.train()
    assert isinstance(first.optimizer.optimizer, Float32Weights)
    second, _, _ = ready(values, workspace, **common, **options)
    if options:
        second.model.to(torch.bfloat16)
    second.train(resume_from_checkpoint=str(run.path / "checkpoint-10"))
    assert second.state.global_step == STEPS_OF_A_RUN
    assert not isinstance(second.optimizer.optimizer, Float32Weights) and len(second.optimizer.optimizer.state) > 10
