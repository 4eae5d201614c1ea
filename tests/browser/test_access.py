"""The page for everybody: axe-core finds nothing serious on any tab, light or dark; a phone shows all of it; the first
visit's guide."""

import importlib.resources

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from tests.browser.test_runs import make
from workbench.storage.workspace import DEMO_MODEL, Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]
AXE = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text()
TABS = ("Train", "Data", "Runs", "Chat", "Evaluate", "Probes", "Model")
DARK = ["color-contrast", "link-in-text-block"]  # the rules that a theme can break
LOOK = """async (rules) => (await axe.run(document, {resultTypes: ['violations'], ...(rules && {runOnly: rules})})).violations
  .filter((v) => ['serious', 'critical'].includes(v.impact))
  .map((v) => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 120), v.nodes[0].failureSummary.slice(0, 200)])"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, demo_model):
    workspace = Workspace(tmp_path_factory.mktemp("access")).create()
    (workspace.models / DEMO_MODEL).symlink_to(demo_model)
    make(workspace, "alpha", "finished", [3.0 * 0.95**i for i in range(20)])
    make(workspace, "beta", "failed", [3.0] * 20)
    started = Page(workspace.root)
    yield started
    started.end()


def serious(tab, rules: list[str] | None = None) -> list:
    """What axe finds by these rules, or by all."""
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(AXE)
    return tab.evaluate(LOOK, rules)


def parts(tab) -> list:
    """Tabs within the tab that is in front."""
    return tab.locator("[id$=-parts] button[role=tab]:visible, #tab-chat button[role=tab]:visible").all()


def in_both_themes(tab) -> list:
    """What axe finds: by all rules in the light; in the dark by those about colors, as nothing else differs."""
    found = serious(tab)
    tab.click("#theme")
    expect(tab.locator("body.dark")).to_be_attached()
    tab.mouse.move(0, 0)
    found += serious(tab, DARK)
    tab.click("#theme")
    expect(tab.locator("body.dark")).to_have_count(0)
    tab.mouse.move(0, 0)
    return found


def test_axe_finds_nothing_serious(opened):
    opened.add_style_tag(content="* { transition: none !important; }")  # a color on its way is none that stays
    opened.mouse.move(0, 0)
    opened.fill("#opt-lora_rank input, #opt-lora_rank textarea", "64")
    expect(opened.locator("#option-changes .wb-chip")).to_be_visible()
    found = {}
    for name in TABS:
        open_part(opened, name)
        opened.wait_for_timeout(800)
        for accordion in opened.locator("button.label-wrap:visible").all():
            accordion.click()
        opened.wait_for_timeout(800)
        found[name] = in_both_themes(opened)
        for part in parts(opened):
            part.click()
            if part.inner_text() == "Check":
                opened.click("#data-check")
                expect(opened.locator("#data-checked .wb-note")).to_be_visible()
            opened.wait_for_timeout(500)
            found[f"{name}, {part.inner_text()}"] = in_both_themes(opened)
    twice = "() => { const ids = [...document.querySelectorAll('[id]')].map((node) => node.id).filter(Boolean);"
    assert opened.evaluate(f"{twice} return ids.filter((id, place) => ids.indexOf(id) < place); }}") == []
    assert len(found) > 15 and {place: violations for place, violations in found.items() if violations} == {}


def test_axe_would_find_something(opened):
    faint = "<p id=faint style='color: #888; background: #999'>not to be read</p>"
    opened.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", f"<button></button>{faint}")
    assert {violation[0] for violation in serious(opened)} == {"button-name", "color-contrast"}
    assert [violation[0] for violation in serious(opened, DARK)] == ["color-contrast"]


def test_a_phone_shows_every_tab_and_the_conversation_first(chromium, page):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, locale="en-US", has_touch=True)
    tab = context.new_page()
    tab.goto(page.url)
    expect(tab.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    for name in TABS:
        open_part(tab, name)
        tab.wait_for_timeout(500)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    title, language = (tab.locator(name).bounding_box() for name in ("#topbar h1", "#language"))
    assert title["x"] + title["width"] <= language["x"]
    open_part(tab, "Chat")
    expect(tab.locator("#chat-left")).to_be_visible()
    expect(tab.locator("#load")).to_be_hidden()
    tab.click("#drawer")
    expect(tab.locator("#load")).to_be_visible()
    context.close()


def test_the_guide_leads_through_the_tabs_and_goes_for_good(opened):
    guide = opened.locator("#guide .wb-guide")
    expect(guide).to_contain_text("From your file to a model")
    guide.get_by_role("button", name="1. Drop your file").click()
    expect(opened.locator("#data-use")).to_be_visible()
    guide.get_by_role("button", name="Got it").click()
    expect(guide).to_be_hidden()
    opened.reload()
    expect(opened.locator("#train-message")).to_contain_text("valid", timeout=30_000)
    expect(guide).to_be_hidden()
