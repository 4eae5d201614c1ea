"""The engine process as clients see it: the openai client over HTTP, on a tiny random model."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process


ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny-llama", "tuned"]


def test_adapter_changes_the_answer_and_leaves_the_base_alone(client):
    def answer(model):
        return client.chat.completions.create(model=model, temperature=0, **ASK).choices[0].message.content

    base, tuned = answer("tiny-llama"), answer("tuned")
    assert base != tuned
    assert answer("tiny-llama") == base and answer("tuned") == tuned


def test_streaming_equals_the_whole_answer_and_reports_usage(client):
    whole = client.chat.completions.create(model="tiny-llama", temperature=0, **ASK)
    chunks = list(
        client.chat.completions.create(
            model="tiny-llama", temperature=0, stream=True, stream_options={"include_usage": True}, **ASK
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    # a letter cut in half at the end of the answer is the only thing that may differ
    assert text.rstrip("\ufffd") == whole.choices[0].message.content.rstrip("\ufffd")
    assert (
        chunks[-1].usage == whole.usage
        and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    )
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert finishes == [whole.choices[0].finish_reason] == ["length"]


def test_same_seed_same_answer(client):
    answers = [
        client.chat.completions.create(model="tiny-llama", temperature=1.5, seed=seed, **ASK).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_errors_have_openais_shape(client, engine):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", **ASK)
    assert missing.value.code == "model_not_found" and "tiny-llama, tuned" in str(missing.value)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=engine, api_key="wrong", max_retries=0).models.list()
    for change in (
        {"temperature": 9},
        {"max_tokens": 0},
        {"messages": []},
        {"n": 99},
        {"stop": ["a"] * 20},
        {"top_logprobs": 3},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "x" * 5000}]},
        {"messages": [{"role": "user", "content": "x" * 500_000}]},
    ):
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model="tiny-llama", **(ASK | change))
        assert bad.value.body["message"]
    request = urllib.request.Request(
        engine + "/chat/completions", b"\xff{", {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as broken:
        urllib.request.urlopen(request)
    assert broken.value.code == 400 and json.load(broken.value)["error"]["message"]
    assert client.models.list().data  # and it lives on


def test_nulls_parts_and_extreme_sampling_are_fine(engine):
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    body = {
        "model": "tiny-llama",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 4,
        "top_p": None,
        "n": None,
        "stream": None,
    }
    for change in ({"temperature": None}, {"temperature": 1e-300}, {"seed": -5, "temperature": 2}, {"seed": 2**80}):
        request = urllib.request.Request(
            engine + "/chat/completions",
            json.dumps(body | change).encode(),
            {"Authorization": "Bearer secret", "Content-Type": "application/json"},
        )
        assert json.load(urllib.request.urlopen(request))["usage"]["completion_tokens"] > 0
    surrogate = json.dumps(body | {"messages": [{"role": "user", "content": "\ud800"}]}).encode()
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as broken:
        urllib.request.urlopen(urllib.request.Request(engine + "/chat/completions", surrogate, headers))
    assert broken.value.code == 400


def test_a_client_that_leaves_does_not_hold_the_engine(client):
    stream = client.chat.completions.create(
        model="tiny-llama", stream=True, **(ASK | {"max_tokens": 400, "temperature": 2, "seed": 3})
    )
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model="tiny-llama", **ASK).usage.completion_tokens > 0


def test_loading_an_adapter_while_serving(client, engine, adapter):
    root = engine.removesuffix("/v1")

    def load(path):
        body = json.dumps({"name": "late", "path": str(path)}).encode()
        request = urllib.request.Request(
            root + "/adapters", body, {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))

    with pytest.raises(urllib.error.HTTPError) as missing:
        load("/nowhere")
    assert "holds no adapter" in json.load(missing.value)["error"]["message"]
    assert load(adapter)["adapters"] == ["tuned", "late"]
    late, tuned = (
        client.chat.completions.create(model=m, temperature=0, **ASK).choices[0].message.content
        for m in ("late", "tuned")
    )
    assert late == tuned


def test_chat_in_the_terminal(tiny_model, adapter, tmp_path):
    command = [
        sys.executable,
        "-m",
        "workbench",
        "chat",
        str(tiny_model),
        "--temperature",
        "0",
        "--max-tokens",
        "5",
        "--workspace",
        str(tmp_path),
    ]
    answers = []
    for extra in ([], ["--adapter", str(adapter)]):
        done = subprocess.run([*command, *extra], input=b"Hi\nAgain\n", cwd=ROOT, capture_output=True, timeout=120)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        answers.append(done.stdout)
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere-model"], "There is no model 'nowhere-model'"),
        (["MODEL", "--adapter", "nowhere"], "holds no adapter"),
        (["MODEL", "--set", "flash_attn=flash_attention_2"], "is not installed here"),
        (["MODEL", "--set", "rope_scaling=linear", "--set", "rope_factor=0.5"], "rope_factor"),
        (["MODEL", "--host", "0.0.0.0"], "needs --api-key"),
        (["MODEL", "--port", "PORT"], "cannot be used"),
    ],
)
def test_bad_arguments_are_one_sentence(tiny_model, tmp_path, arguments, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        named = [
            str(tiny_model) if a == "MODEL" else str(taken.getsockname()[1]) if a == "PORT" else a for a in arguments
        ]
        ports = [] if "--port" in named else ["--port", "0"]
        done = subprocess.run(
            [sys.executable, "-m", "workbench", "serve", *named, *ports, "--workspace", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [
    {"quantization_bit": 4}, {"quantization_bit": 8}, {"rope_scaling": "linear"}, {"rope_scaling": "dynamic"},
    {"rope_scaling": "yarn"}, {"flash_attn": "eager"}, {"rope_scaling": "linear", "quantization_bit": 4, "flash_attn": "sdpa"},
], ids=str)  # fmt: skip
def test_every_way_to_load_answers(tiny_model, workspace, settings):
    """In this process: the decoder with each quantization, attention and RoPE scaling."""
    from workbench.config.options import EngineConfig
    from workbench.config.run_config import validated
    from workbench.engine.backend import Job, Sampling
    from workbench.engine.transformers_backend import TransformersDecoder

    said = []
    config = validated({"model_name_or_path": str(tiny_model)} | settings, EngineConfig)
    decoder = TransformersDecoder(config, workspace, lambda phase, share: None, said.append)
    job = Job(None, ASK["messages"], Sampling(max_tokens=5, temperature=0))
    assert len(list(decoder.open(job))) == job.completion_tokens > 0
    assert decoder.context == (1024 if "rope_scaling" in settings else 512)
    assert ("RoPE scaling" in "".join(said)) == ("rope_scaling" in settings)


def test_the_engine_ends_with_the_page(tiny_model, workspace):
    """An Engine's process exits when the process that started it is gone."""
    code = (
        "import sys, time; from workbench.engine.process import Engine; from workbench.storage.workspace import"
        " Workspace;from workbench.config.run_config import validated; from workbench.config.options import"
        " EngineConfig;e = Engine(Workspace(sys.argv[1])); e.load(validated({'model_name_or_path': sys.argv[2]},"
        " EngineConfig));print(e._process.pid, flush=True); time.sleep(100)"
    )
    import psutil

    page = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root), str(tiny_model)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    engine = psutil.Process(int(page.stdout.readline()))
    page.kill()
    page.wait()
    deadline = time.monotonic() + 60
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
