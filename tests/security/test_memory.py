"""What the page keeps of a tab: nothing more after thousands of ticks, nothing at all after it is closed."""

import json
import os

import pytest
from starlette.testclient import TestClient

from workbench.config.run_config import validated
from workbench.runs.run import create_run
from workbench.runs.state import own_process
from workbench.storage.workspace import Workspace
from workbench.ui import page, sessions


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The page's Gradio app behind its gate, its sessions, its ticks as (event, inputs), and a run that is going."""
    monkeypatch.setattr(page, "_keep_house", lambda *_: None)  # the tests call it by hand
    monkeypatch.setitem(os.environ, "GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    workspace = Workspace(tmp_path / "w", confined=True).create()
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}))
    run.update(state="running", step=1, total_steps=9, **own_process())
    gate, _ = page.build_server(workspace, auth=None, api_key="", lang=None, local=True)
    client = TestClient(gate, base_url="http://127.0.0.1:7860")
    config = client.get("/config").json()
    parts = {c["id"]: c for c in config["components"]}

    def value(id_):
        elem = parts[id_]["props"].get("elem_id")
        return run.id if elem in ("run-list", "runs-selected") else parts[id_]["props"].get("value")

    ticks = [
        (d["id"], [value(i) for i in d["inputs"]])
        for d in config["dependencies"]
        if any(event == "tick" for _, event in d["targets"])
    ]
    app = next(route.app for route in gate.app.routes if hasattr(getattr(route, "app", None), "state_holder"))
    return client, app.state_holder, ticks, run


def tick(client, ticks, session: str) -> None:
    for index, data in ticks:
        answer = client.post("/gradio_api/run/predict", json={"data": data, "fn_index": index, "session_hash": session})
        assert answer.status_code == 200


def test_a_tick_leaves_nothing(built):
    """Issue: each left one more Dropdown in the session's table, even when nothing had changed."""
    client, held, ticks, run = built
    assert len(ticks) >= 4
    tick(client, ticks, "a")
    before = len(held.session_data["a"].blocks_config.blocks)
    for step in range(5):  # with and without news
        with open(run.metrics, "a") as file:
            file.write(json.dumps({"current_steps": step + 1, "total_steps": 9, "loss": 1.0}) + "\n")
        for _ in range(3):
            tick(client, ticks, "a")
    session = held.session_data["a"]
    assert len(session.blocks_config.blocks) == before and not session.config_values
    assert all(block._id == id_ for id_, block in session.blocks_config.blocks.items())


def test_a_closed_tab_is_forgotten_and_an_open_one_is_not(built, monkeypatch):
    client, held, ticks, _ = built
    now = [0.0]
    monkeypatch.setattr(held, "_now", lambda: now[0])
    for name in ("open", "closed", "back", "idle"):
        tick(client, ticks, name)
    queue = held.blocks._queue
    queue.pending_messages_per_session["closed"] = object()
    for name in ("closed", "back"):
        held.session_data[name].is_closed = True  # as Gradio does when the browser's heartbeat breaks
    held.delete_all_expired_state()
    now[0] += sessions.CLOSED_SECONDS - 1
    tick(client, ticks, "back")  # it was only a broken connection
    tick(client, ticks, "open")
    held.delete_all_expired_state()
    assert set(held.session_data) == {"open", "closed", "back", "idle"}
    now[0] += 2
    held.delete_all_expired_state()
    assert set(held.session_data) == {"open", "back", "idle"} and "closed" not in queue.pending_messages_per_session
    now[0] += sessions.IDLE_SECONDS - 10
    tick(client, ticks, "open")
    now[0] += 20
    held.delete_all_expired_state()
    assert set(held.session_data) == {"open"} and set(held._used) == {"open"} and not held._closed


def test_sessions_are_bounded(built, monkeypatch):
    client, held, ticks, _ = built
    monkeypatch.setattr(sessions, "MOST", 5)
    for number in range(20):
        index, data = ticks[0]
        client.post("/gradio_api/run/predict", json={"data": data, "fn_index": index, "session_hash": f"s{number}"})
    assert list(held.session_data) == [f"s{number}" for number in range(15, 20)]


def test_a_state_survives_between_events(built):
    """The page's states are kept by session, and each has its own."""
    client, held, ticks, _ = built
    tick(client, ticks, "a")
    tick(client, ticks, "b")
    first, second = held.session_data["a"].state_data, held.session_data["b"].state_data
    assert first and first.keys() == second.keys() and first is not second
    body = [
        client.post("/gradio_api/run/predict", json={"data": d, "fn_index": i, "session_hash": "a"}).json()["data"]
        for i, d in ticks
    ]
    assert all(
        value is None or (isinstance(value, dict) and value.get("__type__") == "update")
        for answer in body
        for value in answer
    )
