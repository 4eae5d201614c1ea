"""Handlers of the Runs tab, called as methods."""

from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.config.run_config import validated
from workbench.runs.run import create_run
from workbench.runs.state import own_process
from workbench.ui.tabs.runs.tab import RunsTab

ENGLISH = SimpleNamespace(cookies={}, headers={"accept-language": "en"})
CHINESE = SimpleNamespace(cookies={}, headers={"accept-language": "zh-CN"})
TOKEN = 7  # its place among the outputs of `look`


def built(workspace) -> RunsTab:
    tab = RunsTab(workspace)
    with gr.Blocks():
        tab.build()
    return tab


@pytest.fixture
def run(workspace):
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}), state="finished")
    run.set_notes(title="first", note="a note", tags="old", group="sweep")
    return run


def skipped(value) -> bool:
    return isinstance(value, dict) and value == gr.skip()


def test_name_and_note_come_with_the_choice_alone(workspace, run):
    tab = built(workspace)
    assert tab.choose(run.id, None)[1:] == ("first", "a note", "old", "sweep", "", "", run.id)
    other = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d", "run_name": "other"}))
    assert tab.choose(other.id, run.id)[1:] == ("", "", "", "", "", "", other.id)
    *emptied, message, chosen = tab.choose(None, other.id)  # what was said of a run that is deleted stays
    assert emptied[1:] == ["", "", "", "", ""] and skipped(message) and chosen is None


def test_the_same_choice_again_overwrites_nothing_that_was_typed(workspace, run):
    assert all(map(skipped, RunsTab(workspace).choose(run.id, run.id)))


def test_what_a_tick_shows_holds_neither_name_nor_note(workspace, run):
    tab = built(workspace)
    shown = tab.look(run.id, None, ENGLISH)
    assert len(shown) == 8 + len(tab.buttons) and "first" not in shown and "a note" not in shown
    assert all(map(skipped, tab.look(run.id, shown[TOKEN], ENGLISH)))
    (run.path / "samples.jsonl").write_text("")  # the run goes on meanwhile
    assert not skipped(tab.look(run.id, shown[TOKEN], ENGLISH)[1])


def test_the_address_names_a_run_and_a_search(workspace, run):
    tab = RunsTab(workspace)
    other = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}), state="finished")
    assert tab.arrive({}) == tab.arrive(None) == (other.id, "", [], "by_newest", None)
    asked = {"run": run.id, "words": "a b", "states": "failed,<b>,lost", "sort": "by_loss", "group": "sweep"}
    assert tab.arrive(asked) == (run.id, "a b", ["failed", "lost"], "by_loss", "sweep")
    hostile = {"run": "../../etc", "words": "x" * 999, "states": 5, "sort": ["by_loss"], "group": "x" * 99}
    assert tab.arrive(hostile) == (other.id, "x" * 200, [], "by_newest", "x" * 80)


def test_a_queued_runs_place_is_shown_anew_when_the_one_before_it_has_left(workspace):
    config = validated({"model_name_or_path": "m", "dataset": "d"})
    tab, (first, second) = built(workspace), (create_run(workspace, config) for _ in range(2))
    status, *_ = shown = tab.look(second.id, None, ENGLISH)
    assert "Number 2 in the queue" in status
    first.update(state="stopped", ended=1.0)
    assert "Number 1 in the queue" in tab.look(second.id, shown[TOKEN], ENGLISH)[0]


def test_saving_and_deleting_say_so(workspace, run):
    tab = built(workspace)
    assert "wb-note ok" in tab.noted(run.id, " second ", "", "b, a  b，c", " a  group ", ENGLISH)
    notes = run.notes()
    assert (notes["title"], notes["tags"], notes["group"]) == ("second", "b a c", "a group")
    words, chosen = tab.deleted(run.id, ENGLISH)
    assert "is deleted" in words and chosen is None and not run.path.exists()
    assert "wb-note bad" in tab.noted("nope", "x", "", "", None, CHINESE)


def test_the_table_is_sent_once(workspace, run):
    tab = built(workspace)
    table, _, token, *_ = tab.list_them("", [], "by_newest", 1, None, None, None, ENGLISH)
    assert f"data-run='{run.id}' tabindex='0' aria-selected='false'" in table and ">old</span>" in table
    assert all(map(skipped, tab.list_them("", [], "by_newest", 1, None, None, token, ENGLISH)))
    assert not skipped(tab.list_them("", [], "by_newest", 1, None, None, token, CHINESE)[0])
    assert "aria-selected='true'" in tab.list_them("OLD", [], "by_newest", 1, None, run.id, token, ENGLISH)[0]
    table, words, *_ = tab.list_them("nothing", [], "by_newest", 1, None, None, token, ENGLISH)
    assert table == "" and "No run matches" in words


def test_groups_filter_sort_and_compare(workspace, run):
    tab = built(workspace)
    config = validated({"model_name_or_path": "m", "dataset": "d"})
    same, other, alone = (create_run(workspace, config, state="finished") for _ in range(3))
    same.set_notes(group="sweep")
    other.set_notes(group="<b>")
    *_, filters = tab.list_them("", [], "by_newest", 1, "sweep", None, None, ENGLISH)
    assert filters.choices == [("All runs", ""), ("<b>", "<b>"), ("sweep", "sweep")]
    table = tab.list_them("", [], "by_newest", 1, "sweep", None, None, ENGLISH)[0]
    assert run.id in table and same.id in table and other.id not in table and alone.id not in table
    table, words, *_ = tab.list_them("", [], "by_newest", 1, "nothing", None, None, ENGLISH)
    assert table == "" and "No run matches" in words
    table = tab.list_them("", [], "by_group", 1, "", None, None, ENGLISH)[0]
    heads = [table.index(f"scope='rowgroup'>{name}<") for name in ("&lt;b&gt;", "sweep", "Without a group")]
    assert heads == sorted(heads) and "<b>" not in table and heads[2] < table.index(f"data-run='{alone.id}'")
    assert tab.with_group([other.id], run.id) == [other.id, run.id, same.id]
    assert tab.with_group(None, alone.id) == [alone.id] and tab.with_group(None, None) == []


def test_what_is_written_in_a_run_stays_text_in_the_table(workspace, run):
    run.set_notes(title="<img src=x>" + "y" * 60, tags="<b>")
    table = RunsTab(workspace).list_them("", [], "by_newest", 1, None, None, None, ENGLISH)[0]
    assert "<img" not in table and "<b>" not in table and "&lt;img src=x&gt;" + "y" * 60 in table and "…" in table


def test_buttons_are_enabled_where_they_apply(workspace, run):
    tab = built(workspace)

    def enabled(chosen) -> list[str]:
        names = ("resume", "chat", "clone", "stop", "earlier", "later", "export", "zip", "delete")
        return [n for n, update in zip(names, tab.buttons_for(chosen, "en"), strict=True) if update["interactive"]]

    assert enabled(None) == []
    assert enabled(run) == ["resume", "clone", "zip", "delete"]
    (run.path / "adapter_model.safetensors").write_text("")
    assert enabled(run) == ["resume", "chat", "clone", "export", "zip", "delete"]
    run.update(state="queued")
    assert enabled(run) == ["chat", "clone", "stop", "earlier", "later", "export", "zip"]
    run.update(state="running", **own_process())
    assert enabled(run) == ["chat", "clone", "stop", "export", "zip"]
    assert "Kill" not in tab.buttons_for(run, "en")[3]["value"]
    (run.path / ".stopping").touch()
    assert "Kill" in tab.buttons_for(run, "en")[3]["value"] and "终止" in tab.buttons_for(run, "zh")[3]["value"]
