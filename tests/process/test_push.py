"""A run that uploads what it has trained, to a stand-in for the hub."""

import os

import pytest

from tests.hub import StandInHub
from tests.process.test_train import BASE, only_run, state_of, workbench, write

pytestmark = pytest.mark.process


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    served = StandInHub(tmp_path / "hub", {"hf_test": "somebody"})
    yield served
    served.close()


@pytest.fixture
def config(tiny_model, tiny_data):
    return BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data), "push_to_hub": True, "max_steps": 2,
                   "quantization_bit": None}  # fmt: skip


def environment(hub, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"} | more


def test_adapter_tokenizer_and_checkpoints_are_uploaded_and_nothing_else(workspace, config, hub, tmp_path):
    more = {"hub_model_id": "somebody/tuned", "hub_strategy": "all_checkpoints", "save_steps": 1}
    done = workbench(workspace, "train", write(tmp_path, config | more), env=environment(hub))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = hub.folder / "models" / "somebody" / "tuned"
    uploaded = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    run = only_run(workspace)
    assert (folder / "adapter_model.safetensors").read_bytes() == (run / "adapter_model.safetensors").read_bytes()
    assert {"adapter_config.json", "tokenizer.json", "checkpoint-1/adapter_model.safetensors"} <= uploaded
    assert not uploaded & {"run.yaml", "state.json", "running_log.txt", "trainer_log.jsonl", "data.json"}
    assert hub.private == {"somebody/tuned": "private"} and not state_of(run)["warning"]


def test_an_upload_that_fails_ends_no_run(workspace, config, hub, tmp_path, monkeypatch):
    original = hub._uploading
    monkeypatch.setattr(hub, "_uploading", lambda *asked: None if "/commit/" in asked[1] else original(*asked))
    values = config | {"hub_strategy": "end"}
    done = workbench(workspace, "train", write(tmp_path, values), env=environment(hub))
    assert done.returncode == 0, done.stdout + done.stderr
    state = state_of(only_run(workspace))
    assert state["state"] == "finished" and "The upload to" in state["warning"]


@pytest.mark.parametrize(
    ("more", "words"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"), ({"HF_TOKEN": "", "HF_HOME": "/nonexistent"}, "needs a token")],
)
def test_what_cannot_upload_is_refused_before_the_run(workspace, config, hub, tmp_path, more, words):
    done = workbench(workspace, "train", write(tmp_path, config), env=environment(hub, **more))
    assert done.returncode == 2 and words in done.stdout + done.stderr
    assert not list(workspace.runs.glob("*/trainer_log.jsonl"))


def test_a_hub_that_refuses_is_one_sentence(workspace, config, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_uploading", lambda *asked: None)
    done = workbench(workspace, "train", write(tmp_path, config), env=environment(hub))
    assert done.returncode != 0 and "cannot be made on" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
