"""users.yaml: who may log in, with which role, and what is kept of a password."""

import io
import os
import stat
import sys
import time

import pytest
import yaml

from workbench.chat import conversations, corrections
from workbench.chat.conversations import Conversation
from workbench.cli import shared
from workbench.cli.main import main
from workbench.errors import UserError
from workbench.storage import users as store
from workbench.storage.users import User, Users, hashed
from workbench.storage.workspace import Workspace

PASSWORD = "a long password"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Hashes that take no time; what is stored names its own costs."""
    monkeypatch.setattr(store, "_COST", (16, 8, 1))
    store._nobody.cache_clear()
    yield
    store._nobody.cache_clear()


@pytest.fixture
def users(workspace):
    return Users(workspace)


def test_only_a_salted_slow_hash_is_kept_and_only_for_the_owner(users, monkeypatch):
    monkeypatch.setattr(store, "_COST", (1 << 15, 8, 1))
    users.add("ann", "train", PASSWORD)
    text = users.path.read_text()
    assert PASSWORD not in text and "scrypt$32768$8$1$" in text
    assert stat.S_IMODE(users.path.stat().st_mode) == 0o600
    began = time.perf_counter()
    assert users.check("ann", PASSWORD) == users.read()["ann"]
    assert time.perf_counter() - began > 0.01  # seconds
    assert hashed(PASSWORD) != hashed(PASSWORD)


def test_names_and_passwords_are_checked(users):
    users.add(" Ann ", "look", PASSWORD)
    assert users.check("ANN ", PASSWORD).name == "ann"
    assert users.check("ann", PASSWORD + "!") is None and users.check("bob", PASSWORD) is None
    users.add("李雷", "admin", "密码密码密码密码")
    assert users.check("李雷", "密码密码密码密码").role == "admin"
    for name in ("", "..", "../x", "a/b", "a\0b", "a" * 33, "-a", "a b", "a\nb", "__proto__", "а", "{x}", "<b>"):
        with pytest.raises(UserError, match="cannot be used"):
            users.add(name, "look", PASSWORD)
    for password in ("short", "x" * 257, ""):
        with pytest.raises(UserError, match="8 to 256"):
            users.add("eve", "look", password)
    for password in ("with\0a nul", "two\nlines of it", "\ud800 all alone"):
        with pytest.raises(UserError, match="one line"):
            users.add("eve", "look", password)
    with pytest.raises(UserError, match=r"no role root\. There are: look, train, admin"):
        users.add("eve", "root", PASSWORD)
    with pytest.raises(UserError, match="a user ann already"):
        users.add("ann", "look", PASSWORD)
    assert list(users.read()) == ["ann", "李雷"]


def test_a_name_that_is_not_known_costs_as_much_and_a_long_password_nothing(users, monkeypatch):
    users.add("ann", "look", PASSWORD)
    asked = []
    whole = store._scrypt
    monkeypatch.setattr(store, "_scrypt", lambda *all_: asked.append(all_[2:]) or whole(*all_))
    store._nobody()
    asked.clear()
    users.check("ann", "wrong wrong")
    users.check("nobody", "wrong wrong")
    assert asked == [(16, 8, 1)] * 2
    assert users.check("ann", "x" * 10_000_000) is None and len(asked) == 2


def test_roles_have_all_of_the_one_before():
    may = {role: [other for other in store.ROLES if User("u", role).may(other)] for role in store.ROLES}
    assert may == {"look": ["look"], "train": ["look", "train"], "admin": ["look", "train", "admin"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- ann\n", "should hold names"), ("ann: secret\n", "role of ann"), ("ann: {role: root, password: x}\n", "one of look, train, admin"),
        ("ann: {role: look, password: secret}\n", "is not a hash"), ("ann: {role: look, password: scrypt$1073741824$8$1$AAAA$AAAA}\n", "is not a hash"),
        ("ann: {role: look, password: scrypt$16$8$1$AAAAAAAAAAAAAAAAAAAAAA==$AAAA}\n", "is not a hash"), ("../x: {role: look}\n", "cannot be a user's name"),
        ("ann: [\n", "not valid YAML"), ("1: {role: look}\n", "cannot be a user's name"), ("a: &a {}\nb: *a\n", "reference"), ("\xff", "not UTF-8"),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_in_a_sentence(users, text, reason):
    users.path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=reason) as told:
        users.read()
    assert "users.yaml" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(UserError, match=reason):  # and is not written over
        users.add("bob", "look", PASSWORD)
    assert users.path.read_bytes() == text.encode("latin-1")


def test_a_file_that_changes_is_read_again_and_an_empty_one_has_nobody(users, workspace):
    assert users.read() == {}
    other = Users(workspace)
    other.add("ann", "look", PASSWORD)
    assert users.read()["ann"].role == "look"
    other.change("ann", role="admin")
    assert users.read()["ann"].role == "admin" and users.check("ann", PASSWORD)
    other.change("ann", password="another password")
    assert not users.check("ann", PASSWORD) and users.check("ann", "another password").role == "admin"
    other.remove("ann")
    assert users.read() == {} and not list(workspace.root.glob(".users.yaml*.tmp"))
    with pytest.raises(UserError, match=r"no user ann\. There are: none yet"):
        other.remove("ann")


def run(*arguments: str, given: str = "", monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    shared.speak("en")
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_the_command_line_adds_lists_changes_and_removes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LC_ALL", "C")
    place = ("--workspace", str(tmp_path / "w"))
    users = Users(Workspace(tmp_path / "w"))
    assert run("user", "list", *place, monkeypatch=monkeypatch) == 0 and "No users yet" in capsys.readouterr().out
    assert run("user", "add", "ann", "--role", "look", *place, given=f"{PASSWORD}\n", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "ann may log in now, as look." in said and "started again" in said and PASSWORD not in said
    assert users.check("ann", PASSWORD)
    assert run("user", "add", "ann", *place, given=f"{PASSWORD}\n", monkeypatch=monkeypatch) == 2
    assert run("user", "add", "bob", *place, given="short\n", monkeypatch=monkeypatch) == 2
    assert run("user", "add", "bob", "--role", "king", *place, given=PASSWORD, monkeypatch=monkeypatch) == 2
    assert run("user", "role", "ann", "admin", *place, monkeypatch=monkeypatch) == 0
    assert run("user", "password", "ann", *place, given="another password\r\n", monkeypatch=monkeypatch) == 0
    assert users.check("ann", "another password").role == "admin"
    capsys.readouterr()
    assert run("user", "list", "--json", *place, monkeypatch=monkeypatch) == 0
    assert yaml.safe_load(capsys.readouterr().out) == [{"name": "ann", "role": "admin"}]
    assert run("user", "remove", "ann", "--yes", *place, monkeypatch=monkeypatch) == 0 and users.read() == {}


def test_a_terminal_is_asked_twice_without_echo(tmp_path, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    answers = iter([PASSWORD, PASSWORD, PASSWORD, "something else"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    users = Users(Workspace(tmp_path / "w"))
    for name, code in (("ann", 0), ("bob", 2)):
        monkeypatch.setattr(sys, "argv", ["workbench", "user", "add", name, "--workspace", str(tmp_path / "w")])
        monkeypatch.setattr(sys, "stdin", Terminal())
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
    assert "differ" in capsys.readouterr().err and list(users.read()) == ["ann"]


def test_conversations_and_corrections_are_a_users_own(workspace):
    ann, bob = workspace.of_user("ann"), workspace.of_user("bob")
    kept = Conversation("20260101-000000-abcdef", "hers", [[{"role": "user", "content": "q"}]])
    conversations.save(ann, kept)
    assert [c.title for c in conversations.listed(ann)] == ["hers"]
    assert conversations.listed(bob) == conversations.listed(workspace) == []
    with pytest.raises(UserError):
        conversations.load(bob, kept.id)
    asked = [{"role": "user", "content": "q"}]
    assert (
        corrections.correct(ann, asked, "bad", "good") == 1 and corrections.correct(workspace, asked, "bad", "x") == 1
    )
    assert corrections.rows(bob) == [] and len(corrections.rows(ann)) == 1
    assert corrections.vote(bob, asked, {"a": "1", "b": "2"}, "a") == 1 and corrections.votes(ann) == []
    listed = yaml.safe_load((workspace.corrections / "dataset_info.json").read_text())
    assert set(listed) == {
        "corrections", "corrections_preference", "corrections-ann", "corrections_preference-ann", "corrections_preference-bob",
    }  # fmt: skip
    assert corrections.run_values({}, "", 3, "corrections-ann")["dataset"] == "corrections-ann"
    both = corrections.run_values({"stage": "sft", "learning_rate": 1e-3}, "run-1", 3, "p", "both")
    assert both["stage"] == "dpo" and both["pref_ftx"] > 0 and both["learning_rate"] == 5e-4
    alone = corrections.run_values({"learning_rate": 1e-3}, "", 3, "p", "dpo")
    assert alone["pref_ftx"] == 0 and alone["learning_rate"] == 3e-4 and alone["ref_model_adapters"] is None
    assert both["adapter_name_or_path"] == both["ref_model_adapters"] == "run-1"
    assert corrections.run_values(both, "run-2", 3)["stage"] == "sft"


def test_conversations_are_no_datasets_of_the_page(workspace):
    page = workspace.seen(confined=True)
    folder = page.of_user("ann").conversations
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("[]")
    for path in (folder / "a.json", folder, page.root / "conversations", page.root, page.root / "runs" / ".."):
        with pytest.raises(UserError, match="conversations"):
            page.inside(path, what="dataset")
    os.symlink(folder, page.uploads / "link")
    with pytest.raises(UserError, match="conversations"):
        page.inside("uploads/link/a.json", what="dataset_dir")
    assert page.inside(page.root, what="dataset_dir") == page.root
