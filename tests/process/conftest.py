"""An engine process with a tiny random model and an adapter, and the openai client."""

import subprocess
import sys
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """An adapter of the tiny model that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(tiny_model, adapter, tmp_path_factory):
    command = [
        sys.executable,
        "-m",
        "workbench",
        "serve",
        str(tiny_model),
        "--port",
        "0",
        "--api-key",
        "secret",
        "--adapter",
        f"tuned={adapter}",
        "--workspace",
        str(tmp_path_factory.mktemp("w")),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    line = ""
    while "is ready" not in line:
        line = process.stdout.readline()
        assert line, process.wait(5)
    yield line.rsplit(" ", 1)[1].strip()
    process.terminate()
    process.wait(15)


@pytest.fixture
def client(engine):
    return openai.OpenAI(base_url=engine, api_key="secret", max_retries=0)


@pytest.fixture(scope="session")
def live(tiny_model, tmp_path_factory):
    """The API over the tiny model in this process, with room for tools: base URL and decoder."""
    from tests.serving import served, tiny_decoder
    from workbench.storage.workspace import Workspace

    decoder = tiny_decoder(tiny_model, Workspace(tmp_path_factory.mktemp("live")).create())
    with served(decoder, "tiny-llama") as (url, _):
        yield url, decoder
