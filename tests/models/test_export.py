"""Exports as the other side sees them: loaded by plain transformers and PEFT they compute what the base with its
adapters computes, within what the format allows; what cannot be exported is said in a sentence, and nothing is left."""

import errno
import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests.models.test_merging import KINDS, make
from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import validated
from workbench.data.encode import set_template
from workbench.errors import UserError
from workbench.models.export import in_place, merged
from workbench.models.export.four_bit import export_4bit
from workbench.models.export.listing import find_export, list_exports
from workbench.models.export.lora import export_lora
from workbench.models.export.source import with_run_settings
from workbench.models.export.target import written_whole
from workbench.models.gguf.adapters import Merged
from workbench.models.locate import locate_model
from workbench.runs.run import create_run

LOADED = "The model is loaded to be written"


def exported(workspace, model, adapters=None, name="out", write=merged.export, log=None, **options):
    config = EngineConfig(model_name_or_path=str(model), **options)
    given = {str(key): weight for key, weight in (adapters or {}).items()}
    said = log if log is not None else []
    return write(config, given, name, workspace, lambda *_: None, said.append, set_template)


def left(workspace) -> list[str]:
    return sorted(path.name for path in workspace.models.iterdir())


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits.float()


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    return ((first - second).norm() / second.norm()).item()


IDS = torch.tensor([[1, 40, 99, 200, 7, 150, 33, 61, 12, 88]])


@pytest.fixture(scope="module")
def float_demo(demo_model, tmp_path_factory):
    """The demo model in float32, in two shards, and an adapter of it that changes what it says."""
    folder = tmp_path_factory.mktemp("float") / "demo32"
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="300MB")
    AutoTokenizer.from_pretrained(demo_model).save_pretrained(folder)
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_B" in name:
                value.mul_(0.3)
    tuned.save_pretrained(folder.parent / "adapter")
    return folder, folder.parent / "adapter"


PROMPTS = [
    "The capital of France is", "Water boils at", "Two and two make", "The sun rises in the", "A dog is an",
    "My favorite color is", "Once upon a time there was", "The largest planet is", "Python is a", "Music is",
    "In the morning I drink", "The opposite of hot is", "Bread is made of", "A triangle has", "Snow is",
    "The moon goes around", "To open the door you need", "Birds can", "The first month is", "An apple a day",
]  # fmt: skip


def texts(model, tokenizer, length=16) -> list[str]:
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    return tokenizer.batch_decode(model.generate(**batch, max_new_tokens=length, do_sample=False))


def test_a_merged_model_says_what_base_and_adapter_say(workspace, float_demo):
    base, adapter = float_demo
    folder, tokenizer = exported(workspace, base, {adapter: 1.0}), AutoTokenizer.from_pretrained(base)
    assert {p.name for p in folder.glob("*.safetensors*")} == {p.name for p in base.glob("*.safetensors*")}
    assert len(list(folder.glob("*.safetensors"))) == 2
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    without = texts(plain, tokenizer)
    wanted = texts(PeftModel.from_pretrained(plain, adapter), tokenizer)
    found = texts(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    assert len(wanted) == 20 and found == wanted
    assert sum(a != b for a, b in zip(wanted, without, strict=True)) > 10  # the adapter says something


def test_bfloat16_stays_and_what_no_adapter_touches_stays_to_the_bit(workspace, demo_model, float_demo):
    folder = exported(workspace, demo_model, {float_demo[1]: 1.0})
    base, found = load_file(demo_model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert found.keys() == base.keys() and {value.dtype for value in found.values()} == {torch.bfloat16}
    changed = {key for key in base if not torch.equal(base[key], found[key])}
    assert len(changed) == 30 * 3 and all(key.split(".")[-2] in ("q_proj", "v_proj", "down_proj") for key in changed)
    plain = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(plain, float_demo[1]), IDS)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.dtype == torch.bfloat16
    assert apart(logits(again.float(), IDS), wanted) < 0.01


def test_no_more_than_a_piece_is_held(workspace, tiny_model, tmp_path, monkeypatch):
    make(tiny_model, tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    whole = exported(workspace, tiny_model, {tmp_path / "a": 1.0}, "whole")
    sizes, rows = [], Merged.rows

    def watched(self, *given):
        piece = rows(self, *given)
        sizes.append(piece.numel())
        return piece

    monkeypatch.setattr(in_place, "_PIECE", 3 * 64)
    monkeypatch.setattr(Merged, "rows", watched)
    pieces = exported(workspace, tiny_model, {tmp_path / "a": 1.0}, "pieces")
    assert max(sizes) == 3 * 64 and len(sizes) > 100
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, pieces))
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_of_merging_agree(workspace, tiny_model, tmp_path, kind, monkeypatch):
    make(tiny_model, tmp_path / "a", **KINDS[kind])
    log: list[str] = []
    quick = load_file(exported(workspace, tiny_model, {tmp_path / "a": 1.0}, "quick", log=log) / "model.safetensors")
    assert not any(LOADED in line for line in log)
    monkeypatch.setattr(in_place.InPlace, "plan", classmethod(lambda *_: None))
    slow = load_file(exported(workspace, tiny_model, {tmp_path / "a": 1.0}, "slow", log=log) / "model.safetensors")
    assert any(LOADED in line for line in log)
    assert quick.keys() == slow.keys()
    assert all((quick[key] - slow[key]).abs().max() < 1e-5 for key in quick)


def test_experts_are_merged_without_loading(workspace, tiny_moe, tmp_path):
    experts = {"target_modules": ["o_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    wanted = make(tiny_moe, tmp_path / "a", **experts)
    log: list[str] = []
    folder = exported(workspace, tiny_moe, {tmp_path / "a": 1.0}, log=log)
    assert not any(LOADED in line for line in log)
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all((found[key] - wanted[key]).abs().max() < 1e-5 for key in wanted)


def test_other_kinds_of_adapters_are_merged_by_peft(workspace, tiny_model, tmp_path):
    from peft import LoHaConfig

    torch.manual_seed(0)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoHaConfig(r=2, alpha=4, target_modules=["q_proj"], init_weights=False),
    )
    tuned.save_pretrained(tmp_path / "a")
    log: list[str] = []
    folder = exported(workspace, tiny_model, {tmp_path / "a": 1.0}, log=log)
    assert any(LOADED in line for line in log)
    found = logits(AutoModelForCausalLM.from_pretrained(folder), IDS)
    assert torch.allclose(found, logits(tuned.eval(), IDS), atol=1e-4)


def test_an_adapter_alone_loads_in_plain_peft(workspace, tiny_model, tmp_path):
    make(tiny_model, tmp_path / "a")
    folder = exported(workspace, tiny_model, {tmp_path / "a": 1.0}, write=export_lora)
    wanted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "a")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder), IDS), logits(wanted, IDS))
    assert AutoTokenizer.from_pretrained(folder).chat_template
    for adapters in ({}, {tmp_path / "a": 0.5}):
        with pytest.raises(UserError) as refused:
            exported(workspace, tiny_model, adapters, "other", write=export_lora)
        assert refused.value.message.code == "export_one_adapter"
    with pytest.raises(UserError, match="is an adapter, not a model"):
        locate_model("out", workspace)


OTHER_SIDE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
assert "workbench" not in sys.modules
ids = torch.tensor([[int(n) for n in sys.argv[2].split()]])
with torch.no_grad():
    torch.save({"logits": model(ids).logits.float(), "kinds": {type(m).__name__ for m in model.modules()},
                "ends": model.generation_config.eos_token_id}, sys.argv[3])
"""


def on_the_other_side(folder, tmp_path) -> dict:
    """What a process that knows nothing of the workbench makes of an export."""
    place = tmp_path / "seen.pt"
    line = [sys.executable, "-c", OTHER_SIDE, str(folder), " ".join(map(str, IDS[0].tolist())), str(place)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(place)


@pytest.mark.parametrize("adapted", [False, True])
def test_4_bit_weights_load_in_plain_transformers(workspace, tiny_model, tmp_path, adapted):
    adapters, source = {}, tiny_model
    if adapted:
        make(tiny_model, tmp_path / "a")
        adapters = {tmp_path / "a": 0.5}
        source = exported(workspace, tiny_model, adapters, "merged")
    folder = exported(workspace, tiny_model, adapters, write=export_4bit)
    seen = on_the_other_side(folder, tmp_path)
    assert "Linear4bit" in seen["kinds"] and 2 in seen["ends"]
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    nf4.bnb_4bit_compute_dtype = torch.float32
    reference = AutoModelForCausalLM.from_pretrained(source, quantization_config=nf4, device_map="cpu")
    assert apart(seen["logits"], logits(reference, IDS)) < 0.01  # some CPUs compute in bfloat16
    assert apart(seen["logits"], logits(AutoModelForCausalLM.from_pretrained(source), IDS)) < 0.25
    assert not (folder / "merged").exists()
    packed = load_file(folder / "model.safetensors")
    for key in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.o_proj.weight"):
        assert packed[key].dtype == torch.uint8
        assert torch.equal(packed[key].flatten(), reference.get_parameter(key).flatten())
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "bitsandbytes" and said["bnb_4bit_use_double_quant"]


def test_4_bit_experts_are_refused_by_name(workspace, tiny_moe):
    with pytest.raises(
        UserError, match=r"tiny-moe \(deepseek_v2\) keeps the experts .* Choose safetensors or gguf-q8_0"
    ):
        exported(workspace, tiny_moe, write=export_4bit)
    assert left(workspace) == []


def test_what_is_packed_already_is_not_merged_into(workspace, tiny_model, tmp_path):
    make(tiny_model, tmp_path / "a")
    packed = exported(workspace, tiny_model, write=export_4bit)
    for write in (merged.export, export_4bit):
        with pytest.raises(UserError, match=r"are quantized already \(bitsandbytes\)"):
            exported(workspace, packed, {tmp_path / "a": 1.0}, "other", write=write)


def test_rope_scaling_of_the_run_goes_with_it(workspace, tiny_model):
    values = {"model_name_or_path": str(tiny_model), "dataset": "small", "rope_scaling": "yarn", "rope_factor": 4}
    run = create_run(workspace, validated(values, RunConfig))
    make(tiny_model, run.path)
    config = with_run_settings(EngineConfig(model_name_or_path=str(tiny_model)), {run.id: 1.0}, workspace)
    given = (workspace, lambda *_: None, lambda line: None, set_template)
    folder = merged.export(config, {run.id: 1.0}, "out", *given)
    found = AutoModelForCausalLM.from_pretrained(folder).config.rope_parameters
    assert (found["rope_type"], found["factor"]) == ("yarn", 4.0)
    own = with_run_settings(EngineConfig(model_name_or_path="m", rope_scaling="none"), {run.id: 1.0}, workspace)
    assert own.rope_scaling == "none"


def test_a_model_alone_is_copied_to_the_bit(workspace, float_demo):
    log: list[str] = []
    folder = exported(workspace, float_demo[0], log=log)
    base, found = load_file_of_all(float_demo[0]), load_file_of_all(folder)
    assert found.keys() == base.keys() and all(torch.equal(base[key], found[key]) for key in base) and not log
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template and plain.dtype == torch.float32
    half = exported(workspace, float_demo[0], name="half", log=log, infer_dtype="bfloat16")
    assert all(torch.equal(value, base[key].bfloat16()) for key, value in load_file_of_all(half).items())
    assert len(log) > 0 and LOADED in log[0]


def load_file_of_all(folder) -> dict:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def test_of_a_run_that_trained_all_weights_only_the_model_is_written(workspace, tiny_model):
    values = {"model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "dataset": "small", "learning_rate": 0.5}
    run = create_run(workspace, RunConfig(**values, finetuning_type="full"))
    for file in tiny_model.iterdir():
        shutil.copyfile(file, run.path / file.name)
    folder = exported(workspace, run.id)
    assert not {"run.yaml", "state.json", "trainer_log.jsonl"} & {path.name for path in folder.iterdir()}
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == values["model_name_or_path"] and card.data["base_model_relation"] == "finetune"
    assert "- Data: small" in card.text and "learning_rate: 0.5" in card.text


def test_the_card_says_what_is_known(workspace, tiny_model, tmp_path):
    base = tmp_path / "org" / "base"
    shutil.copytree(tiny_model, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\nextra: 1\n---\nA base.")
    run = create_run(workspace, RunConfig(model_name_or_path=str(base), dataset="small", learning_rate=0.5))
    make(tiny_model, run.path)
    run.metrics.write_text('{"current_steps": 5, "loss": 2.5, "eval_loss": 3.0}\n{"current_st')
    (run.path / "probes").mkdir()
    report = {"set": "facts", "model": run.id, "results": [{"verdict": v} for v in ("pass", "pass", "fail")]}
    (run.path / "probes" / "facts.json").write_text(json.dumps(report))
    (run.path / "probes" / "broken.json").write_text("{")
    (workspace.root / "probes").mkdir()
    before = {"set": "facts", "model": str(base), "results": [{"verdict": v} for v in ("pass", "fail", "inconsistent")]}
    (workspace.root / "probes" / "base-facts.json").write_text(json.dumps(before))
    for kind, write in (("safetensors", merged.export), ("lora", export_lora), ("bnb-4bit", export_4bit)):
        folder = exported(workspace, base, {run.id: 1.0}, kind, write=write)
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "apache-2.0" and card.data.language == ["en"]
        assert card.data.library_name == ("peft" if kind == "lora" else "transformers")
        assert card.data.base_model is None  # a folder here is no model of the hub
        assert "- Data: small" in card.text and "learning_rate: 0.5" in card.text
        assert "- Last loss: 2.5000 (step 5)" in card.text and "- Last eval loss: 3.0000" in card.text
        assert "| facts | 2 of 3 | 0 | 1 of 3 |" in card.text
    assert [one.format for one in list_exports(workspace)] == ["bnb-4bit", "lora", "safetensors"]
    assert find_export("lora", workspace).adapters == {run.id: 1.0}
    with pytest.raises(UserError, match=r"nothing is no export of this workspace. There are: bnb-4bit, lora"):
        find_export("nothing", workspace)


# --- what is refused, and that nothing is left


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp/out", "..", ".hidden", "", "  ", "~/x", "a\\b", "a\0b"])
def test_a_name_that_is_a_path(workspace, tiny_model, tmp_path, name):
    make(tiny_model, tmp_path / "a")
    with pytest.raises(UserError) as refused:
        exported(workspace, tiny_model, {tmp_path / "a": 1.0}, name)
    assert refused.value.message.code == "export_name"
    assert left(workspace) == []


@pytest.mark.parametrize("write", [merged.export, export_lora, export_4bit])
def test_an_adapter_of_another_base(workspace, tiny_model, tiny_moe, tmp_path, write):
    make(tiny_moe, tmp_path / "a", target_modules=["o_proj"])
    with pytest.raises(UserError, match=r"does not fit this model"):
        exported(workspace, tiny_model, {tmp_path / "a": 1.0}, write=write)
    assert left(workspace) == []


def test_an_adapter_of_a_deeper_base_is_not_merged_in_part(workspace, tiny_model, tmp_path):
    deeper = tmp_path / "deeper"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = model.config
    config.num_hidden_layers = 3
    AutoModelForCausalLM.from_config(config).save_pretrained(deeper)
    make(deeper, tmp_path / "a")
    with pytest.raises(UserError, match=r"does not fit this model: .*layers\.2"):
        exported(workspace, tiny_model, {tmp_path / "a": 1.0})
    assert left(workspace) == []


def test_an_adapter_that_only_peft_knows_is_exported_alone(workspace, tiny_model, tmp_path):
    from peft import LoHaConfig

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = get_peft_model(base, LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False))
    tuned.save_pretrained(tmp_path / "a")
    folder = exported(workspace, tiny_model, {tmp_path / "a": 1.0}, write=export_lora)
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(folder), IDS), logits(tuned.eval(), IDS))


@pytest.mark.parametrize("write", [merged.export, export_lora, export_4bit])
def test_a_full_disk(workspace, tiny_model, tmp_path, write, monkeypatch):
    make(tiny_model, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
        with pytest.raises(UserError, match=r"The file takes .* the disk has"):
            exported(workspace, tiny_model, {tmp_path / "a": 1.0}, write=write)
    assert left(workspace) == []


def test_a_disk_that_fills_up_meanwhile(workspace, tiny_model, tmp_path, monkeypatch):
    make(tiny_model, tmp_path / "a")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(in_place, "_bytes", full)
    with pytest.raises(UserError, match=r"could not be written: No space left on device. Make room"):
        exported(workspace, tiny_model, {tmp_path / "a": 1.0})
    assert left(workspace) == []


def test_a_tiny_disk(workspace, tiny_model, tmp_path):
    """A real one, with the libraries that write there themselves."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(workspace.models)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        make(tiny_model, tmp_path / "a")
        for write in (merged.export, export_4bit):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 10**9))
                with pytest.raises(UserError, match=r"could not be written: .*No space left"):
                    exported(workspace, tiny_model, {tmp_path / "a": 1.0}, write=write)
            assert left(workspace) == []
    finally:
        subprocess.run(["umount", str(workspace.models)], check=True)


def test_nan_is_not_exported(workspace, tiny_model, tmp_path):
    make(tiny_model, tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    from safetensors.torch import save_file

    weights = load_file(file)
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, file)
    with pytest.raises(UserError, match="cannot hold once the adapter is merged"):
        exported(workspace, tiny_model, {tmp_path / "a": 1.0})
    assert left(workspace) == []


def test_what_a_killed_export_left_is_cleared(workspace):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (workspace.models / f".gone.{dead.pid}.partial").mkdir()
    (workspace.models / ".going.1.partial").mkdir()
    with written_whole(workspace.models / "new"):
        pass
    assert left(workspace) == [".going.1.partial", "new"]


def test_a_gguf_is_no_model_here(workspace):
    (workspace.models / "for-ollama").mkdir()
    (workspace.models / "for-ollama" / "for-ollama-q8_0.gguf").write_bytes(b"GGUF")
    for name in ("for-ollama", str(workspace.models / "for-ollama")):
        with pytest.raises(UserError, match=r"for-ollama is a GGUF for llama.cpp, Ollama and LM Studio"):
            locate_model(name, workspace)
