"""The quick tests start in no time: none of them loads torch, transformers or gradio."""

import sys

import pytest

HEAVY = {"torch", "transformers", "trl", "gradio"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What is loaded before the test and its fixtures. (In a run of the whole suite others have loaded everything.)"""
    item.loaded_before = HEAVY & set(sys.modules)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    """Fails a test that loads a heavy package into this process."""
    fresh = (HEAVY & set(sys.modules)) - item.loaded_before
    assert not fresh, f"It loads {', '.join(sorted(fresh))}. Move it to tests/models or tests/ui."
