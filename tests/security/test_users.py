"""A real page with users: what a role may not do is refused, whatever is sent; logins end with what they rest on."""

import pytest

from tests.browser.conftest import Page
from tests.security.conftest import Client
from workbench.config.run_config import validated
from workbench.data.readers import kind_of
from workbench.errors import UserError
from workbench.runs.run import create_run, list_runs
from workbench.storage.users import Users
from workbench.storage.workspace import Workspace

pytestmark = pytest.mark.process
PASSWORD = "a long password"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("w")).create()
    users = Users(workspace)
    for name, role in (("ann", "train"), ("bob", "look"), ("eve", "admin"), ("gone", "train")):
        users.add(name, role, PASSWORD)
    return workspace


@pytest.fixture(scope="module")
def page(workspace):
    page = Page(workspace.root)
    yield page
    page.end()


def log_in(client, name: str, password: str = PASSWORD):
    return client.post("/login", data={"username": name, "password": password})


@pytest.fixture
def user(page):
    """A browser in which a user is logged in."""
    clients = []

    def logged_in(name: str) -> Client:
        client = Client(page.url)
        clients.append(client.__enter__())
        assert log_in(client, name).status_code == 200
        return client

    yield logged_in
    for client in clients:
        client.__exit__(None, None, None)


def event_of(client, elem_id: str, kind: str = "click") -> tuple[int, list[str]]:
    """The number of a component's event, and the elements that it takes."""
    config = client.get("/config").json()
    ids = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
    part = next(id_ for id_, name in ids.items() if name == elem_id)
    found = [d for d in config["dependencies"] if [part, kind] in [list(t) for t in d["targets"]] and d["backend_fn"]]
    return found[0]["id"], [ids[i] for i in found[0]["inputs"]]


def test_without_a_login_nothing_but_the_login_is_there(page):
    with Client(page.url) as nobody:
        assert nobody.get("/config").status_code == 401
        assert nobody.post("/gradio_api/upload", files={"files": ("a.jsonl", b"{}")}).status_code == 401
        assert log_in(nobody, "ann", "wrong password").status_code == 400
        assert log_in(nobody, "nobody").status_code == 400
        assert nobody.get("/config").status_code == 401


def test_who_looks_changes_nothing_by_any_event(page, workspace, user):
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}), state="finished")
    bob, before = user("bob"), sorted(p for p in workspace.root.rglob("*") if p.is_file())
    for elem_id in ("start", "runs-delete", "runs-resume", "runs-save", "load", "data-remove", "preset-save"):
        number, inputs = event_of(bob, elem_id)
        data = [run.id if name == "runs-selected" else "x" if name == "preset-name" else None for name in inputs]
        answer = bob.event(number, data)
        assert answer.status_code >= 400 and "Your role (look) may not do this" in answer.text, elem_id
    refused = bob.post("/gradio_api/upload", files={"files": ("a.jsonl", b"{}")})
    assert refused.status_code == 403 and "needs train" in refused.text
    assert run.path.is_dir()
    after = sorted(p for p in workspace.root.rglob("*") if p.is_file())
    assert [p for p in after if p not in before] == []
    number, inputs = event_of(bob, "runs-selected", "change")
    assert bob.event(number, [run.id if name == "runs-selected" else None for name in inputs]).status_code == 200


def test_a_run_of_another_user_stays_as_it_is(workspace, user):
    config = validated({"model_name_or_path": "m", "dataset": "d"})
    hers, eves = (
        create_run(workspace, config, state="finished", started_by=name, ended=1.0) for name in ("ann", "eve")
    )
    ann = user("ann")
    for elem_id in ("runs-delete", "runs-resume", "runs-save", "runs-stop", "runs-earlier"):
        number, inputs = event_of(ann, elem_id)
        answer = ann.event(number, [eves.id if name == "runs-selected" else "" for name in inputs])
        assert "was started by eve" in answer.text, (elem_id, answer.text)
    number, inputs = event_of(ann, "runs-delete")
    assert ann.event(number, [hers.id]).status_code == 200
    assert [run.id for run in list_runs(workspace) if run.id in (hers.id, eves.id)] == [eves.id]
    eve = user("eve")
    assert eve.event(event_of(eve, "runs-delete")[0], [eves.id]).status_code == 200
    assert not eves.path.exists()


def test_a_login_ends_with_the_user_the_password_and_takes_the_role_of_now(workspace, user):
    gone, users = user("gone"), Users(workspace)
    assert gone.get("/config").status_code == 200
    number, inputs = event_of(gone, "preset-save")
    users.change("gone", role="look")
    assert "Your role (look)" in gone.event(number, [None] * len(inputs)).text
    users.change("gone", password="another password")
    assert gone.get("/config").status_code == 401 and gone.event(number, []).status_code == 401
    again = user("ann")
    users.change("ann", role="train")
    assert again.get("/config").status_code == 200  # another role ends nothing
    assert log_in(gone, "gone", "another password").status_code == 200 and gone.get("/config").status_code == 200
    users.remove("gone")
    assert gone.get("/config").status_code == 401
    assert log_in(gone, "gone", "another password").status_code == 400


def test_a_broken_file_lets_nobody_in_until_it_is_mended(workspace, user):
    ann, file = user("ann"), workspace.root / "users.yaml"
    kept = file.read_bytes()
    file.write_text("ann: {role: admin}\n")
    assert ann.get("/config").status_code == 401
    assert log_in(ann, "ann").status_code == 400
    file.write_bytes(kept)
    assert log_in(ann, "ann").status_code == 200 and ann.get("/config").status_code == 200


def test_the_hashes_are_not_read_through_the_page(page, workspace, user):
    eve, file = user("eve"), workspace.root / "users.yaml"
    assert eve.get(f"/gradio_api/file={file}").status_code in (403, 404)
    with pytest.raises(UserError, match="of this kind cannot be read"):
        kind_of(file)


@pytest.mark.parametrize("name", ["ann", "x" * 100_000, "'; drop", "ann\0", "../ann", "{}", "%s", "🙂"])
def test_hostile_logins_get_an_answer(page, name):
    with Client(page.url) as client:
        for password in ("", "x" * 60_000, "\0", "🙂"):
            assert log_in(client, name, password).status_code in (400, 413, 422, 429)
        assert client.get("/config").status_code == 401


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("ann: {role: king}\n", (), "users.yaml cannot be read: the role of ann"),
        ("[", ("--auth", "a:b"), "users.yaml cannot be read"),
        (None, ("--no-auth",), "--no-auth lets everybody in"),
    ],
)
def test_what_the_page_says_at_its_start(tmp_path, capsys, content, arguments, words):
    import app

    users = Users(Workspace(tmp_path / "w").create())
    if content is None:
        users.add("ann", "look", PASSWORD)
    else:
        users.path.write_text(content)
    assert app.main(["--port", "0", "--workspace", str(tmp_path / "w"), *arguments]) == 2
    assert words in capsys.readouterr().err
