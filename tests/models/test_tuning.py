"""Ways of tuning: the losses of plain PEFT and TRL set up by hand, and files that load on the untouched base."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trained import STEPS, by_hand, losses, ready
from workbench.config.run_config import validated
from workbench.data.preflight import preflight
from workbench.errors import UserError
from workbench.models.tuning import PISSA_FILE, rounds_steps

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(base, **config):
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=ALL, **config))


def frozen(base, ends):
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(name.startswith(ends))
    return base


WAYS = {
    "lora": ({}, lora),
    "neftune": ({"neftune_noise_alpha": 5.0}, lora),
    "rslora": ({"use_rslora": True}, lambda base: lora(base, use_rslora=True)),
    "dora": ({"use_dora": True}, lambda base: lora(base, use_dora=True)),
    "pissa": ({"pissa_init": True, "pissa_iter": -1}, lambda base: lora(base, init_lora_weights="pissa")),
    "fast pissa": ({"pissa_init": True, "pissa_iter": 4}, lambda base: lora(base, init_lora_weights="pissa_niter_4")),
    "oft": (
        {"finetuning_type": "oft", "oft_block_size": 16},
        lambda base: get_peft_model(base, OFTConfig(task_type="CAUSAL_LM", oft_block_size=16, target_modules=ALL)),
    ),
    "oft by rank": (
        {"finetuning_type": "oft", "oft_rank": 4, "oft_target": "q_proj,up_proj"},
        lambda base: get_peft_model(base, OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj", "up_proj"])),
    ),
    "freeze": (
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        lambda base: frozen(base, ("model.layers.1.",)),
    ),
    "freeze of the first": (
        {"finetuning_type": "freeze", "freeze_trainable_layers": -1, "freeze_trainable_modules": "mlp",
         "freeze_extra_modules": "lm_head,norm"},
        lambda base: frozen(base, ("model.layers.0.mlp.", "lm_head", "model.norm")),
    ),
    "full": ({"finetuning_type": "full"}, lambda base: base),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_plain_peft_and_trl(way, values, workspace, tmp_path):
    options, adapt = WAYS[way]
    trainer, rows, _ = ready(values, workspace, **options)
    trainer.train()
    noise = {"neftune_noise_alpha": options["neftune_noise_alpha"]} if way == "neftune" else {}
    ours, plain = losses(trainer), by_hand(values, rows, tmp_path / "plain", adapt, **noise)
    assert len(ours) == STEPS and ours[-1] < ours[0]
    assert torch.allclose(ours, plain, rtol=0, atol=1e-5), (ours - plain).abs().max()


@pytest.mark.parametrize("way", [way for way in WAYS if "freeze" not in way and way != "full"])
def test_what_is_saved_loads_on_the_untouched_base_and_merges(way, values, workspace, tiny_model):
    trainer, _, run = ready(values, workspace, **WAYS[way][0], max_steps=5)
    trainer.train()
    trainer.save_model(str(run.path))
    ids = torch.arange(4, 60)[None]
    with torch.no_grad():
        trained = trainer.model.eval()(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run.path)).eval()
        assert torch.allclose(loaded(input_ids=ids).logits, trained, atol=1e-5)
        assert torch.allclose(loaded.merge_and_unload()(input_ids=ids).logits, trained, atol=1e-5)


@pytest.mark.parametrize("options", [{"pissa_init": True}, {"finetuning_type": "oft"}, {"finetuning_type": "freeze"}])
def test_a_run_goes_on_where_its_checkpoint_was(options, values, workspace, tmp_path):
    whole, _, _ = ready(values, workspace, **options)
    whole.train()
    first, _, run = ready(values, workspace, **options, save_strategy="steps", save_steps=8)
    first.args.max_steps = 8
    first.train()
    if "pissa_init" in options:
        assert (run.path / PISSA_FILE).is_file()
        values = values | {"resume_from_checkpoint": str(run.path / "checkpoint-8")}
    again, _, _ = ready(values, workspace, **options)
    again.train(resume_from_checkpoint=str(run.path / "checkpoint-8"))
    assert torch.allclose(losses(again)[-12:], losses(whole)[-12:], rtol=0, atol=1e-5)


def test_a_pissa_adapter_is_plain_lora_of_twice_the_rank(values, workspace):
    trainer, _, run = ready(values, workspace, pissa_init=True, lora_rank=4, additional_target="norm")
    trainer.save_model(str(run.path))
    config = json.loads((run.path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
    tensors = load_file(run.path / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (8, 64)
    assert "base_model.model.model.norm.weight" in tensors


def adapter_of(values, workspace, **more):
    trainer, _, run = ready(values, workspace, max_steps=4, **more)
    trainer.train()
    trainer.save_model(str(run.path))
    return run.path


@pytest.mark.parametrize("more", [{}, {"pissa_init": True}, {"use_rslora": True, "lora_rank": 3}])
def test_a_new_adapter_holds_those_under_it(more, values, workspace, tiny_model):
    values = {key: value for key, value in values.items() if key != "max_steps"}
    one = adapter_of(values, workspace, lora_rank=4, lora_target="q_proj,up_proj")
    two = adapter_of(values, workspace, lora_rank=2, lora_target="up_proj")
    ids = torch.arange(4, 60)[None]
    both = {"adapter_name_or_path": f"{one},{two}", "create_new_adapter": True, "lora_target": "q_proj,v_proj"} | more
    trainer, _, run = ready(values | {"max_steps": 4}, workspace, **both)
    with torch.no_grad():
        start = trainer.model.eval()(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        for folder in (one, two):
            base = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
        assert torch.allclose(base(input_ids=ids).logits, start, atol=1e-5)
    trainer.train()
    trainer.save_model(str(run.path))
    with torch.no_grad():
        trained = trainer.model.eval()(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run.path)).eval()
        assert not torch.allclose(trained, start, atol=1e-3)
        assert torch.allclose(loaded(input_ids=ids).logits, trained, atol=1e-5)


def test_of_several_adapters_the_last_is_continued(values, workspace, tiny_model):
    values = {key: value for key, value in values.items() if key != "max_steps"}
    one = adapter_of(values, workspace, lora_rank=4, lora_target="q_proj")
    two = adapter_of(values, workspace, lora_rank=2, lora_target="up_proj")
    trainer, _, run = ready(values | {"max_steps": 4}, workspace, adapter_name_or_path=f"{one},{two}")
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained and all("up_proj" in name for name in trained)
    trainer.train()
    trainer.save_model(str(run.path))
    ids = torch.arange(4, 60)[None]
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run.path)).eval()
        assert torch.allclose(loaded(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits, atol=1e-5)


def test_only_plain_adapters_go_under_another(values, workspace):
    values = {key: value for key, value in values.items() if key != "max_steps"}
    dora = adapter_of(values, workspace, use_dora=True)
    with pytest.raises(UserError) as caught:
        ready(values | {"max_steps": 4}, workspace, adapter_name_or_path=str(dora), create_new_adapter=True)
    assert caught.value.message.code == "adapter_not_plain"


def test_an_adapter_of_another_kind_is_refused_before_the_run(values, workspace):
    values = {key: value for key, value in values.items() if key != "max_steps"}
    oft = adapter_of(values, workspace, finetuning_type="oft")
    config = validated(values | {"max_steps": 4, "adapter_name_or_path": str(oft)})
    with pytest.raises(UserError) as caught:
        preflight(config, workspace)
    assert caught.value.message.code == "adapter_other_kind"
    trainer, _, _ = ready(values | {"max_steps": 4}, workspace, adapter_name_or_path=str(oft), finetuning_type="oft")
    assert [name for name, p in trainer.model.named_parameters() if p.requires_grad and "oft_R" in name]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "mpl"}, "freeze_unknown"),
        ({"finetuning_type": "freeze", "freeze_extra_modules": "head"}, "freeze_unknown"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 3, "use_llama_pro": True}, "llama_pro_layers"),
        ({"finetuning_type": "oft", "oft_target": "q_porj"}, "lora_target_unknown"),
        ({"finetuning_type": "oft", "oft_target": "lm_head"}, "lora_target_head"),
        ({"finetuning_type": "oft", "oft_target": "input_layernorm"}, "lora_without"),
        ({"pissa_init": True, "lora_target": "q_proj,embed_tokens"}, "lora_without"),
    ],
)
def test_names_that_do_not_fit_are_refused(options, code, values, workspace):
    with pytest.raises(UserError) as caught:
        ready(values, workspace, **options)
    assert caught.value.message.code == code


def test_llama_pros_blocks(values, workspace):
    pro = {"use_llama_pro": True, "freeze_trainable_layers": 1}
    for options, part in (({"finetuning_type": "freeze"}, "layers.1."), ({}, "layers.1.")):
        trainer, _, _ = ready(values, workspace, **options, **pro)
        names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
        assert names and all(part in name for name in names)


@pytest.mark.parametrize(
    ("options", "dtype", "gpu", "expected"),
    [
        ({"finetuning_type": "full", "pure_bf16": True}, torch.bfloat16, True, True),
        ({"finetuning_type": "freeze", "pure_bf16": True}, torch.bfloat16, True, True),
        ({"finetuning_type": "full"}, torch.bfloat16, True, False),  # float32 copies
        ({"finetuning_type": "full", "use_galore": True, "galore_layerwise": True}, torch.bfloat16, True, True),
        ({"finetuning_type": "full", "use_badam": True}, torch.bfloat16, True, False),  # of the block that is trained
        ({"finetuning_type": "full", "use_badam": True, "badam_mode": "ratio"}, torch.bfloat16, True, True),
        ({"finetuning_type": "lora"}, torch.bfloat16, True, False),  # adapters become float32
        ({"finetuning_type": "full", "pure_bf16": True}, torch.float32, True, False),
        ({"finetuning_type": "full", "pure_bf16": True}, torch.bfloat16, False, False),  # float32 on the CPU
        ({"finetuning_type": "full", "deepspeed": '{"zero_optimization": {"stage": 2}}'}, torch.bfloat16, True, False),
    ],
)
def test_it_is_said_where_steps_are_rounded_away(options, dtype, gpu, expected, values):
    weights = [SimpleNamespace(requires_grad=True, is_cuda=gpu, dtype=dtype)]
    frozen = SimpleNamespace(requires_grad=False, is_cuda=True, dtype=torch.bfloat16)
    model = SimpleNamespace(parameters=lambda: [frozen, *weights])
    assert rounds_steps(model, validated(values | {"quantization_bit": None} | options)) is expected
