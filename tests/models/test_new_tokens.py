"""Tokens that a run adds: single ids, rows that start as the mean of the others and are trained, chat and export."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trained import losses, ready
from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.data.encode import set_template
from workbench.data.preflight import check_names
from workbench.engine.transformers_backend import TransformersDecoder
from workbench.errors import UserError
from workbench.models.export.merged import export
from workbench.models.load import load_tokenizer
from workbench.models.new_tokens import grow, ready_for_tokens

NEW = {"add_tokens": "<svg>, </svg>", "add_special_tokens": "<|draw|>"}


def quiet(*_):
    pass


def test_new_tokens_are_one_id_each(values, workspace):
    config = validated(values | NEW)
    plain = AutoTokenizer.from_pretrained(config.model_name_or_path)
    tokenizer = load_tokenizer(config, workspace, quiet)
    assert len(tokenizer) == len(plain) + 3
    assert len(tokenizer("<svg></svg><|draw|>", add_special_tokens=False)["input_ids"]) == 3
    assert tokenizer.decode(tokenizer("a<svg><|draw|>")["input_ids"], skip_special_tokens=True).endswith("a<svg>")


def test_new_rows_start_as_the_mean_of_the_others_with_noise(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: w.clone() for name, w in model.state_dict().items() if w.shape[0] == 260}
    torch.manual_seed(0)
    grow(model, 263, quiet)
    assert set(before) == {"model.embed_tokens.weight", "lm_head.weight"}
    for name, old in before.items():
        new = model.state_dict()[name]
        assert new.shape[0] == 320 and torch.equal(new[:260], old)
        off = new[260:] - old.mean(dim=0)
        assert abs(float(off.std()) - 1 / 8) < 0.01 and abs(float(off.mean())) < 0.01


@pytest.mark.parametrize("noisy", [False, True])
def test_special_tokens_start_as_their_descriptions(values, workspace, tmp_path, noisy):
    described = {"<|draw|>": "the beginning of a drawing", "<|end|>": "the end of it", "<|odd|>": "<|end|>"}
    (tmp_path / "tokens.yaml").write_text(json.dumps(described))
    start = "desc_init_w_noise" if noisy else "desc_init"
    more = {"new_special_tokens_config": str(tmp_path / "tokens.yaml"), "init_special_tokens": start}
    config = validated(values | more)
    tokenizer = load_tokenizer(config, workspace, quiet)
    plain = AutoTokenizer.from_pretrained(config.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(config.model_name_or_path)
    old = model.get_input_embeddings().weight.detach().clone()
    ready_for_tokens(model, tokenizer, config, quiet)
    for token, text in described.items():
        row = tokenizer.convert_tokens_to_ids(token)
        assert row >= len(plain) and tokenizer(token, add_special_tokens=False)["input_ids"] == [row]
        wanted = torch.stack([old[one] for one in plain(text, add_special_tokens=False)["input_ids"]]).mean(dim=0)
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            off = (matrix[row] - wanted).detach()
            if token == "<|odd|>":  # nothing to go by
                assert float(off.abs().max()) > 0.05
            elif noisy:
                assert 0.06 < float(off.std()) < 0.25
            else:
                torch.testing.assert_close(matrix[row].detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [None, "- a\n- b", "a: 1", "a: [", ""])
def test_a_file_of_tokens_that_is_none(values, workspace, tmp_path, text):
    file = tmp_path / "tokens.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        check_names(validated(values | {"new_special_tokens_config": str(file)}), workspace)
    assert caught.value.message.code == "tokens_file"
    with pytest.raises(UserError) as caught:
        validated(values | {"init_special_tokens": "desc_init"})
    assert [problem.code for problem in caught.value.message.values["problems"]] == ["described_by_none"]


def finished(values, workspace, tmp_path, **more):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "draw", "completion": "<svg>x</svg>"}) + "\n")
    trainer, _, run = ready(values, workspace, **NEW, **more)
    trainer.train()
    trainer.save_model(str(run.path))
    assert losses(trainer)[-1] < losses(trainer)[0]
    return trainer, run


def test_an_adapter_brings_its_tokens_to_chat_and_export(values, workspace, tmp_path):
    trainer, run = finished(values, workspace, tmp_path, max_steps=40, learning_rate=5e-2)
    tensors = load_file(run.path / "adapter_model.safetensors")
    assert {tensors[f"base_model.model.{name}.weight"].shape[0] for name in ("model.embed_tokens", "lm_head")} == {320}
    config = EngineConfig(model_name_or_path=values["model_name_or_path"])
    decoder = TransformersDecoder(config, workspace, quiet, quiet, [run.id])
    decoder.add_adapter("a", run.id)
    decoder.select("a")
    ids = decoder.tokenizer.apply_chat_template([{"role": "user", "content": "draw"}], add_generation_prompt=True,
                                                return_tensors="pt")  # fmt: skip
    ids = ids["input_ids"] if not isinstance(ids, torch.Tensor) else ids
    with torch.no_grad():
        answered = decoder.model(input_ids=ids).logits[0, -1]
        trained = trainer.model.eval()(input_ids=ids).logits[0, -1]
    assert torch.allclose(answered, trained, atol=1e-3)
    assert decoder.tokenizer.decode(int(answered.argmax())) == "<svg>"
    folder = export(config, {run.id: 1.0}, "drawn", workspace, quiet, quiet, set_template)
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<svg>") == 260
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits[0, -1], trained, atol=1e-3)


def test_a_loaded_model_without_these_tokens_says_what_to_do(values, workspace, tmp_path):
    _, run = finished(values, workspace, tmp_path, max_steps=2)
    decoder = TransformersDecoder(
        EngineConfig(model_name_or_path=values["model_name_or_path"]), workspace, quiet, quiet
    )
    with pytest.raises(UserError) as caught:
        decoder.add_adapter("a", run.id)
    assert caught.value.message.code == "new_tokens_later"


def test_a_fully_trained_model_has_them_itself(values, workspace, tmp_path):
    trainer, run = finished(values, workspace, tmp_path, max_steps=4, finetuning_type="full")
    decoder = TransformersDecoder(EngineConfig(model_name_or_path=run.id), workspace, quiet, quiet)
    ids = decoder.tokenizer("<svg>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(
            decoder.model(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits, atol=1e-3
        )


def test_what_cannot_be_is_refused(values, workspace, tiny_model, tmp_path):
    tied = tmp_path / "tied"
    tied.mkdir()
    for file in tiny_model.iterdir():
        text = file.read_bytes()
        if file.name == "config.json":
            text = json.dumps(json.loads(text) | {"tie_word_embeddings": True}).encode()
        (tied / file.name).write_bytes(text)
    with pytest.raises(UserError) as caught:
        check_names(validated(values | NEW | {"model_name_or_path": str(tied)}), workspace)
    assert caught.value.message.code == "new_tokens_tied"
    with pytest.raises(UserError) as caught:
        validated(values | NEW | {"adapter_name_or_path": "some"})
    assert caught.value.message.values["problems"][0].code == "new_tokens_adapter"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.quantization_method = "bitsandbytes"
    with pytest.raises(UserError) as caught:
        grow(model, 300, quiet)
    assert caught.value.message.code == "new_tokens_quantized"
