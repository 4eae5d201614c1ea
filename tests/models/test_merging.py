"""Adapters of every kind that runs here make, merged with a weight: base + weight · (trained − base), or a sentence."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.data.encode import set_template
from workbench.data.preflight import preflight
from workbench.errors import UserError
from workbench.models.export.merged import export
from workbench.models.merging import add_up

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "whole modules": {"modules_to_save": ["lm_head", "norm"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "dora": {"use_dora": True},
}


def make(model_folder, folder, seed: int = 0, **kind):
    """An adapter of random factors, and the weights of the base trained with it (PEFT's own merge)."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | kind
    tuned = get_peft_model(base, LoraConfig(**config))
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "modules_to_save" in name:
                value.add_(torch.randn_like(value) * 0.1)
    tuned.save_pretrained(folder)
    return {key: value.clone() for key, value in copy.deepcopy(tuned).merge_and_unload().state_dict().items()}


def exported(workspace, model, adapters: dict, name: str = "merged"):
    config = EngineConfig(model_name_or_path=str(model))
    return export(
        config,
        {str(k): v for k, v in adapters.items()},
        name,
        workspace,
        lambda *_: None,
        lambda line: None,
        set_template,
    )


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "dora"])
def test_a_weight_scales_what_was_trained(workspace, tiny_model, tmp_path, kind):
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    first = make(tiny_model, tmp_path / "a", 1, **KINDS[kind])
    second = make(tiny_model, tmp_path / "b", 2)
    for name, adapters in (
        ("alone", {"a": 1.0}),
        ("half", {"a": 0.5}),
        ("both", {"a": 0.5, "b": -2.0}),
    ):
        folder = exported(workspace, tiny_model, {tmp_path / key: weight for key, weight in adapters.items()}, name)
        merged = load_file(folder / "model.safetensors")
        for key, value in merged.items():
            wanted = base[key] + adapters["a"] * (first[key] - base[key])
            wanted = wanted + adapters.get("b", 0.0) * (second[key] - base[key])
            assert (value - wanted).abs().max() < 1e-5, (name, key)
        assert any(not torch.equal(merged[key], base[key]) for key in merged)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_weight_scales_adapters_on_experts(workspace, tiny_moe, tmp_path, rslora):
    base = AutoModelForCausalLM.from_pretrained(tiny_moe).state_dict()
    experts = {"target_modules": ["o_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    first = make(tiny_moe, tmp_path / "a", 1, **experts, use_rslora=rslora)
    second = make(tiny_moe, tmp_path / "b", 2, **experts)
    folder = exported(workspace, tiny_moe, {tmp_path / "a": 0.5, tmp_path / "b": -2.0})
    for key, value in AutoModelForCausalLM.from_pretrained(folder).state_dict().items():
        wanted = base[key] + 0.5 * (first[key] - base[key]) - 2.0 * (second[key] - base[key])
        assert (value - wanted).abs().max() < 1e-4, key


def test_dora_is_merged_alone_and_whole_or_not_at_all(workspace, tiny_model, tmp_path):
    trained = make(tiny_model, tmp_path / "a", **KINDS["dora"])
    make(tiny_model, tmp_path / "b")
    merged = load_file(exported(workspace, tiny_model, {tmp_path / "a": 1.0}) / "model.safetensors")
    assert all((value - trained[key]).abs().max() < 1e-5 for key, value in merged.items())
    for adapters in ({tmp_path / "a": 0.5}, {tmp_path / "a": 1.0, tmp_path / "b": 1.0}):
        with pytest.raises(UserError, match="DoRA can be merged alone"):
            exported(workspace, tiny_model, adapters, "other")
    assert not (workspace.models / "other").exists()


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_adapters_added_up_while_they_are_served(tiny_model, tmp_path, kind):
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    first = make(tiny_model, tmp_path / "a", 1, **KINDS[kind])
    second = make(tiny_model, tmp_path / "b", 2, **KINDS[kind])
    tuned = PeftModel.from_pretrained(base, tmp_path / "a", adapter_name="a")
    tuned.load_adapter(tmp_path / "b", adapter_name="b")
    add_up(tuned, ["a", "b"], [0.5, -1.5], "sum")
    tuned.set_adapter("sum")
    merged = tuned.merge_and_unload().state_dict()
    for key, value in merged.items():
        wanted = weights[key] + 0.5 * (first[key] - weights[key]) - 1.5 * (second[key] - weights[key])
        assert (value - wanted).abs().max() < 1e-5, key


@pytest.mark.parametrize("kind", ["dora", "whole modules"])
def test_what_cannot_be_added_up_while_it_is_served_says_so(tiny_model, tmp_path, kind):
    make(tiny_model, tmp_path / "a", **KINDS[kind])
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "a", adapter_name="a"
    )
    with pytest.raises(UserError):
        add_up(tuned, ["a"], [0.5], "sum")


def test_an_export_stops_in_plain_transformers_as_it_did_in_training(workspace, tiny_model, tmp_path):
    """A base model without a template and with another end token, trained with ChatML."""
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    template, tokenizer.chat_template, tokenizer.eos_token = tokenizer.chat_template, None, "<s>"
    tokenizer.save_pretrained(base)
    make(base, tmp_path / "a")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "a")  # as a run leaves it beside its adapter
    folder = exported(workspace, base, {tmp_path / "a": 1.0})

    merged, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert merged.dtype == torch.bfloat16 and tokenizer.chat_template == template
    assert end in merged.generation_config.eos_token_id
    with torch.no_grad():  # a model that always says <|im_end|>
        merged.lm_head.weight.zero_()
        merged.model.norm.weight.fill_(1)
        hidden = merged.model(torch.tensor([[5]])).last_hidden_state[0, -1]
        merged.lm_head.weight[end] = hidden * 100
    answer = merged.generate(torch.tensor([[5]]), max_new_tokens=20, do_sample=False)
    assert answer[0, 1:].tolist() == [end]


@pytest.mark.parametrize(
    ("values", "tied", "words"),
    [
        ({"lora_target": "q_proj,lm_head"}, False, "lora_target: lm_head is not offered"),
        ({"lora_target": "q_proj,embed_tokens"}, True, "lora_target: embed_tokens is one matrix"),
        ({"additional_target": "lm_head"}, True, "additional_target: lm_head is one matrix"),
        ({"lora_target": "q_proj,embed_tokens", "additional_target": "lm_head"}, False, ""),
        ({"lora_target": "all"}, True, ""),
    ],
)
def test_embeddings_that_could_not_be_exported_are_refused_before_the_start(workspace, tmp_path, values, tied, words):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": tied}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = validated({"model_name_or_path": str(tmp_path), "dataset": "abilities"} | values)
    if not words:
        preflight(config, workspace)
        return
    with pytest.raises(UserError, match=words):
        preflight(config, workspace)
