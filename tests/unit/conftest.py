"""The quick tests start in no time: none of them loads torch, transformers or gradio."""

import sys

import pytest

HEAVY = {"torch", "transformers", "trl", "gradio"}


@pytest.fixture(autouse=True)
def light():
    """Fails a test that loads a heavy package into this process. (In a run of the whole suite they are there before.)"""
    loaded = HEAVY & set(sys.modules)
    yield
    assert not (HEAVY & set(sys.modules)) - loaded, "Move this test to tests/models or tests/ui."
