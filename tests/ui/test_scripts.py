"""What an event and an idle page cost the browser is kept small: see `ui/scripts.py`."""

import asyncio
import json
from html import escape

import pytest

from workbench.config.run_config import validated
from workbench.engine.process import Engine
from workbench.runs.run import create_run
from workbench.storage.workspace import Workspace
from workbench.ui.monitor import status_html
from workbench.ui.notes import middle
from workbench.ui.page import Page
from workbench.ui.scripts import CHANGES, QuickScripts, quick_scripts


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("scripts")).create()
    return Page(workspace, Engine(workspace)).build().config


def served(path: str, *headers: tuple[bytes, bytes]) -> list[dict]:
    """The messages that answer a request."""
    sent = []

    async def beyond(scope, receive, send):
        await send({"type": "beyond"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    asyncio.run(QuickScripts(beyond)(scope, None, send))
    return sent


def test_each_change_is_found_in_this_gradio():
    scripts = quick_scripts()
    assert len(scripts) == 3 and len(CHANGES) == 4
    for _, _, new in CHANGES:
        assert sum(new.encode() in script for script in scripts.values()) == 1


def test_they_are_served_also_behind_a_prefix_and_the_rest_is_not_touched():
    path, script = next(iter(quick_scripts().items()))
    for asked in (path, f"/train{path}"):
        start, body = served(asked)
        assert start["status"] == 200 and body["body"] == script
    start, body = served(path, (b"accept-encoding", b"gzip, br"))
    assert (b"content-encoding", b"gzip") in start["headers"] and len(body["body"]) < len(script) / 2
    assert served("/assets/other.js") == served("/") == [{"type": "beyond"}]


def test_an_event_that_shows_no_progress_tells_no_component_of_it(config):
    hidden = [d for d in config["dependencies"] if d["backend_fn"] and d["show_progress"] == "hidden"]
    assert len(hidden) > 100
    assert [d["targets"] for d in hidden if d["show_progress_on"] != []] == []


def test_a_tab_that_comes_to_the_front_lets_only_its_own_timers_tick(config):
    parts = {part["id"]: part for part in config["components"]}
    timers = {id_: part["props"]["active"] for id_, part in parts.items() if part["type"] == "timer"}
    chosen = {}
    for d in config["dependencies"]:
        if d["outputs"] and all(parts[o]["type"] == "timer" for o in d["outputs"]):
            ((tab, event),) = d["targets"]
            updates = json.loads(d["js"].removeprefix("() => "))
            assert event == "select"
            chosen[parts[tab]["props"]["id"]] = {o: u["active"] for o, u in zip(d["outputs"], updates, strict=True)}
    assert {tab: sum(active.values()) for tab, active in chosen.items()} == {
        "train": 1, "data": 0, "runs": 2, "chat": 1, "evaluate": 1, "probes": 0, "model": 1,
    }  # fmt: skip
    # as the page begins: those of the Train tab, and the one that tells of runs that have ended
    always = set(timers) - set(chosen["train"])
    assert len(always) == 1
    assert timers == chosen["train"] | dict.fromkeys(always, True)


def test_a_long_name_loses_its_middle_and_is_whole_on_hover(tmp_path):
    workspace, name = Workspace(tmp_path).create(), "a-model-with-a-name-that-goes-on-" + "and-on-" * 9 + "<end>"
    values = {"model_name_or_path": f"org/{name}", "dataset": name.replace("<end>", "")}
    run = create_run(workspace, validated(values))
    shown = status_html(run, "en")
    assert f"title='{escape(name, quote=True)}'" in shown and f">{escape(name)}<" not in shown
    assert middle("short & plain") == "short &amp; plain"
