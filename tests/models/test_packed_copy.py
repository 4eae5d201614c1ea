"""The 4-bit weights that a load keeps for the next one."""

import shutil

import pytest
import torch

from tests.tiny import make_tiny_model
from workbench.config.options import EngineConfig
from workbench.models import packed_copy
from workbench.models.load import load_model
from workbench.storage.workspace import Workspace


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a tiny model in 4 bits; `(model, log lines)`. Everything counts as large."""
    monkeypatch.setattr(packed_copy, "_LEAST_GIB", 0.0)
    monkeypatch.setattr(packed_copy, "_FREE_GIB", 0.0)
    source, workspace = make_tiny_model(tmp_path / "model"), Workspace(tmp_path / "w").create()

    def load(**options):
        lines = []
        config = EngineConfig(model_name_or_path=str(source), quantization_bit=4, **options)
        model = load_model(
            config, workspace, dtype=torch.float32, split=False, progress=lambda *_: None, log=lines.append
        )
        return model, " ".join(lines)

    load.source, load.folder = source, workspace.cache / "quantized"
    return load


def _logits(model):
    return model(torch.arange(5, 25)[None]).logits


def test_second_load_reads_the_copy_and_computes_the_same(load):
    first, said = load()
    assert "Kept the 4-bit weights" in said
    second, said = load()
    assert "Reading the 4-bit weights" in said and "Kept" not in said
    assert torch.equal(_logits(first), _logits(second))
    assert second.config.name_or_path == second.name_or_path == str(load.source)
    assert not list(load.folder.glob(".*"))


def test_rope_scaling_of_one_load_is_not_that_of_the_next(load):
    load(rope_scaling="linear", rope_factor=4.0)
    plain, said = load()
    assert "Reading" in said
    again, _ = load(rope_scaling="linear", rope_factor=4.0)
    assert not torch.allclose(_logits(plain), _logits(again))
    assert plain.config.rope_parameters["rope_type"] == "default"


def test_changed_files_and_other_options_have_copies_of_their_own(load):
    load()
    _, said = load(quantization_type="fp4")
    assert "Kept" in said
    with open(load.source / "config.json", "a") as file:
        file.write("\n")
    _, said = load()
    assert "Kept" in said
    assert len(list(load.folder.iterdir())) == 3
    _, said = load(double_quantization=False)
    assert "Kept" in said and len(list(load.folder.iterdir())) == 3


def test_broken_copy_is_made_anew(load):
    load()
    (copy,) = load.folder.iterdir()
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    _, said = load()
    assert "Kept" in said and "Reading" not in said
    (copy / "config.json").write_text("{}")
    assert "Kept" in load()[1]


def test_no_room_and_off(load, monkeypatch):
    assert "4-bit weights" not in load(keep_quantized=False)[1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    monkeypatch.setattr(packed_copy, "_FREE_GIB", 1.0)
    _, said = load()
    assert "are not kept for later loads: 0 GiB" in said and not list(load.folder.iterdir())
