"""Several people on one page: each logs in, sees who started what, and can press what the role may do."""

import time

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from workbench.chat import conversations
from workbench.chat.conversations import Conversation
from workbench.config.run_config import validated
from workbench.runs.run import create_run
from workbench.storage.users import Users
from workbench.storage.workspace import DEMO_MODEL, Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]
PASSWORD = "a long password"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, demo_model):
    workspace = Workspace(tmp_path_factory.mktemp("login")).create()
    (workspace.models / DEMO_MODEL).symlink_to(demo_model)
    for name, role in (("ann", "train"), ("bob", "look")):
        Users(workspace).add(name, role, PASSWORD)
    for name in ("ann", "eve"):
        config = validated({"model_name_or_path": "m", "dataset": "d", "run_name": f"of-{name}"})
        create_run(workspace, config, state="finished", started_by=name, ended=time.time())
    talk = Conversation("20260101-000000-abcdef", "", [[{"role": "user", "content": "a question of ann"}]])
    conversations.save(workspace.of_user("ann"), talk)
    return workspace


@pytest.fixture(scope="module")
def page(workspace):
    page = Page(workspace.root)
    yield page
    page.end()


def log_in(tab, url: str, name: str, password: str = PASSWORD) -> None:
    tab.goto(url)
    tab.locator("input").nth(0).fill(name)
    tab.locator("input").nth(1).fill(password)
    tab.get_by_role("button", name="Login").click()


def open_tab(tab, name: str) -> None:
    open_part(tab, name)


def test_who_looks_sees_all_and_presses_nothing_that_changes_it(tab, page):
    log_in(tab, page.url, "bob", "wrong password")
    expect(tab.locator("#start")).not_to_be_attached()
    log_in(tab, page.url, "bob")
    expect(tab.locator("#who")).to_contain_text("bob (look)")
    expect(tab.locator("#start")).to_be_disabled()
    open_tab(tab, "Runs")
    expect(tab.locator("#runs-table")).to_contain_text("by ann")
    tab.locator("#runs-table tr", has_text="of-ann").click()
    expect(tab.locator("#runs-status")).to_contain_text("of-ann")
    expect(tab.locator("#runs-status")).to_contain_text("by ann")
    expect(tab.locator("#runs-zip")).to_be_enabled()
    for name in ("#runs-resume", "#runs-delete"):
        expect(tab.locator(name)).to_be_disabled()
    open_tab(tab, "Note")  # what is built when its tab is opened
    expect(tab.locator("#runs-save")).to_be_disabled()
    open_tab(tab, "Data")
    expect(tab.locator("#data-set")).to_be_visible()
    expect(tab.locator("#data-drop")).to_have_count(0)
    open_tab(tab, "Split, copy, layout")
    expect(tab.locator("#data-copy")).to_be_disabled()
    open_tab(tab, "Chat")
    expect(tab.locator("#load")).to_be_disabled()
    tab.click("#other-server button")
    expect(tab.locator("#external input")).to_be_disabled()


def test_who_trains_changes_the_own_runs_and_has_the_own_conversations(tab, page):
    log_in(tab, page.url, "ann")
    expect(tab.locator("#who")).to_contain_text("ann (train)")
    expect(tab.locator("#start")).to_be_enabled()
    open_tab(tab, "Runs")
    tab.locator("#runs-table tr", has_text="of-eve").click()
    expect(tab.locator("#runs-status")).to_contain_text("of-eve")
    expect(tab.locator("#runs-delete")).to_be_disabled()
    tab.locator("#runs-table tr", has_text="of-ann").click()
    expect(tab.locator("#runs-delete")).to_be_enabled()
    open_tab(tab, "Chat")
    tab.click("#history > button")
    tab.locator("#history-list input").click()
    expect(tab.get_by_role("option", name="a question of ann")).to_be_visible()
    tab.click("#logout")
    expect(tab.get_by_role("button", name="Login")).to_be_visible()
