"""Checkpoints that are not whole, and GPUs that are too small: one sentence each."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.models.integrity import check_shards
from workbench.models.load import load_model


@pytest.fixture
def shards(tiny_moe, tmp_path):
    """A folder with `tiny_moe` in several weight files."""
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny_moe).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def load(folder, workspace, bits):
    options = RunConfig(model_name_or_path=str(folder), quantization_bit=bits)
    return load_model(
        options, workspace, dtype=torch.float32, split=False, progress=lambda *_: None, log=lambda _: None
    )


def no_shard(folder):
    sorted(folder.glob("*.safetensors"))[1].unlink()


def cut_off(folder):
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:1000])


def broken_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def no_weight(folder):
    """A matrix of attention, and one expert's matrix among those that become one parameter."""
    for file in folder.glob("*.safetensors"):
        left = {k: v for k, v in load_file(file).items() if "layers.1.self_attn.o_proj" not in k}
        save_file(left, file, metadata={"format": "pt"})


def no_expert(folder):
    for file in folder.glob("*.safetensors"):
        left = {k: v for k, v in load_file(file).items() if "layers.2.mlp.experts.3." not in k}
        save_file(left, file, metadata={"format": "pt"})


def other_config(folder):
    config = json.loads((folder / "config.json").read_text()) | {"moe_intermediate_size": 128}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("bits", [4, None])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_shard, "lacks 1 of .* weight files: model-00002-of-"),
        (cut_off, "model-00002-of-.* is not whole \\(1,000 bytes"),
        (broken_index, "index.json is broken"),
        (no_weight, "lacks 1 weights of this model: model.layers.1.self_attn.o_proj.weight"),
        (no_expert, "other shapes than its config.json says"),
        (other_config, "other shapes than its config.json says"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(shards, workspace, damage, words, bits):
    damage(shards)
    with pytest.raises(UserError, match=words):
        load(shards, workspace, bits)


def test_whole_ones_load(shards, workspace, tmp_path):
    packed = load(shards, workspace, 4)
    packed.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed", workspace, None)
    ids = torch.arange(4, 30)[None]
    with torch.no_grad():
        assert torch.equal(packed(ids).logits, again(ids).logits)


@pytest.mark.parametrize(("bits", "words"), [(None, "quantization_bit: 4"), (4, "device_map: auto")])
def test_too_little_memory_says_how_much_is_missing(shards, workspace, monkeypatch, bits, words):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    size = sum(file.stat().st_size for file in shards.glob("*.safetensors"))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (size // 100, 12 * 2**30))
    with pytest.raises(UserError, match=r"0\.0 of 12\.0 GiB are free") as caught:
        load(shards, workspace, bits)
    assert words in str(caught.value) and "GiB more is missing" in str(caught.value)


def test_out_of_memory_while_training_says_what_was_wanted(tmp_path):
    from workbench.train.main import diagnosis

    said = diagnosis(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has …"), tmp_path)
    assert "1.50 GiB more were needed" in said and "cutoff_len" in said


def test_a_file_larger_than_the_memory_is_looked_at(tmp_path):
    size = 200 << 30
    text = json.dumps({"a": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    file = tmp_path / "model.safetensors"
    with open(file, "wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + size)  # a hole: it takes no disk
    check_shards(tmp_path)
    with open(file, "r+b") as opened:
        opened.truncate(8 + len(text) + size - 1)
    with pytest.raises(UserError, match=r"model\.safetensors is not whole"):
        check_shards(tmp_path)
