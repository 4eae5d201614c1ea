"""How vLLM and SGLang are started, and what is asked of and read from them; no server, no process."""

import json

import pytest

from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.engine.backend import Sampling
from workbench.engine.external.dialects import Seen, Sglang, Vllm
from workbench.engine.external.program import child_environment, command_line
from workbench.errors import UserError
from workbench.storage.workspace import CODE


def config(**values) -> EngineConfig:
    return validated({"model_name_or_path": "m"} | values, EngineConfig)


def adapter(folder, rank, **more):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank} | more))
    return folder


def test_vllm_s_line(tmp_path):
    plain = command_line(config(engine="vllm"), "/bin/vllm", "/models/m", "m", {}, 4001)
    assert " ".join(plain) == (
        "/bin/vllm serve /models/m --host 127.0.0.1 --port 4001 --served-model-name m --tensor-parallel-size 1"
        " --revision main"
    )
    asked = config(
        engine="vllm",
        tensor_parallel_size=4,
        gpu_memory_utilization=0.8,
        max_model_len=4096,
        infer_dtype="bfloat16",
        trust_remote_code=True,
    )
    tuned = adapter(tmp_path / "a=b", 96)
    line = command_line(asked, "vllm", "m", "m", {"run-1": tuned}, 4001)
    assert line[line.index("--tensor-parallel-size") :] == [
        "--tensor-parallel-size", "4", "--revision", "main", "--dtype", "bfloat16", "--gpu-memory-utilization", "0.8",
        "--max-model-len", "4096", "--trust-remote-code", "--enable-lora", "--max-lora-rank", "128", "--lora-modules",
        json.dumps({"name": "run-1", "path": str(tuned)}),
    ]  # fmt: skip


def test_sglang_s_line(tmp_path):
    asked = config(engine="sglang", tensor_parallel_size=2, gpu_memory_utilization=0.5, max_model_len=512)
    tuned = adapter(tmp_path / "a", 8)
    line = command_line(asked, "/bin/sglang", "m", "base", {"run-1": tuned}, 4001)
    assert " ".join(line) == (
        "/bin/sglang serve --model-path m --host 127.0.0.1 --port 4001 --served-model-name base --tp-size 2 --revision"
        f" main --mem-fraction-static 0.5 --context-length 512 --enable-lora --max-lora-rank 64 --lora-paths run-1={tuned}"
    )
    by_python = command_line(config(engine="sglang"), "/opt/sglang/bin/python3.11", "m", "base", {}, 1)
    assert by_python[:4] == ["/opt/sglang/bin/python3.11", "-m", "sglang.launch_server", "--model-path"]


def test_ranks_that_patterns_raise_count_and_too_large_ones_are_refused(tmp_path):
    def rank(folder):
        line = command_line(config(engine="vllm"), "vllm", "m", "m", {"a": folder}, 1)
        return int(line[line.index("--max-lora-rank") + 1])

    assert rank(adapter(tmp_path / "a", 64)) == 64 and rank(adapter(tmp_path / "b", 300)) == 320
    assert rank(adapter(tmp_path / "c", 8, rank_pattern={"q_proj": 200})) == 256
    with pytest.raises(UserError, match="rank 1024; this engine takes at most 512"):
        rank(adapter(tmp_path / "d", 1024))


def test_a_child_gets_none_of_our_keys_nor_our_package(monkeypatch):
    for name in ("WORKBENCH_API_KEY", "WORKBENCH_ENGINE_KEY"):
        monkeypatch.setenv(name, "ours")
    monkeypatch.setenv("PYTHONPATH", f"{CODE}:/theirs")
    env = child_environment(config(engine="vllm", devices="2,3"), "secret", adapters=True)
    assert not [name for name, value in env.items() if value == "ours"]
    assert (env["PYTHONPATH"], env["CUDA_VISIBLE_DEVICES"], env["VLLM_API_KEY"]) == ("/theirs", "2,3", "secret")
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in child_environment(config(engine="vllm"), "k", adapters=False)
    other = child_environment(config(engine="sglang"), "secret", adapters=True)
    assert other["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "1" and "secret" not in other.values()


@pytest.mark.parametrize(("values", "words"), [
    ({"engine": "vllm", "quantization_bit": 4, "rope_scaling": "linear"}, "quantization_bit, rope_scaling: only the workbench"),
    ({"tensor_parallel_size": 2}, "tensor_parallel_size: only with engine: vllm or sglang"),
    ({"engine_url": "http://h:1", "max_model_len": 99, "infer_dtype": "float16"}, "max_model_len, infer_dtype: the server at"),
    ({"engine_url": "h:1"}, "http://10.0.0.5:8000"),
    ({"engine_url": "http://ann:pw@h:1"}, "without a name, password or query"),
    ({"engine": "vllm", "gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
    ({"engine": "tgi"}, "engine"),
])  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_loaded(values, words):
    with pytest.raises(UserError) as refused:
        config(**values)
    assert words in str(refused.value)


@pytest.mark.parametrize("dialect", [Vllm(), Sglang()], ids=lambda dialect: dialect.title)
def test_sampling_is_sent_whole(dialect):
    """All values, so that what the server's own defaults are does not count."""

    def sent(**values):
        body = dialect.request("base", "tuned", [1, 2], Sampling(**values), 7, [2, 9])
        return body.get("sampling_params", body)

    common = {"temperature": 0.7, "top_p": 0.95, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert common.items() <= sent().items() and sent()["stop_token_ids"] == [2, 9]
    for greedy in ({"temperature": 0.0}, {"top_p": 0.0, "top_k": 5, "min_p": 0.1}):
        assert {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}.items() <= sent(**greedy).items()
    asked = sent(top_k=5, min_p=0.1, presence_penalty=1.0, frequency_penalty=-1.0, logit_bias={3: -5.0}, seed=4)
    assert {"top_k": 5, "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": -1.0}.items() <= asked.items()
    assert asked["logit_bias"] == {"3": -5.0} and 4 in (asked.get("seed"), asked.get("sampling_seed"))
    assert asked.get("max_tokens", asked.get("max_new_tokens")) == 7


def test_sglang_s_events_are_read_as_they_repeat_or_not():
    """The same three tokens, from the beginning each time and only what is new."""
    entries, tops = (
        [[-0.5, 7, None], [-2.0, 8, None], [-0.1, 7, None]],
        [[[-0.5, 7, None]], [[-0.3, 5, None]], [[None, 5, None]]],
    )

    def event(first, last, finish=None):
        about = {
            "finish_reason": finish,
            "output_token_logprobs": entries[first:last],
            "output_top_logprobs": tops[first:last],
        }
        return {"meta_info": about | {"output_token_logprobs_length": last}}

    for repeats in (True, False):
        seen, pieces = Seen(1), []
        for begin, end, finish in ((0, 1, None), (1, 3, {"type": "length"})):
            pieces.append(Sglang().read(event(0 if repeats else begin, end, finish), seen))
        assert [piece.ids for piece in pieces] == [[7], [8, 7]] and pieces[1].finish == "length"
        one, two, three = [measured for piece in pieces for measured in piece.measured]
        assert (one.logprob, one.rank, one.top) == (-0.5, 1, [(7, -0.5)])
        assert (two.logprob, two.rank, two.top) == (-2.0, None, [(5, -0.3)])
        assert three.top == []  # what a grammar forbids has no logarithm
    with pytest.raises(UserError, match="does not tell the ids"):
        Sglang().read({"meta_info": {"completion_tokens": 1, "finish_reason": None}}, Seen())


def test_vllm_names_the_chosen_token_beside_the_likeliest():
    def event(top):
        logprobs = {"token_logprobs": [-3.0], "top_logprobs": [top]}
        return {"choices": [{"token_ids": [4], "logprobs": logprobs, "finish_reason": None}]}

    (beside,) = Vllm().read(event({"token_id:4": -3.0, "token_id:6": -1.0, "token_id:5": -0.5}), Seen(2)).measured
    assert (beside.rank, beside.top) == (None, [(5, -0.5), (6, -1.0)])
    (among,) = Vllm().read(event({"token_id:4": -3.0, "token_id:5": -0.5}), Seen(2)).measured
    assert (among.rank, among.top) == (2, [(5, -0.5), (4, -3.0)])
