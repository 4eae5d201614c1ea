"""Every way of tuning on every kind of weights: it learns, and chat answers as the trainer does, or one sentence."""

import json

import pytest
import torch

from tests.trained import losses, ready
from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.data.encode import set_template
from workbench.engine.transformers_backend import TransformersDecoder
from workbench.errors import UserError
from workbench.models.export.merged import export

METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora+": {"loraplus_lr_ratio": 16.0},
    "whole modules": {"additional_target": "lm_head,norm"},
    "pissa": {"pissa_init": True, "pissa_iter": 4},
    "oft": {"finetuning_type": "oft", "oft_block_size": 16},
    "muon": {"use_muon": True},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "full": {"finetuning_type": "full"},
}
WHOLE = ("freeze", "full")
IDS = torch.arange(4, 60)[None]


def quiet(*_):
    pass


def same_answers(decoder, model, within: float) -> bool:
    with torch.no_grad():
        ours = decoder.model(input_ids=IDS).logits
        return bool((ours - model.eval()(input_ids=IDS).logits).abs().max() < within)


@pytest.mark.parametrize("kind", ["llama", "mixture"])
@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_a_way_of_tuning(method, bits, kind, values, workspace, request):
    model = request.getfixturevalue("tiny_moe" if kind == "mixture" else "tiny_model")
    options = values | {"model_name_or_path": str(model), "max_steps": 8, "learning_rate": 3e-3} | METHODS[method]
    if bits and method in (*WHOLE, "pissa"):
        with pytest.raises(UserError) as caught:
            validated(options | {"quantization_bit": bits})
        codes = {problem.code for problem in caught.value.message.values["problems"]}
        assert codes == {f"{method}_quantized"}
        return
    trainer, _, run = ready(options, workspace, quantization_bit=bits)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer.save_model(str(run.path))
    if method in WHOLE:
        trainer.processing_class.save_pretrained(str(run.path))
    whole = method in WHOLE
    config = EngineConfig(model_name_or_path=run.id if whole else str(model), quantization_bit=bits)
    decoder = TransformersDecoder(config, workspace, quiet, quiet)
    if not whole:
        decoder.add_adapter("tuned", run.id)
        decoder.select("tuned")
    assert same_answers(decoder, trainer.model, 0.05 if bits == 8 else 2e-3)
    if bits is None and not whole:
        folder = export(
            EngineConfig(model_name_or_path=str(model)), {run.id: 1.0}, "merged", workspace, quiet, quiet, set_template
        )
        merged = TransformersDecoder(EngineConfig(model_name_or_path=str(folder)), workspace, quiet, quiet)
        assert same_answers(merged, trainer.model, 2e-3)
    on_experts = kind == "mixture" and method not in ("dora", "pissa", "oft", *WHOLE)
    if not whole:
        kept = json.loads((run.path / "adapter_config.json").read_text())
        assert bool(kept.get("target_parameters")) == on_experts


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"use_dora": True, "lora_target": "experts"}, "lora_without"),
        ({"pissa_init": True, "lora_target": "q_proj,experts.down_proj"}, "lora_without"),
        ({"finetuning_type": "oft", "oft_target": "experts"}, "oft_experts"),
    ],
)
def test_what_experts_cannot_have(options, code, values, workspace, tiny_moe):
    with pytest.raises(UserError) as caught:
        ready(values | {"model_name_or_path": str(tiny_moe)}, workspace, **options)
    assert caught.value.message.code == code


def test_an_oft_adapter_is_merged_alone(values, workspace, tiny_model):
    runs = []
    for _ in range(2):
        trainer, _, run = ready(values, workspace, finetuning_type="oft", oft_target="q_proj")
        trainer.save_model(str(run.path))
        runs.append(run.id)
    for weights in ({runs[0]: 0.5}, dict.fromkeys(runs, 1.0)):
        with pytest.raises(UserError) as caught:
            export(
                EngineConfig(model_name_or_path=str(tiny_model)), weights, "no", workspace, quiet, quiet, set_template
            )
        assert caught.value.message.code == "oft_alone"


def test_lora_and_oft_are_not_loaded_together(values, workspace, tiny_model):
    runs = []
    for options in ({}, {"finetuning_type": "oft", "oft_target": "q_proj"}):
        trainer, _, run = ready(values, workspace, **options)
        trainer.save_model(str(run.path))
        runs.append(run.id)
    decoder = TransformersDecoder(EngineConfig(model_name_or_path=str(tiny_model)), workspace, quiet, quiet)
    decoder.add_adapter("lora", runs[0])
    with pytest.raises(UserError) as caught:
        decoder.add_adapter("oft", runs[1])
    assert caught.value.message.code == "adapter_refused"
    decoder.select("lora")
    with torch.no_grad():
        assert decoder.model(input_ids=IDS).logits.isfinite().all()
