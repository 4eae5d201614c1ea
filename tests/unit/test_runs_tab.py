"""Handlers of the Runs tab, called as methods."""

from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.config.run_config import validated
from workbench.runs.run import create_run
from workbench.ui.tabs.runs.tab import RunsTab

ENGLISH = SimpleNamespace(cookies={}, headers={"accept-language": "en"})
CHINESE = SimpleNamespace(cookies={}, headers={"accept-language": "zh-CN"})
TITLE, NOTE, TOKEN = 7, 8, 9  # places among the outputs of `look`


@pytest.fixture
def run(workspace):
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}), state="finished")
    run.set_notes(title="first", note="a note")
    return run


def skipped(value) -> bool:
    return isinstance(value, dict) and value == gr.skip()


def test_name_and_note_come_with_the_run_and_not_while_they_are_typed(workspace, run):
    tab = RunsTab(workspace)
    shown = tab.look(run.id, None, ENGLISH)
    assert (shown[TITLE], shown[NOTE]) == ("first", "a note")
    assert all(map(skipped, tab.look(run.id, shown[TOKEN], ENGLISH)))
    (run.path / "samples.jsonl").write_text("")  # the run goes on meanwhile
    later = tab.look(run.id, shown[TOKEN], ENGLISH)
    assert skipped(later[TITLE]) and skipped(later[NOTE]) and not skipped(later[1])
    assert len(tab.choose(run.id, ENGLISH)) == 2  # choosing touches neither


def test_another_run_brings_its_own(workspace, run):
    other = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d", "run_name": "other"}))
    tab = RunsTab(workspace)
    token = tab.look(run.id, None, ENGLISH)[TOKEN]
    shown = tab.look(other.id, token, ENGLISH)
    assert (shown[TITLE], shown[NOTE]) == ("", "")
    assert tab.look(run.id, shown[TOKEN], ENGLISH)[TITLE] == "first"


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
