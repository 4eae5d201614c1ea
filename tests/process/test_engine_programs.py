"""vLLM and SGLang as children of the engine's process: stand-ins take their place on the PATH."""

import contextlib
import os
import re
import sys
import time

import openai
import psutil
import pytest

from tests import other_engine
from workbench.config.options import EngineConfig
from workbench.config.run_config import validated
from workbench.engine.process import Engine
from workbench.errors import UserError

pytestmark = pytest.mark.process
ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder with programs `vllm` and `sglang`, first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vllm", "sglang"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{other_engine.__file__}" {name} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def until(true, seconds=120):
    """What `true()` gives, once it is true. Fails when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def config(folder, **values):
    return validated({"model_name_or_path": str(folder), "devices": "cpu"} | values, EngineConfig)


def below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def others_of_group(leader: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            found += [pid] if pid != leader and os.getpgid(pid) == leader else []
    return found


def gone(processes) -> bool:
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_page_starts_asks_and_ends_another_engine(kind, programs, tiny_model, adapter, workspace):
    engine, phases = Engine(workspace), set()
    engine.load(config(tiny_model, engine=kind, tensor_parallel_size=2), str(adapter))

    def ready():
        state = engine.state()
        phases.add(str(state.phase))
        assert state.state in ("queued", "starting", "running"), state.reason
        return state.state == "running"

    try:
        until(ready)
        title = {"vllm": "vLLM", "sglang": "SGLang"}[kind]
        assert engine.state().device == f"{title}, 2 GPUs"
        assert any(re.match(f"Starting {title}: Loading safetensors checkpoint shards: +0% ", one) for one in phases)
        client = openai.OpenAI(base_url=f"{engine.url}/v1", api_key=engine.key, max_retries=0)
        assert [model.id for model in client.models.list()] == [tiny_model.name, str(adapter)]
        answers = [
            client.chat.completions.create(model=name, **ASK).choices[0].message.content
            for name in (tiny_model.name, str(adapter))
        ]
        assert answers[0] != answers[1]
        started = below(engine._process.pid)
        assert len(started) == 2  # the program, and its worker
        line, environment = started[0].cmdline(), started[0].environ()
        assert "--served-model-name" in line and str(adapter) in " ".join(line)
        assert not {"WORKBENCH_API_KEY", "WORKBENCH_ENGINE_KEY"} & set(environment)
        log = engine._directory.log.read_text()
        for secret in filter(None, (engine.key, environment.get("VLLM_API_KEY"))):
            assert secret not in " ".join(line) and secret not in log
        assert environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == ("True" if kind == "vllm" else None)
        if kind == "sglang":  # one that dies is told, and leaves nothing
            started[0].kill()
            until(lambda: engine.state().state == "failed")
            assert engine.state().reason == "SGLang ended (-9): Application startup complete."
            until(lambda: gone(started))
    finally:
        engine.unload()
    assert gone(started)


FAILS = """#!/bin/sh
sleep 600 &
echo "torch.OutOfMemoryError: CUDA out of memory."
echo "RuntimeError: Engine core initialization failed. See root cause above."
echo "[rank0]: resource_tracker: There appear to be 1 leaked objects"
exit 1
"""


def test_one_that_does_not_start_is_told_by_its_error(programs, tiny_model, workspace):
    (programs / "sglang").write_text(FAILS)
    engine = Engine(workspace)
    engine.load(config(tiny_model, engine="sglang"))
    try:
        until(lambda: engine.state().state == "failed")
        assert engine.state().reason == "SGLang ended (1): torch.OutOfMemoryError: CUDA out of memory."
        until(lambda: not others_of_group(engine._process.pid))
    finally:
        engine.unload()


def test_unloading_while_it_starts_ends_it(programs, tiny_model, workspace):
    engine = Engine(workspace)
    engine.load(config(tiny_model, engine="vllm"))
    started = until(lambda: below(engine._process.pid))
    engine.unload()
    assert gone(started)


def test_the_other_engine_ends_with_the_process_that_started_it(programs, tiny_model, workspace):
    engine = Engine(workspace)
    engine.load(config(tiny_model, engine="vllm"))
    try:
        started = until(lambda: below(engine._process.pid))
        engine._process.kill()
        until(lambda: gone(started[:1]))
    finally:
        engine.unload()
        for one in started:
            if one.is_running():
                one.kill()


def test_a_program_that_is_not_there_is_told_at_once(tiny_model, workspace, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"vLLM is not installed here.*WORKBENCH_VLLM.*engine_url"):
        Engine(workspace).load(config(tiny_model, engine="vllm"))
    monkeypatch.setenv("WORKBENCH_SGLANG", "/opt/none/python")
    with pytest.raises(UserError, match="no program /opt/none/python"):
        Engine(workspace).load(config(tiny_model, engine="sglang"))


def test_a_page_connects_to_a_server_that_runs(tiny_model, adapter, workspace, monkeypatch):
    """The key goes through the environment, and the page's own one to nobody."""
    monkeypatch.setenv("WORKBENCH_ENGINE_KEY", "the owner's")
    stand_in = other_engine.StandIn("vllm", tiny_model, key="sesame", adapters={"tuned": str(adapter)})
    with stand_in.running() as url:
        engine = Engine(workspace)
        try:
            engine.load(config(tiny_model, engine_url=url), engine_key="sesame")
            assert "sesame" not in " ".join(psutil.Process(engine._process.pid).cmdline())
            until(lambda: engine.ready)
            client = openai.OpenAI(base_url=f"{engine.url}/v1", api_key=engine.key, max_retries=0)
            assert client.chat.completions.create(model="tuned", **ASK).usage.completion_tokens > 0
            assert engine.state().device == f"vLLM, {url}" and stand_in.requests
            until(lambda: engine.knows("tuned"))  # the server's own, to be chosen in the Chat tab
            engine.load(config(tiny_model, engine_url=url))
            assert psutil.Process(engine._process.pid).environ()["WORKBENCH_ENGINE_KEY"] == ""
        finally:
            engine.unload()
