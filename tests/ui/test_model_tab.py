"""The Model tab's handlers: what is shown, what is refused, how a model is deleted."""

import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.config.run_config import validated
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.models.anatomy import bundled
from workbench.models.anatomy.report import find, given, report
from workbench.runs.run import create_run
from workbench.storage.workspace import Workspace
from workbench.ui.tabs.model import charts, machine, view
from workbench.ui.tabs.model.tab import ModelTab

ENGLISH = SimpleNamespace(cookies={}, headers={"accept-language": "en"})
CHINESE = SimpleNamespace(cookies={}, headers={"accept-language": "zh-CN"})
EVIL = "<img src=x onerror=alert(1)>"
MESSAGE, TILES, TREEMAP, CACHE, MAP, ROPE, HERE, FIELDS, FOUND = 0, 1, 3, 4, 6, 7, 9, 10, 11


@pytest.fixture
def tab(tmp_path):
    workspace = Workspace(tmp_path / "w", confined=True).create()
    return ModelTab(workspace, Engine(workspace))


@pytest.mark.parametrize("name", bundled.ORDER)
@pytest.mark.parametrize("request_", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_bundled_model_is_shown_whole_in_both_languages(tab, name, request_):
    shown = tab.show(name, False, 4, request_)
    assert len(shown) == 12 and all(isinstance(part, str) and part for part in shown[1:11])
    assert shown[FOUND].name == name and "wb-note bad" not in shown[MESSAGE]


def test_the_treemap_adds_up_and_can_show_the_active_ones(tab):
    found = find("DeepSeek-V2", tab.workspace)
    for active, whole in ((False, 235_741_434_880), (True, 21_375_800_320)):
        figure = json.loads(tab.part(found, active, ENGLISH))["data"][0]
        values = dict(zip(figure["ids"], figure["values"], strict=True))
        parts = {}
        for id_, parent in zip(figure["ids"], figure["parents"], strict=True):
            parts.setdefault(parent, []).append(values[id_])
        assert figure["branchvalues"] == "total" and values["all"] == sum(parts["all"]) == whole
        for id_, inside in parts.items():
            assert id_ in ("", "all") or values[id_] == pytest.approx(sum(inside), abs=3)
    assert tab.part(None, True, ENGLISH) == gr.skip() == tab.part("x", True, ENGLISH)


def test_the_cache_chart_marks_the_models_own_kind():
    bars = json.loads(charts.cache_chart(report(find("DeepSeek-V2", Workspace("w"))).anatomy, "en"))["data"][0]
    assert bars["y"] == ["MHA, 128 heads", "GQA, 8 groups", "MLA · this model"]
    assert bars["text"] == ["3.8 MiB", "240.0 KiB", "67.5 KiB"]


def test_another_factor_moves_the_lines(tab):
    found = find("Llama-3-8B", tab.workspace)
    (two, words), (eight, _) = tab.stretch(found, 2, ENGLISH), tab.stretch(found, 8, ENGLISH)
    lines = {line["name"]: line["y"] for line in json.loads(two)["data"]}
    assert lines["linear × 2"][5] == pytest.approx(2 * lines["as trained, unscaled"][5], rel=1e-3)
    assert "16,384" in words and json.loads(eight)["data"] != json.loads(two)["data"]
    for factor in (None, "x", float("nan"), 10**9, -3, True, [1]):
        assert tab.stretch(found, factor, ENGLISH)[0]
    assert tab.stretch(None, 2, ENGLISH) == (gr.skip(), gr.skip())


def test_the_map_has_a_box_for_every_layer():
    html = view.map_html(report(find("gpt-oss-20b", Workspace("w"))), "en")
    assert html.count("class='mixture window'") == 12 and html.count("class='mixture' title") == 12
    many = given(json.dumps(bundled.configs()["Llama-3-8B"] | {"num_hidden_layers": 2000}))
    assert view.map_html(report(many), "en").count("class='dense' title") == view.MOST_BOXES


def test_what_is_wrong_is_said_and_no_figure_shown(tab):
    bad = json.dumps(bundled.configs()["Llama-3-8B"] | {"num_key_value_heads": 5})
    (tab.workspace.root / "bad.json").write_text(bad)
    shown = tab.show(str(tab.workspace.root / "bad.json"), False, 4, ENGLISH)
    assert "no multiple of num_key_value_heads (5)" in shown[MESSAGE]
    assert "figures are not shown" in shown[TILES]
    assert shown[TREEMAP] == shown[CACHE] == shown[MAP] == shown[ROPE] == ""
    assert "cannot be told from the config" in shown[HERE] and "fields-table" in shown[FIELDS]


@pytest.mark.parametrize("name", [None, "", 7, ["x"], "/etc/passwd", "../..", "no such model", "x\0y"])
def test_names_that_show_nothing(tab, name):
    shown = tab.show(name, False, 4, ENGLISH)
    assert "wb-note" in shown[MESSAGE] and shown[1:] == (gr.skip(),) * 11


def test_a_dropped_config_is_read_in_bounds_and_shown_as_text(tab, tmp_path):
    values = bundled.configs()["Llama-3-8B"] | {EVIL: EVIL, "model_type": "llama", "rope_scaling": {"type": EVIL}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    *shown, drop = tab.dropped(str(path), False, 4, ENGLISH)
    assert drop is None and "<img" not in "".join(part for part in shown if isinstance(part, str))
    assert "&lt;img" in shown[FIELDS]
    for text, words in (
        ("[]", "no JSON object"),
        ("{" * 4000, "cannot be read"),
        (" " * (2 << 20), "at most 1024 KiB"),
    ):
        path.write_text(text)
        assert words in tab.dropped(str(path), False, 4, ENGLISH)[MESSAGE]
    assert tab.dropped(None, False, 4, ENGLISH) == [gr.skip()] * 13
    assert "wb-note bad" in tab.dropped(str(tmp_path), False, 4, ENGLISH)[MESSAGE]


def put(tab, name: str):
    folder = tab.workspace.models / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(bundled.configs()["Llama-3-8B"]))
    return folder


def test_models_on_this_machine_are_listed_and_deleted_by_name(tab):
    folder, other = put(tab, "first"), put(tab, EVIL)
    table, names, remove = tab.refresh(ENGLISH)
    assert "&lt;img" in table and "<img" not in table and "no weights" in table
    assert names.choices[1][1] == "first" and remove.choices == [(EVIL, EVIL), ("first", "first")]
    assert tab.deleting(None, ENGLISH) == (gr.skip(), gr.skip())  # the question was answered with no
    for name in ("../first", "first/", ".", "", str(folder), ["first"]):
        tab.deleting(name, ENGLISH)
        assert folder.is_dir() and tab.workspace.models.is_dir()
    assert "There is no model" in tab.deleting("../runs", ENGLISH)[0]
    assert "first is deleted" in tab.deleting("first", ENGLISH)[0]
    assert not folder.exists() and other.is_dir()


def test_a_gguf_is_listed_as_one_for_other_programs(tab):
    whole, gguf = put(tab, "merged"), tab.workspace.models / "for-ollama"
    gguf.mkdir()
    (gguf / "for-ollama-q8_0.gguf").write_bytes(b"GGUF")
    for folder, kind in ((whole, "safetensors"), (gguf, "gguf-q8_0")):
        (folder / ".export.json").write_text(json.dumps({"format": kind, "base": "m"}))
    table, names, remove = tab.refresh(ENGLISH)
    assert "exported as gguf-q8_0: for other programs" in table and "exported as safetensors<" in table
    own = [name for _, name in names.choices]
    assert "merged" in own and "for-ollama" not in own and ("for-ollama", "for-ollama") in remove.choices
    assert "is a GGUF for llama.cpp" in tab.show("for-ollama", False, 4, ENGLISH)[0]
    (gguf / ".export.json").write_text('{"format": 3')  # a broken mark is none
    assert "not whole" in tab.refresh(ENGLISH)[0]


def test_a_model_that_is_used_stays(tab):
    folder = put(tab, "used")
    run = create_run(tab.workspace, validated({"model_name_or_path": "org/used", "dataset": "d"}))
    assert f"The run {run.id} uses used" in tab.deleting("used", ENGLISH)[0]
    tab.engine.config = SimpleNamespace(model_name_or_path="used")
    tab.engine.state = lambda: SimpleNamespace(active=True)
    with pytest.raises(UserError, match="used is loaded"):
        machine.delete("used", tab.workspace, tab.engine)
    assert folder.is_dir()


def test_of_a_link_only_the_link_is_deleted(tab, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (tab.workspace.models / "link").symlink_to(outside)
    machine.delete("link", tab.workspace, tab.engine)
    assert not (tab.workspace.models / "link").exists() and (outside / "config.json").is_file()


def test_nothing_is_deleted_where_runs_may_only_be_looked_at(tab):
    folder = put(tab, "kept")
    tab.workspace.read_only = True
    assert "wb-note bad" in tab.deleting("kept", ENGLISH)[0] and folder.is_dir()


@pytest.fixture
def started(monkeypatch):
    """What is started as a child process; a child that sleeps stands in for it."""
    calls, children = [], []

    def start(directory, *arguments, **_):
        calls.append(arguments)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        threading.Thread(target=child.wait, daemon=True).start()
        children.append(child)
        return child

    monkeypatch.setattr(machine.job, "start", start)
    yield calls
    for child in children:
        child.kill()


def test_a_download_is_a_job_and_names_are_those_of_a_hub(tab, started):
    calls = started
    for name in ("tiny", "../x/y", "a/../b", "--help/x", "a/b/c", "", None, "http://h/x", "o/m" + "x" * 200):
        assert "no model of a hub" in tab.downloading(name, ENGLISH)
    assert calls == []
    assert "The download of org/tiny has begun" in tab.downloading(" org/tiny ", ENGLISH)
    assert calls[0][:5] == ("workbench", "download", "org/tiny", "--workspace", tab.workspace.root)
    assert "is still going" in tab.downloading("org/other", ENGLISH)  # one at a time
    html, seen, *lists = tab.progress(None, ENGLISH)
    assert "Downloading tiny" in html and seen[1] and lists == [gr.skip()] * 3
    assert tab.progress(seen, ENGLISH) == [gr.skip()] * 5
    put(tab, "tiny")
    assert "tiny is being downloaded" in tab.deleting("tiny", ENGLISH)[0]
    assert "stopped" in tab.stopping(ENGLISH).lower()
    _, after, *lists = tab.progress(seen, ENGLISH)
    assert not after[1] and "tiny" in lists[0]  # the lists anew


def test_nothing_is_downloaded_where_runs_may_only_be_looked_at(tab, started):
    tab.workspace.read_only = True
    assert "wb-note bad" in tab.downloading("org/tiny", ENGLISH) and "wb-note bad" in tab.stopping(ENGLISH)
    assert started == []


NASTY = (
    None,
    -1,
    0,
    1,
    3,
    10**7,
    10**30,
    0.5,
    1e-320,
    1e308,
    True,
    "x",
    EVIL,
    [],
    [None],
    [1] * 40,
    {},
    {"type": {}},
    {"a": [[]]},
)


@pytest.mark.parametrize("name", ["DeepSeek-V2", "gpt-oss-20b", "Phi-3.5-mini"])
def test_no_value_of_any_field_breaks_the_tab(tab, name):
    config = bundled.configs()[name]
    scaling = config.get("rope_scaling") or {"type": "yarn", "factor": 4.0, "beta_fast": 32}
    changed = [config | {key: value} for key in config for value in NASTY]
    changed += [config | {"rope_scaling": scaling | {key: value}} for key in scaling for value in NASTY]
    for number, values in enumerate(changed):
        shown = tab._shown(given(json.dumps(values)), number % 2, 1 + number % 30, "zh" if number % 3 else "en")
        assert len(shown) == 12 and "<img" not in "".join(shown[:11])
