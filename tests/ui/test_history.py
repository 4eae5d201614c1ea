"""The list of conversations beside the chat."""

from workbench.chat import conversations
from workbench.chat.session import Session
from workbench.storage.workspace import Workspace
from workbench.ui.tabs.chat.history import History


def test_two_tabs_on_one_conversation_lose_nothing(workspace):
    history, first = History(workspace), Session()
    first.columns[0] = [{"role": "user", "content": "Hello"}]
    assert not history.keep(first)
    second = Session.opened(conversations.load(workspace, first.id))
    for talk, word in ((first, "one"), (first, "two"), (second, "three")):
        talk.columns[0] = [*talk.left, {"role": "assistant", "content": word}]
        assert not history.keep(talk)
    assert first.id != second.id
    kept = [[m["content"] for m in conversations.load(workspace, talk.id).columns[0]] for talk in (first, second)]
    assert kept == [["Hello", "one", "two"], ["Hello", "three"]]
    read_only = History(Workspace(workspace.root, read_only=True))
    assert not read_only.keep(first)
