"""Memory and time beside the forms of the Train and Chat tabs, as handlers: no server, no browser, no model."""

import json
from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.config.run_config import validated
from workbench.engine.process import Engine
from workbench.models.cost.device import Device, card_memory
from workbench.runs.run import create_run
from workbench.storage.workspace import Workspace
from workbench.train.estimates import history, outlook, record
from workbench.ui import monitor
from workbench.ui.page import Page

ENGLISH = SimpleNamespace(cookies={}, headers={"accept-language": "en"})
CHINESE = SimpleNamespace(cookies={}, headers={"accept-language": "zh-CN"})
QWEN = {"model_name_or_path": "Qwen/Qwen3-8B", "dataset": "abilities", "torch_compile": "off"}


@pytest.fixture
def page(workspace, monkeypatch):
    """A page on a machine with one card of 8 GB."""
    monkeypatch.setattr(outlook, "device_for", lambda devices: Device("Card", card_memory(8), True, 1, 200.0))
    return Page(workspace, Engine(workspace))


def event(**data):
    return SimpleNamespace(_data=data)


def preview(page, request=ENGLISH, **values):
    train = page.train
    *_, chart, words = train.preview(request, train.first, *train.form.fill(QWEN | values))
    return chart, words


def skipped(value) -> bool:
    return isinstance(value, dict) and value == gr.skip()


def test_the_bar_adds_up_to_the_total_against_the_device(page):
    chart, words = preview(page, quantization_bit=4)
    figure = json.loads(chart)
    expected = outlook.outlook(validated(QWEN | {"quantization_bit": 4}), page.workspace)
    shown = sum(part["x"][0] for part in figure["data"])
    assert shown == pytest.approx(expected.total / 2**30, abs=0.02)
    assert figure["layout"]["barmode"] == "stack"
    assert figure["layout"]["shapes"][0]["x0"] == pytest.approx(8 * 0.985)
    assert "8 GB ✓" in words and "It fits here" in words
    chart, words = preview(page, CHINESE, quantization_bit=4)
    assert "权重" in chart and "可在此运行" in words


def test_what_does_not_fit_is_told_with_what_saves_most(page):
    _, words = preview(page, quantization_bit=8, lora_target="all")
    assert "wb-note warn" in words and "It does not fit here" in words and "16 GB ✓" in words
    assert words.count("data-change=") == 3 and "quantization_bit" in words.split("data-change=")[1]
    train = page.train
    large = QWEN | {"quantization_bit": 4, "lora_rank": 512, "lora_target": "all"}
    message = train.preview(ENGLISH, train.first, *train.form.fill(large))[2]
    assert "wb-note warn" in message and "It may run out of memory" in message
    message = train.preview(ENGLISH, train.first, *train.form.fill(QWEN | {"quantization_bit": 8}))[2]
    assert "wb-note bad" in message and "its weights alone take 8.8 GiB" in message


def test_a_change_is_applied_by_a_click(page):
    _, words = preview(page, quantization_bit=8)
    change = words.split("data-change='")[1].split("'")[0].replace("&quot;", '"')
    updates = page.train.apply(event(change=change))
    names = page.train.form.names
    assert updates[names.index("quantization_bit")] == 4
    assert sum(not skipped(update) for update in updates) == 1


@pytest.mark.parametrize(
    "change",
    [None, 5, "", "[", "[1]", '{"nosuch": 1}', '{"lora_rank": [1]}', "[" * 5000, '{"lora_rank": {"a": 1}}'],
)
def test_a_click_that_no_page_has_made_changes_nothing(page, change):
    assert all(map(skipped, page.train.apply(event(change=change))))
    assert skipped(page.chat.panel.costs.apply(event(change=change)))


def test_a_model_that_is_not_known_gives_one_sentence(page):
    chart, words = preview(page, model_name_or_path="nobody/nothing")
    assert chart == "" and "nobody/nothing is not on this machine" in words
    assert preview(page, lora_rank="many") == ("", "")


def test_start_refuses_a_wrong_target_with_what_there_is(page):
    train = page.train
    message = train.preview(ENGLISH, train.first, *train.form.fill(QWEN | {"lora_target": "query"}))[2]
    assert "wb-note bad" in message and "query matches no module" in message and "q_proj" in message


def test_chat_shows_weights_cache_and_which_cards(page):
    panel = page.chat.panel
    page.build()
    asked = ["Qwen/Qwen3-8B", 0, *(panel.defaults[name].default for name in panel.more)]
    chart, words = panel.costs.expected(ENGLISH, "", *asked)
    assert "KV cache" in chart and "8 GB ✗" in words and "24 GB ✓" in words and "quantization_bit=4" in words
    assert panel.costs.apply(event(change='{"quantization_bit": 4}')) == 4
    chart, words = panel.costs.expected(ENGLISH, "", "", *asked[1:])
    assert chart == "" and "wb-sub" in words


def test_presets_for_this_machine_and_forgetting(page):
    table, words = page.train.here.look(ENGLISH)
    assert table.index("recommended") < table.index("deepseek-v2-qlora") and "does not fit" in table
    assert "No run has been measured yet" in words
    history.add(page.workspace, history.Measured("r", "m (1)", "Card", 4, 10.0, 11.0))
    assert "1 runs of this workspace correct" in page.train.here.look(ENGLISH)[1]
    assert all(map(skipped, page.train.here.forgotten("no", ENGLISH)))
    assert "1 measurements are forgotten" in page.train.here.forgotten("yes", ENGLISH)[1]
    assert history.read(page.workspace) == []
    filled = page.train.taken(event(preset="qwen3-8b-qlora"), ENGLISH)
    assert filled[2].name == "qwen3-8b-qlora"
    assert all(map(skipped, page.train.taken(event(preset="../x"), ENGLISH)[2:]))


def test_a_corrected_estimate_says_by_how_much(page):
    model = outlook.outlook(validated(QWEN), page.workspace).model
    for number in range(3):
        history.add(page.workspace, history.Measured(f"r{number}", model, "Card", 4, 10.0, 12.0))
    _, words = preview(page)
    assert "Corrected by a factor of 1.20 from 3 earlier runs" in words


def test_a_runs_page_shows_estimate_measurement_and_ratio(workspace):
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}), state="finished")
    before = monitor.change_token(run, "en", False)
    assert monitor.estimate_line(run, "en") == ""
    (run.path / record.FILE).write_text(json.dumps({"estimate": 10.0, "total": 11.0}))
    assert (
        monitor.estimate_line(run, "en") == "Estimated 10.00 GiB." and monitor.change_token(run, "en", False) != before
    )
    (run.path / record.FILE).write_text(json.dumps({"estimate": 10.0, "total": 11.0, "measured": 10.5}))
    assert monitor.estimate_line(run, "en") == "Estimated 10.00 GiB, measured 10.50 GiB: 105% of the estimate."
    assert "实测 10.50 GiB" in monitor.status_html(run, "zh")
    for text in (
        "",
        "[]",
        '{"estimate": "x", "total": 1}',
        '{"estimate": 1, "total": true}',
        '{"estimate": 1e99, "total": 1}',
    ):
        (run.path / record.FILE).write_text(text)
        assert monitor.estimate_line(run, "en") == ""


def test_a_workspace_that_is_read_only_forgets_nothing(tmp_path, monkeypatch):
    space = Workspace(tmp_path, read_only=True).create()
    page = Page(space, Engine(space))
    _, words = page.train.here.forgotten("yes", ENGLISH)
    assert "wb-note bad" in words
