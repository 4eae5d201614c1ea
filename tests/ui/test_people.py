"""Roles: every event that changes something names the role that it takes, and runs only for that."""

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.config.run_config import validated
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.runs.run import create_run
from workbench.storage import users as store
from workbench.storage.users import User, Users
from workbench.storage.workspace import Workspace
from workbench.train import queue, sweep
from workbench.ui import people
from workbench.ui.page import Page
from workbench.ui.people import People

PASSWORD = "a long password"
# what may be pressed by whoever only looks: it shows, fills a form, downloads, or is about a conversation of one's own
LOOKING = {
    "language", "theme", "logout", "import-button", "option-changes", "runs-table", "group-table", "sweep-count", "runs-chat", "runs-export", "runs-clone", "runs-zip", "runs-log",
    "compare-add", "compare-add-group", "train-chat", "data-use", "data-back", "data-on", "data-fetch", "data-rows", "data-checked", "data-check", "data-check-stop",
    "data-report", "data-stats", "data-stats-all", "data-stats-stop", "data-apply", "data-batches", "data-batches-stop", "data-files-stop",
    "data-edit-stop", "data-upload-stop", "data-download", "drawer", "send", "halt", "continue", "regenerate", "clear", "confidence", "check",
    "difference-run", "contradiction-run", "reword", "train-corrections", "history-new", "history-rename", "history-delete", "history-export",
    "probe-stop", "probe-last", "pairs-stop", "model-look", "train-cost", "chat-cost", "presets-table", "evaluate-download",
}  # fmt: skip
WORKING = {
    "start", "sweep-queue", "group-stop", "preset-save", "preset-delete", "stop", "runs-resume", "runs-stop", "runs-earlier", "runs-later", "runs-delete", "runs-save",
    "data-drop", "data-read-as", "data-save", "data-delete", "data-copy", "data-split", "data-remove", "data-layout-save", "load", "unload",
    "find-models", "merge-add", "merge-export", "merge-stop", "export-delete", "export-upload", "save-correction", "vote", "probe-run", "external", "pairs-ask", "pairs-keep", "pairs-leave",
    "cost-forget", "model-drop", "model-delete", "model-download", "model-download-stop",
    "evaluate-start", "evaluate-stop", "evaluate-run-task", "evaluate-stop-task",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The page, and who may log in: ann trains, bob looks, eve is an admin."""
    workspace = Workspace(tmp_path_factory.mktemp("people"), confined=True).create()
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "_COST", (16, 8, 1))
    users = Users(workspace)
    for name, role in (("ann", "train"), ("bob", "look"), ("eve", "admin")):
        users.add(name, role, PASSWORD)
    yield Page(workspace, Engine(workspace)).build(People(users, ("root", "secret"))), workspace
    patch.undo()


@pytest.fixture
def as_user():
    """Ask as a user of some role for the rest of a test."""
    tokens = []

    def become(name: str, role: str, stored: str = "hash"):
        tokens.append(people._current.set(User(name, role, stored)))

    yield become
    for token in reversed(tokens):
        people._current.reset(token)


def pressed(blocks) -> set[str]:
    """What can be pressed or dropped on."""
    kinds = ("click", "upload")
    return {
        str(blocks.blocks[part].elem_id)
        for function in blocks.fns.values()
        for part, event in function.targets
        if event in kinds and part in blocks.blocks
    }


def test_every_button_is_one_to_look_or_one_to_work_with(built):
    blocks, _ = built
    needed = {str(blocks.blocks[part].elem_id): role for part, role in blocks.needed().items()}
    assert needed == dict.fromkeys(WORKING, "train")
    assert pressed(blocks) - LOOKING - WORKING == set()


def ask(blocks, elem_id: str, user: str, lang: str = "en"):
    part = next(id_ for id_, block in blocks.blocks.items() if block.elem_id == elem_id)
    function = next(
        f for f in blocks.fns.values() if (part, "click") in [tuple(t) for t in f.targets] and f.fn is not None
    )
    request = SimpleNamespace(
        username=user, cookies={}, headers={"accept-language": lang}, client=SimpleNamespace(host="h"), session_hash="s"
    )
    inputs = [getattr(component, "value", None) for component in function.inputs]
    return asyncio.run(blocks.process_api(function, inputs, None, request))


@pytest.mark.parametrize("elem_id", sorted(WORKING - {"data-drop", "model-drop", "external"}))
def test_who_looks_is_refused_with_one_sentence_whatever_is_sent(built, elem_id):
    blocks, workspace = built
    with pytest.raises(gr.Error, match=r"Your role \(look\) may not do this: it needs train") as refused:
        ask(blocks, elem_id, "bob")
    assert refused.value.message.count(".") == 2
    with pytest.raises(gr.Error, match="你的角色（查看）不能这样做"):
        ask(blocks, elem_id, "bob", "zh-CN")
    assert not list(workspace.runs.iterdir())


def test_a_name_that_is_gone_asks_nothing_any_more(built):
    blocks, _ = built
    for name in ("nobody", "", None, "../ann"):
        with pytest.raises(gr.Error, match="logged out"):
            ask(blocks, "runs-zip", name)


def test_runs_are_changed_by_who_started_them_and_by_admins(built, as_user):
    _, workspace = built
    config = validated({"model_name_or_path": "m", "dataset": "d"})
    hers, nobodys = create_run(workspace, config, started_by="ann"), create_run(workspace, config)
    assert hers.state().started_by == "ann"
    people.check_own(hers)  # nobody logs in
    assert people.may_change(hers) and not people.may_change(None)
    as_user("ann", "train")
    people.check_own(hers)
    with pytest.raises(UserError, match=f"{nobodys.id} was started by somebody without a login"):
        people.check_own(nobodys)
    as_user("carl", "train")
    with pytest.raises(UserError, match="Only ann or an admin"):
        people.check_own(hers)
    assert not people.may_change(hers)
    as_user("eve", "admin")
    people.check_own(hers)
    people.check_own(nobodys)
    as_user("ann", "look")  # whose role was taken back
    assert not people.may_change(hers)


def test_a_run_that_uploads_takes_an_admin(built, as_user, monkeypatch):
    """However it is started: alone, in a sweep, or by going on with one's own."""
    _, workspace = built
    started = []

    def launch(*given, **named):
        started.append("run")
        raise UserError("run_going", id="it")

    monkeypatch.setattr(queue, "launch", launch)
    monkeypatch.setattr(queue, "resume", launch)

    def launch_all(configs, changes, space, group, check, **named):
        check(configs[0], space)
        return [run]

    monkeypatch.setattr(sweep, "launch", launch_all)
    page = Page(workspace, Engine(workspace))
    values = {"model_name_or_path": "m", "dataset": "d", "push_to_hub": True}
    config = validated(values)
    monkeypatch.setattr(page.train.form, "config", lambda contents: config)
    monkeypatch.setattr(page.train.sweep, "config_of", lambda contents: config)
    run = create_run(workspace, config, started_by="ann")
    request = SimpleNamespace(
        cookies={}, headers={"accept-language": "en"}, client=SimpleNamespace(host="h"), session_hash="s"
    )

    def all_ways() -> list[str]:
        base = SimpleNamespace(kind="", name="")
        return [
            str(page.train.begin(request, base, "")[0]),
            str(page.train.sweep.queued("grid", "lora_rank = 4, 8", 1, 1, "", request)),
            str(page.runs.resumed(run.id, "", "", request)),
        ]

    as_user("ann", "train")
    refused = all_ways()
    assert all("takes the role admin" in said for said in refused) and started == []
    monkeypatch.setattr(page.train.sweep.worker, "ask", lambda *given, **named: started.append("sweep"))
    as_user("eve", "admin")
    allowed = all_ways()
    assert not any("takes the role admin" in said for said in allowed) and sorted(started) == ["run", "run", "sweep"]


def test_conversations_are_a_users_own_and_those_of_auth_are_everybodys(built, as_user):
    _, workspace = built
    assert people.own(workspace) is workspace
    as_user("ann", "train")
    assert people.own(workspace).conversations == workspace.root / "conversations" / "ann"
    as_user("root", "admin", stored="")
    assert people.own(workspace) is workspace


def test_logins(built, capsys):
    blocks, _ = built
    who = blocks.people

    def right(name, password):
        return asyncio.run(who.login(name, password))

    assert right("ann", PASSWORD) and right("root", "secret")
    assert not right("ann", "secret") and not right("root", PASSWORD) and not right("nobody", PASSWORD)
    tokens = {"one": "ann", "two": "root", "three": "nobody"}
    held = [who.holder(tokens, token) for token in ("one", "two", "three", "four", "", None)]
    assert list(tokens) == ["one", "two"]
    assert [user and (user.name, user.role) for user in held] == [("ann", "train"), ("root", "admin"), *[None] * 4]
    who.users.change("ann", password="another password")
    assert who.holder(tokens, "one") is None and "one" not in tokens  # logged out
    who.users.change("ann", password=PASSWORD)
    kept = who.users.path.read_text()
    who.users.path.write_text("ann: {role: king}")
    assert who.find("ann") is None and not right("ann", PASSWORD) and right("root", "secret")
    assert capsys.readouterr().err.count("role of ann") == 1
    who.users.path.write_text(kept)
    assert who.find("ann").role == "train" and right("ann", PASSWORD)


def test_what_a_handler_enables_stays_disabled_for_who_may_not(built):
    people_of, _ = built
    with people.Guarded() as blocks:
        blocks.people = people_of.people
        work, look, show = gr.Button(), gr.Button(), gr.Button()
        work.click(people.needs("train", lambda: None))
        show.click(lambda: [gr.Button(interactive=True), gr.update(interactive=True)], None, [work, look])
    function = next(f for f in blocks.fns.values() if f.targets[0][0] == show._id)

    def enabled(name: str) -> list[bool]:
        request = SimpleNamespace(username=name, cookies={}, headers={})
        answer = asyncio.run(blocks.process_api(function, [], None, request))
        return [update["interactive"] for update in answer["data"]]

    assert enabled("bob") == [False, True] and enabled("ann") == [True, True]
