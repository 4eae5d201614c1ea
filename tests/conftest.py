"""Fixtures for all tests: isolated workspaces, a tiny random model, the demo model converted once."""

import gc
import os
import shutil
from pathlib import Path

import pytest

from tests.tiny import make_tiny_data, make_tiny_model
from workbench.storage.workspace import DEMO_MODEL, Workspace

ROOT = Path(__file__).parents[1]
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
LONGEST = ("tests/browser/test_story.py", "tests/browser/test_chat.py")

# no probing of the processor by programs in C++, half a minute of them: on GPUs compile_layers leaves it out, too
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
if WORKER:  # several processes of tests share the cores: torch's threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """The longest files of a folder come first in it, so that several processes of tests end together."""
    folders = list(dict.fromkeys(Path(item.location[0]).parent for item in items))
    items.sort(key=lambda item: (folders.index(Path(item.location[0]).parent), item.location[0] not in LONGEST))


def pytest_collection_finish(session):
    """What the tests' modules have imported stays: the collector need not walk it after each test."""
    gc.freeze()


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    """A folder of the whole session, also when several processes share it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if WORKER else own


@pytest.fixture(scope="session", autouse=True)
def compile_once(session_folder):
    """The kernels for the CPU are compiled once, here and in all child processes, and not for every workspace."""
    if compiler := shutil.which(os.environ.get("CC") or "gcc") or shutil.which("cc"):
        folder = session_folder / "compiled"
        folder.mkdir(exist_ok=True)
        os.environ |= {"COMPILER": compiler, "COMPILED": str(folder), "CC": str(ROOT / "tests" / "compile_once.py")}


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """An empty workspace."""
    return Workspace(tmp_path / "workspace").create()


@pytest.fixture(scope="session")
def demo_model(session_folder) -> Path:
    """The folder of the demo model, converted once for all tests of the session."""
    from workbench.models.demo import ensure_demo_model

    place = Workspace(os.environ.get("WORKBENCH_TEST_MODELS") or session_folder / "demo").create()
    return ensure_demo_model(place, lambda phase, share: None)


@pytest.fixture
def demo_workspace(tmp_path, demo_model) -> Path:
    """A workspace that has the demo model already."""
    place = Workspace(tmp_path / "demo-workspace").create()
    (place.models / DEMO_MODEL).symlink_to(demo_model)
    return place.root


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random Llama of a few thousand parameters with a byte-level tokenizer and a ChatML template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture
def tokenizer(tiny_model):
    """A fresh tokenizer of the tiny model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def tiny_moe(tiny_model, tmp_path_factory) -> Path:
    """A random DeepSeek-V2 with the tokenizer of `tiny_model`: three layers, the first dense, 8 experts."""
    import torch
    from transformers import AutoTokenizer, DeepseekV2Config, DeepseekV2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-moe"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=32,
        q_lora_rank=None,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        first_k_dense_replace=1,
        topk_method="greedy",
        norm_topk_prob=False,
        max_position_embeddings=512,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    )
    DeepseekV2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_data(tmp_path) -> Path:
    """A dataset folder with one small dataset named `small`."""
    return make_tiny_data(tmp_path / "data")
