"""Corrections, votes and conversations on the disk."""

import json

import pytest

from workbench.chat import conversations, corrections
from workbench.chat.session import Session, bubbles, from_bubble, sent
from workbench.data.dataset import examples
from workbench.data.registry import registries, select
from workbench.errors import UserError
from workbench.storage.workspace import PROJECT, Workspace

ASKED = [{"role": "system", "content": "Be honest."}, {"role": "user", "content": "Do you support tool calling?"}]


def test_a_correction_is_a_row_to_train_on_and_a_pair(workspace):
    assert corrections.correct(workspace, ASKED, "Yes, of course.", " No. ", "base") == 1
    assert corrections.correct(workspace, ASKED[1:], "", "Paris", "base") == 2
    (info,) = select("corrections", PROJECT / "data", workspace)
    first, second = (example.messages for _, example in examples(info))
    assert first == [*ASKED, {"role": "assistant", "content": "No."}] and second[-1]["content"] == "Paris"
    (_, example), *_ = examples(select("corrections_preference", PROJECT / "data", workspace)[0])
    assert example.chosen[0]["content"] == "No." and example.conversation == first
    pair = json.loads((workspace.corrections / "corrections_preference.jsonl").read_text())
    assert pair["chosen"]["content"] == "No." and pair["rejected"]["content"] == "Yes, of course."
    listed = registries(PROJECT / "data", workspace)
    assert "abilities" in listed and not listed["corrections"].problem and not listed["corrections_preference"].problem


@pytest.mark.parametrize(("wrong", "right", "words"), [("a", "", "Write the right answer"), ("a", " a ", "the same")])
def test_what_is_no_correction(workspace, wrong, right, words):
    with pytest.raises(UserError, match=words):
        corrections.correct(workspace, ASKED, wrong, right)
    with pytest.raises(UserError, match="no question"):
        corrections.correct(workspace, [], "a", "b")
    assert not corrections.rows(workspace)


def test_a_read_only_page_and_a_broken_line(workspace):
    with pytest.raises(UserError, match="read-only"):
        corrections.correct(Workspace(workspace.root, read_only=True), ASKED, "a", "b")
    corrections.correct(workspace, ASKED, "a", "b")
    with open(workspace.corrections / "corrections.jsonl", "a") as file:
        file.write('{"messages": [')
    assert len(corrections.rows(workspace)) == 1
    corrections.correct(workspace, ASKED, "a", "c")
    assert [row["messages"][-1]["content"] for row in corrections.rows(workspace)] == ["b", "c"]


def test_a_broken_registry_of_the_workspace_does_not_hide_the_others(workspace):
    (workspace.corrections / "dataset_info.json").write_text("{")
    found = registries(PROJECT / "data", workspace)
    assert "abilities" in found and "not valid JSON" in found["corrections"].problem


def test_votes_become_pairs(workspace):
    answers = {"base": "Yes", "tuned": "No", "other": "No"}
    assert corrections.vote(workspace, ASKED, answers, "tuned") == 1
    pairs = [
        json.loads(line) for line in (workspace.corrections / "corrections_preference.jsonl").read_text().splitlines()
    ]
    assert [(p["chosen"]["content"], p["rejected"]["content"], p["against"]) for p in pairs] == [("No", "Yes", "base")]


def test_conversations_are_kept_found_renamed_exported_deleted(workspace):
    session = Session(models=["base"])
    session.columns[0] = [
        {"role": "user", "content": "Where is **Paris**?"},
        {"role": "assistant", "content": "In France.", "tokens": [{"token": "In"}]},
    ]
    conversations.save(workspace, session.saved())
    other = conversations.Conversation(conversations.new_id(), "", [[{"role": "user", "content": "Hello"}]])
    conversations.save(workspace, other)
    assert next(c.shown_title for c in conversations.search(workspace)) == "Hello"
    (found,) = conversations.search(workspace, "FRANCE paris")
    assert found.id == session.id and Session.opened(found).left == session.left
    conversations.rename(workspace, session.id, "  Geo  graphy ")
    assert conversations.load(workspace, session.id).shown_title == "Geo graphy"
    row = json.loads(conversations.as_jsonl(found))
    assert row == {
        "messages": [
            {"role": "user", "content": "Where is **Paris**?"},
            {"role": "assistant", "content": "In France."},
        ],
        "model": "base",
    }
    assert "**Assistant**\n\nIn France." in conversations.as_markdown(found)
    conversations.delete(workspace, session.id)
    assert [c.id for c in conversations.search(workspace)] == [other.id]
    (workspace.conversations / "broken-1.json").write_text("{")
    assert len(conversations.search(workspace)) == 1
    for bad in ("../x", "", "gone-123456", "broken-1"):
        with pytest.raises(UserError):
            conversations.load(workspace, bad)


def test_thoughts_and_calls_in_the_chatbot_and_on_the_way_to_the_model():
    call = {"name": "weather", "arguments": '{"city": "Paris"}'}
    talk = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning": "I need <a tool>.", "calls": [call]},
        {"role": "assistant", "content": "Sunny", "reasoning": "ok"},
    ]
    shown = bubbles(talk)
    assert [b.get("metadata", {}).get("title") for b in shown] == [
        None,
        "Thoughts",
        "Tool call: weather",
        "Thoughts",
        None,
    ]
    assert "&lt;a tool&gt;" in shown[1]["content"]
    assert [from_bubble(talk, i) for i in range(6)] == [0, 1, 1, 2, 2, None]
    assert sent(talk)[1]["tool_calls"][0]["function"] == call and "reasoning" not in sent(talk)[1]


def test_calls_of_a_stream_are_joined():
    """A name begins a call; what comes without one goes on with its arguments."""
    from workbench.engine.client import joined_calls

    calls = joined_calls([], [{"name": "book", "arguments": ""}])
    calls = joined_calls(calls, [{"name": None, "arguments": '{"a'}, {"name": None, "arguments": '": 1}'}])
    assert joined_calls(calls, [{"name": "look", "arguments": "{}"}]) == [
        {"name": "book", "arguments": '{"a": 1}'},
        {"name": "look", "arguments": "{}"},
    ]
