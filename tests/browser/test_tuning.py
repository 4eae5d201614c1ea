"""Ways of tuning in a browser: a whole model that a run has trained, in Chat."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from tests.browser.test_runs import choose
from workbench.config.run_config import validated
from workbench.runs.run import create_run
from workbench.storage.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture
def run(tmp_path, tiny_model):
    """A run that has trained a whole model, as it lies on the disk."""
    place = Workspace(tmp_path / "w").create()
    made = create_run(place, validated({"model_name_or_path": "a/b", "dataset": "d", "finetuning_type": "freeze"}))
    for file in tiny_model.iterdir():
        (made.path / file.name).write_bytes(file.read_bytes())
    row = {"current_steps": 1, "total_steps": 1, "loss": 1.0, "elapsed_seconds": 1.0}
    made.metrics.write_text(json.dumps(row) + "\n")
    made.update(state="finished", step=1, total_steps=1, ended=1.0)
    return made


@pytest.fixture
def page(run):
    started = Page(run.path.parent.parent)
    yield started
    started.end()


def test_a_whole_model_of_a_run_is_chatted_with(opened, run):
    open_part(opened, "Runs")
    choose(opened, run)
    opened.click("#runs-chat")
    expect(opened.locator("#chat-model input")).to_have_value(run.id)
    expect(opened.locator("#chat-adapter input")).to_have_value(re.compile("none"))
    opened.click("#load")
    expect(opened.locator("#engine-status")).to_contain_text(
        re.compile(f"{run.id}.*is ready on CPU", re.S), timeout=90_000
    )
