"""Memory by arithmetic, and loading beside a run."""

import pytest

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.engine import process
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.models.memory import free_gib, loaded_gib, weights_gib
from workbench.runs.run import create_run
from workbench.runs.state import own_process


@pytest.fixture
def model(workspace):
    folder = workspace.models / "big"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(10 << 30)  # takes no room on the disk
    return folder


def test_sizes(model, tmp_path):
    assert weights_gib(model) == 10 and weights_gib(tmp_path / "none") == 0
    assert loaded_gib(model, None, True) == pytest.approx(11) and loaded_gib(model, None, False) == pytest.approx(22)
    assert 3 < loaded_gib(model, 4, True) < 4 < loaded_gib(model, 8, True) < 7
    (model / "config.json").write_text('{"dtype": "float32"}')
    assert loaded_gib(model, None, False) == pytest.approx(11)
    (model / "config.json").write_text("{}")
    free, on_gpu = free_gib("cpu")
    assert free > 0 and not on_gpu


def test_loading_beside_a_run_says_before_it_tries_that_there_is_no_room(workspace, model, monkeypatch):
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}))
    run.update(state="running", **own_process())
    engine, config = Engine(workspace), validated({"model_name_or_path": "big"}, EngineConfig)
    monkeypatch.setattr(process, "free_gib", lambda devices: (8.0, True))
    with pytest.raises(UserError, match=rf"about 11.0 GiB, but 8.0 GiB are free while {run.id} trains"):
        engine.load(config)
    assert engine.state() is None
    engine.check_room(config.model_copy(update={"quantization_bit": 4}))
    run.update(state="finished", ended=1.0)
    with pytest.raises(UserError, match=r"are free\. Choose 4 bit, or load"):
        engine.check_room(config)
