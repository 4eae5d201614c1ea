"""Handlers of the Runs tab, called as methods."""

from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.config.run_config import validated
from workbench.runs.run import create_run
from workbench.ui.tabs.runs.tab import RunsTab

ENGLISH = SimpleNamespace(cookies={}, headers={"accept-language": "en"})
CHINESE = SimpleNamespace(cookies={}, headers={"accept-language": "zh-CN"})
TOKEN = 7  # its place among the outputs of `look`


@pytest.fixture
def run(workspace):
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}), state="finished")
    run.set_notes(title="first", note="a note")
    return run


def skipped(value) -> bool:
    return isinstance(value, dict) and value == gr.skip()


def test_name_and_note_come_with_the_choice_alone(workspace, run):
    tab = RunsTab(workspace)
    assert tab.choose(run.id, None)[1:] == ("first", "a note", "", run.id)
    other = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d", "run_name": "other"}))
    assert tab.choose(other.id, run.id)[1:] == ("", "", "", other.id)
    assert tab.choose(None, other.id)[1:] == ("", "", "", None)


def test_the_same_choice_again_overwrites_nothing_that_was_typed(workspace, run):
    assert all(map(skipped, RunsTab(workspace).choose(run.id, run.id)))


def test_what_a_tick_shows_holds_neither_name_nor_note(workspace, run):
    tab = RunsTab(workspace)
    shown = tab.look(run.id, None, ENGLISH)
    assert len(shown) == 8 and "first" not in shown and "a note" not in shown
    assert all(map(skipped, tab.look(run.id, shown[TOKEN], ENGLISH)))
    (run.path / "samples.jsonl").write_text("")  # the run goes on meanwhile
    assert not skipped(tab.look(run.id, shown[TOKEN], ENGLISH)[1])


def test_saving_and_deleting_say_so(workspace, run):
    tab = RunsTab(workspace)
    assert "wb-note ok" in tab.noted(run.id, " second ", "", ENGLISH)
    assert run.notes()["title"] == "second"
    words, chosen = tab.deleted(run.id, ENGLISH)
    assert "is deleted" in words and chosen is None and not run.path.exists()
    assert "wb-note bad" in tab.noted("nope", "x", "", CHINESE)


def test_the_table_is_sent_once(workspace, run):
    tab = RunsTab(workspace)
    value, _, token, *_ = tab.list_them("", [], "by_newest", 1, None, ENGLISH)
    assert [row[-1] for row in value["data"]] == [run.id]
    assert all(map(skipped, tab.list_them("", [], "by_newest", 1, token, ENGLISH)))
    assert not skipped(tab.list_them("", [], "by_newest", 1, token, CHINESE)[0])
