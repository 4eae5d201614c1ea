"""No chain of events may start itself again: what `change` listens to is written by the user, or ends there."""

import pytest

from workbench.engine.process import Engine
from workbench.storage.workspace import Workspace
from workbench.ui.page import Page


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("chains")).create()
    return Page(workspace, Engine(workspace)).build().config["dependencies"]


def chains(dependencies: list[dict]) -> dict[int, set[int]]:
    """For every event: the components that it and all that follows it write."""
    follows = {d["id"]: d["trigger_after"] for d in dependencies if d["trigger_after"] is not None}
    written = {d["id"]: set(d["outputs"]) for d in dependencies}
    for later in sorted(follows, reverse=True):  # what follows is wired later
        written[follows[later]] |= written[later]
    return written


def test_no_event_follows_a_change_that_it_makes_itself(dependencies):
    written, listens = chains(dependencies), {}
    for dependency in dependencies:
        for component, event in dependency["targets"]:
            if event == "change":
                listens.setdefault(component, set()).update(written[dependency["id"]])
    assert listens, "no change events: this test looks at nothing"

    def reached(start: int) -> set[int]:
        seen, todo = set(), [start]
        while todo:
            for component in listens.get(todo.pop(), ()):
                if component not in seen:
                    seen.add(component)
                    todo.append(component)
        return seen

    assert [component for component in listens if component in reached(component)] == []
