"""Models and datasets from hubs: a stand-in for the Hugging Face hub at HF_ENDPOINT, and one for ModelScope's
package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.hub import StandInHub
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]

MODELSCOPE = """
import json, pathlib

class _Rows(list):
    def to_hf_dataset(self):
        from datasets import Dataset
        return Dataset.from_list(list(self))

class MsDataset:
    @staticmethod
    def load(name, subset_name=None, data_dir=None, split=None):
        file = pathlib.Path(FOLDER) / "datasets" / name / "data" / f"{split}.jsonl"
        if not file.is_file():
            raise ValueError(f"{name} is not on the hub")
        return _Rows(json.loads(line) for line in file.read_text().splitlines())

def snapshot_download(name, revision=None, cache_dir=None):
    assert revision == "master"
    folder = pathlib.Path(FOLDER) / "models" / name
    if not folder.is_dir():
        raise ConnectionError("no route to host")
    return str(folder)
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Folders of a hub: models/org/tiny, datasets/org/talks."""
    folder = tmp_path_factory.mktemp("hub")
    make_tiny_model(folder / "models/org/tiny")
    data = folder / "datasets/org/talks/data"
    data.mkdir(parents=True)
    for split, count in (("train", 12), ("test", 3)):
        rows = [{"instruction": f"{split} {i}", "output": f"Answer {i}"} for i in range(count)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def workbench(workspace, tmp_path):
    """Run the command line in an environment of its own, with further variables."""

    def run(*arguments, **variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "USE_MODELSCOPE"))}
        environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, "-m", "workbench", *map(str, arguments), "--workspace", str(workspace.root)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_a_mirror_serves_models_and_datasets_and_they_stay(repositories, workbench, tmp_path):
    hub = StandInHub(repositories)
    (tmp_path / "data").mkdir()
    entry = {
        "held": {"hf_hub_url": "org/talks", "split": "test"},
        "nothing": {"hf_hub_url": "org/talks", "split": "dev"},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(entry))
    try:
        asked = {"HF_ENDPOINT": hub.url}
        done = workbench("data", "preview", "org/talks", "--model", "org/tiny", "--rows", 2, "--json", **asked)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0 and "train 1" in rows[1]["rows"][0]["text"], done.stderr
        assert any(path.startswith("/org/tiny/resolve/") for path in hub.asked)
        assert "3 rows, 0 broken" in workbench("data", "check", "held", **asked).stdout
        values = {
            "model_name_or_path": "org/tiny",
            "dataset": "org/talks",
            "max_steps": 2,
            "cutoff_len": 64,
            "report_to": "none",
            "template": "auto",
        }
        (tmp_path / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        trained = workbench("train", tmp_path / "run.yaml", **asked)
        assert trained.returncode == 0, trained.stdout[-2000:] + trained.stderr[-2000:]
        for arguments, words in (
            (("data", "check", "org/absent"), "org/absent does not exist, or is not open to everybody"),
            (("data", "preview", "org/talks", "--model", "org/absent"), f"{hub.url}/org/absent does not exist"),
            (("data", "check", "nothing"), "Set split in its entry"),
        ):
            failed = workbench(*arguments, **asked)
            assert failed.returncode == 2 and words in failed.stderr and "Traceback" not in failed.stderr
        hub.asked.clear()
        assert workbench("data", "check", "org/talks", HF_HUB_OFFLINE="1").stdout.startswith("org/talks: 12 rows")
        assert workbench("data", "preview", "org/talks", "--model", "org/tiny", HF_HUB_OFFLINE="1").returncode == 0
        assert not hub.asked
    finally:
        hub.close()
    # the hub is gone: what was fetched is still used
    assert workbench("data", "check", "org/talks", **asked).stdout.startswith("org/talks: 12 rows")
    assert workbench("data", "preview", "org/talks", "--model", "org/tiny", **asked).returncode == 0


@pytest.mark.parametrize("told", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "told to be offline"])
def test_without_a_network_it_says_what_is_wanted_and_how_to_get_it(workbench, told):
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", **told}
    failed = workbench("data", "check", "org/talks", **offline)
    assert (
        failed.returncode == 2
        and "http://127.0.0.1:9/datasets/org/talks (split train) cannot be fetched" in failed.stderr
    )
    assert (
        "hf download org/talks --repo-type dataset --local-dir FOLDER" in failed.stderr
        and "HF_ENDPOINT" in failed.stderr
    )
    failed = workbench("data", "preview", "abilities", "--dataset-dir", ROOT / "data", "--model", "org/tiny", **offline)
    assert failed.returncode == 2 and "config.json, tokenizer files and *.safetensors" in failed.stderr
    assert "hf download org/tiny --local-dir tiny" in failed.stderr and "models/tiny" in failed.stderr


def test_modelscope_is_asked_where_it_is_wished(repositories, workbench, tmp_path):
    wished = {"USE_MODELSCOPE_HUB": "1", "HF_HUB_OFFLINE": "1"}
    failed = workbench("data", "check", "org/talks", **wished)
    assert failed.returncode == 2 and "pip install modelscope" in failed.stderr
    package = tmp_path / "packages"
    package.mkdir()
    (package / "modelscope.py").write_text(f"FOLDER = {str(repositories)!r}\n{MODELSCOPE}")
    wished["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(package)])
    done = workbench("data", "preview", "org/talks", "--model", "org/tiny", "--rows", 1, "--json", **wished)
    assert done.returncode == 0 and "train 0" in json.loads(done.stdout)["rows"][0]["text"], done.stderr
    failed = workbench("data", "check", "org/absent", **wished)
    assert failed.returncode == 2 and "modelscope download --dataset org/absent --local_dir FOLDER" in failed.stderr
    failed = workbench("data", "preview", "org/talks", "--model", "org/absent", **wished)
    assert (
        "cannot be fetched from ModelScope: no route to host" in failed.stderr
        and "modelscope download --model org/absent" in failed.stderr
    )


def test_a_downloaded_folder_is_a_dataset(repositories, workbench):
    """As `hf download … --local-dir` leaves it: the file of the wished split is read."""
    done = workbench("data", "check", repositories / "datasets/org/talks")
    assert done.returncode == 0 and "12 rows" in done.stdout


def test_a_model_is_downloaded_whole_goes_on_and_is_not_taken_for_another(repositories, workbench, workspace):
    hub = StandInHub(repositories)
    there = repositories / "models/org/tiny"
    (there / "pytorch_model.bin").write_bytes(b"x" * 1000)  # another form of the weights, which is not fetched
    target = workspace.models / "tiny"
    try:
        asked = {"HF_ENDPOINT": hub.url}
        target.mkdir(parents=True)
        (target / ".source").write_text("org/tiny\n")  # one that was stopped
        (target / "config.json").write_text((there / "config.json").read_text())
        done = workbench("--lang", "en", "download", "org/tiny", **asked)
        assert done.returncode == 0 and "tiny is in the workspace" in done.stdout, done.stderr
        names = {p.name for p in target.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
        assert not names & {".source", ".cache", "pytorch_model.bin"}
        assert (target / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
        again = workbench("--lang", "en", "download", "org/tiny", **asked)
        assert again.returncode == 2 and "There is a model tiny in the workspace already" in again.stderr
        nothing = workbench("--lang", "en", "download", "org/nothing", **asked)
        assert nothing.returncode == 2 and "org/nothing does not exist" in nothing.stderr
        assert not (workspace.models / "nothing").exists()
    finally:
        hub.close()
        (there / "pytorch_model.bin").unlink()


def test_a_model_that_has_no_room_is_not_begun(workspace, monkeypatch):
    from workbench.errors import UserError
    from workbench.models import download

    monkeypatch.delenv("USE_MODELSCOPE_HUB", raising=False)
    monkeypatch.setattr(download, "_listed", lambda *_: {"model.safetensors": 1 << 60})
    with pytest.raises(UserError, match=r"needs 1048576\.0 TiB more on the disk"):
        download.download("org/large", "main", workspace.create(), lambda *_: None)
    assert not (workspace.models / "large").exists()


@pytest.fixture
def adapter(tmp_path):
    """A model and an adapter of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = make_tiny_model(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def test_a_base_of_a_hub_is_fetched_and_named_in_the_card(workbench, workspace, adapter, tmp_path):
    base, lora = adapter
    shutil.copytree(base, tmp_path / "hub" / "models" / "org" / "base")
    (tmp_path / "hub" / "models" / "org" / "base" / "README.md").write_text("---\nlicense: mit\n---\nA base.")
    hub = StandInHub(tmp_path / "hub")
    try:
        for kind, relation in (("safetensors", "finetune"), ("lora", "adapter")):
            export = ("export", "org/base", "--adapter", lora, "--name", kind, "--format", kind)
            done = workbench(*export, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1")
            assert done.returncode == 0, done.stderr[-2000:]
            front = yaml.safe_load((workspace.models / kind / "README.md").read_text().split("---")[1])
            assert (front["base_model"], front["base_model_relation"], front["license"]) == (
                "org/base",
                relation,
                "mit",
            )
        config = json.loads((workspace.models / "lora" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "org/base"
    finally:
        hub.close()


def test_an_export_goes_to_the_hub_and_comes_back(workbench, workspace, adapter, tmp_path):
    hub = StandInHub(tmp_path / "hub", {"hf_good": "ann"}, closed=("ann/taken",))
    asked = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good", "HF_HUB_DISABLE_XET": "1"}
    base, lora = adapter
    export = ("export", base, "--adapter", lora)
    try:
        done = workbench(*export, "--name", "mine", "--push-to-hub", "mine", "--private", **asked)
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"mine is at {hub.url}/ann/mine." in done.stdout
        sent = tmp_path / "hub" / "models" / "ann" / "mine"
        local = workspace.models / "mine"
        assert {p.name for p in sent.iterdir()} == {p.name for p in local.iterdir()} - {".export.json"}
        assert all((local / p.name).read_bytes() == p.read_bytes() for p in sent.iterdir() if p.name != "README.md")
        assert 'from_pretrained("ann/mine")' in (sent / "README.md").read_text()
        assert hub.private == {"ann/mine": "private"}
        assert json.loads((local / ".export.json").read_text())["hub"] == f"{hub.url}/ann/mine"
        assert not any("hf_good" in p.read_text(errors="replace") for p in workspace.root.rglob("*") if p.is_file())

        script = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
        environment = {**os.environ, **asked, "HF_HOME": str(tmp_path / "elsewhere")}
        line = [sys.executable, "-c", script, "ann/mine"]
        loaded = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert loaded.returncode == 0, loaded.stderr[-2000:]

        again = workbench("upload", "mine", "team/mine", **asked)
        assert f"mine is at {hub.url}/team/mine." in again.stdout and hub.private["team/mine"] is None
        for to, words in (
            ("other/mine", "ann may not write to other/mine"),
            ("readers/mine", "ann may not write to readers/mine"),
            ("ann/taken", "ann may not write to ann/taken"),
            ("a/b/c", "'a/b/c' cannot be a repository's name"),
            ("../x", "cannot be a repository's name"),
        ):
            failed = workbench("upload", "mine", to, **asked)
            assert failed.returncode == 2 and words in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
        assert "There are: mine." in workbench("upload", "nothing", "x", **asked).stderr
        for name, values, words in (
            ("none", {"HF_TOKEN": ""}, f"There is no token for {hub.url}. Log in with `hf auth login`"),
            ("wrong", {"HF_TOKEN": "hf_bad"}, f"{hub.url} does not accept the token"),
            ("off", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
            ("ms", {"USE_MODELSCOPE_HUB": "1"}, "USE_MODELSCOPE_HUB is set"),
        ):
            failed = workbench(*export, "--name", name, "--push-to-hub", "mine", **asked | values)
            assert failed.returncode == 2 and words in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
            assert not (workspace.models / name).exists()  # told before anything is written
    finally:
        hub.close()
