"""The Model tab in a browser: a model is chosen, its pictures are drawn, a config is dropped, a model is deleted."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from workbench.models.anatomy import bundled
from workbench.storage.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("model")).create()
    folder = workspace.models / "half"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(bundled.configs()["Llama-3-8B"]))
    (folder / "model.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"{}")
    started = Page(workspace.root)
    yield started
    started.end()


@pytest.fixture
def shown(tab, page):
    tab.goto(page.url)
    open_part(tab, "Model")
    expect(tab.locator("#model-tiles")).to_contain_text("15.71B")
    return tab


def choose(tab, name: str) -> None:
    tab.click("#model-name input")
    tab.get_by_role("option", name=f"{name} (").first.click()


def test_a_model_is_chosen_and_its_pictures_are_drawn(shown):
    expect(shown.locator("#model-treemap .treemaplayer")).to_contain_text("routed experts")
    choose(shown, "DeepSeek-V2")
    expect(shown.locator("#model-tiles")).to_contain_text("235.74B")
    expect(shown.locator("#model-cache-words")).to_contain_text("93.3%")
    expect(shown.locator("#model-cache .bars")).to_contain_text("67.5 KiB")
    expect(shown.locator("#model-map .wb-layers i.mixture")).to_have_count(59)
    expect(shown.locator("#model-rope .scatterlayer path.js-line")).to_have_count(5)
    expect(shown.locator("#fields-table")).to_contain_text("kv_lora_rank")
    shown.get_by_label("Only what one token meets").check()
    expect(shown.locator("#model-treemap .treemaplayer")).to_contain_text("21.38B")


def test_a_dropped_config_and_a_wrong_one(shown, tmp_path):
    shown.click("#model-config button.label-wrap")
    for values, words in (
        (bundled.configs()["Qwen3-8B"] | {"num_hidden_layers": 1}, "1.44B"),
        (bundled.configs()["Qwen3-8B"] | {"num_key_value_heads": 5}, "figures are not shown"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values))
        shown.locator("#model-drop input[type=file]").set_input_files(tmp_path / "config.json")
        expect(shown.locator("#model-tiles")).to_contain_text(words)
    expect(shown.locator("#model-message")).to_contain_text("no multiple of num_key_value_heads (5)")
    expect(shown.locator("#model-treemap .treemaplayer")).to_have_count(0)


def test_a_model_is_deleted_after_a_question_that_names_it(shown, page):
    folder, asked = page.workspace / "models" / "half", []
    choose(shown, "half")
    expect(shown.locator("#model-message")).to_contain_text("is not whole")
    expect(shown.locator("#machine-table")).to_contain_text("half")
    for answer in ("dismiss", "accept"):
        shown.once("dialog", lambda dialog, answer=answer: (asked.append(dialog.message), getattr(dialog, answer)()))
        shown.click("#model-remove input")
        shown.get_by_role("option", name="half", exact=True).click()
        shown.click("#model-delete")
        if answer == "dismiss":
            shown.wait_for_timeout(800)  # nothing comes
            assert folder.is_dir()
    expect(shown.locator("#model-deleted")).to_contain_text("half is deleted")
    expect(shown.locator("#model-machine")).to_contain_text("no model in the workspace")
    assert not folder.exists() and asked == ["Delete the model half with all its files?"] * 2
