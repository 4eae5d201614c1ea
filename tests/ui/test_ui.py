"""The page without a browser: what it sends, what it escapes, what it must not import."""

import asyncio
import importlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.chat.session import bubbles, shown
from workbench.config.presets import list_presets
from workbench.config.run_config import validated
from workbench.runs.run import create_run
from workbench.ui import monitor
from workbench.ui.form import Form
from workbench.ui.notes import note
from workbench.ui.tabs.train.base import Base, command_line

ROOT = Path(__file__).parents[2]


def test_the_page_never_imports_torch():
    code = (
        "import sys, app; from workbench.storage.workspace import Workspace; from workbench.ui.page import"
        " build_server;build_server(Workspace(sys.argv[1]), auth=None, api_key='', lang=None, local=True);print([m for"
        " m in ('torch', 'transformers', 'trl', 'peft', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, "/tmp"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "[]", out.stderr


def test_gradio_is_loaded_without_its_stubs():
    code = (
        "import sys; from workbench.ui.stubs import no_stubs_written as without\n"
        "with without(): import gradio\n"
        "print([f for f in sys.meta_path if type(f).__module__ == 'workbench.ui.stubs'],"
        " gradio.component_meta.create_or_modify_pyi.__module__, gradio.Button('Go').value)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "[] workbench.ui.stubs Go", out.stderr


def test_form_and_presets_agree(workspace):
    for preset in list_presets():
        form = Form(workspace, preset.values)
        config = form.config(form.fill(preset.values))
        assert config == validated({k: v for k, v in preset.values.items() if k not in ("stage", "do_train")})


def test_the_command_line_says_what_differs_from_the_preset(workspace):
    preset = list_presets()[0]
    form = Form(workspace, preset.values)
    values = form.read(form.fill(preset.values))
    assert command_line(Base.of_preset(preset), values, Path("runs")) == "python -m workbench train smollm2-demo"
    changed = {k: v for k, v in values.items() if k != "packing"} | {"lora_rank": 4, "run_name": "a b"}
    line = command_line(Base.of_preset(preset), changed, Path("runs"))
    assert "--set lora_rank=4" in line and "--set 'run_name=a b'" in line and "--set packing=False" in line


@pytest.fixture
def run(workspace):
    run = create_run(workspace, validated({"model_name_or_path": "a/<b>", "dataset": "d"}))
    run.update(state="failed", reason="<script>alert(1)</script>")
    run.log.write_text("<img src=x onerror=alert(1)>\n")
    return run


def test_log_lines_and_reasons_are_escaped(run):
    for html in (monitor.log_html(run), monitor.status_html(run, "en"), note("<b>x</b>")):
        assert "<script" not in html and "<img" not in html and "<b>x" not in html
    assert "&lt;img src=x onerror" in monitor.log_html(run)


def test_model_output_is_text_outside_code():
    assert (
        shown("a <script>b</script> `x<y` ```\n<p>\n``` <p>")
        == "a &lt;script&gt;b&lt;/script&gt; `x<y` ```\n<p>\n``` &lt;p&gt;"
    )
    assert bubbles([{"role": "assistant", "content": "<img onerror=1>"}])[0]["content"] == "&lt;img onerror=1&gt;"


def test_monitor_speaks_chinese(run):
    assert "失败" in monitor.status_html(run, "zh") and "failed" in monitor.status_html(run, "en")


def test_the_chart_is_small_and_keeps_its_zoom(run):
    with open(run.metrics, "w") as file:
        for step in range(1, 20_001):
            file.write(json.dumps({"current_steps": step, "total_steps": 20_000, "loss": 2 / step}) + "\n")
    chart = monitor.chart_json(run, "en", False)
    assert len(chart) < 40_000
    figure = json.loads(chart)
    assert figure["layout"]["uirevision"] == f"{run.id}-False" and len(figure["data"]) == 2
    assert json.loads(monitor.chart_json(run, "en", True))["layout"]["yaxis"]["type"] == "log"


def test_nothing_new_means_the_same_token(run):
    before = monitor.change_token(run, "en", False)
    assert monitor.change_token(run, "en", False) == before
    with open(run.log, "a") as file:
        file.write("more\n")
    assert monitor.change_token(run, "en", False) != before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "give --auth"),
        (["--auth", "nocolon"], "USER:PASSWORD"),
        (["--workspace", "/proc/none"], "cannot be created"),
        (["--port", "99999"], "cannot be used"),
    ],
)
def test_bad_start_arguments_are_one_sentence(arguments, words, tmp_path):
    defaults = ["--workspace", str(tmp_path / "w")] if "--workspace" not in arguments else []
    out = subprocess.run(
        [sys.executable, "app.py", *defaults, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert out.returncode == 2 and words in out.stderr and "Traceback" not in out.stderr


@pytest.mark.parametrize("module", ["workbench.ui.main.listen", "workbench.engine.main._listen"])
def test_answers_are_sent_at_once(module):
    """asyncio sets TCP_NODELAY only on connections of a socket whose protocol is named."""
    place, _, name = module.rpartition(".")
    with (
        getattr(importlib.import_module(place), name)("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        asyncio.run(_sends_at_once(connection))


async def _sends_at_once(connection):
    _, writer = await asyncio.open_connection(sock=connection)
    assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = ["--port", str(taken.getsockname()[1]), "--workspace", str(tmp_path / "w")]
        out = subprocess.run(
            [sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert out.returncode == 2 and "cannot be used" in out.stderr and "Traceback" not in out.stderr
