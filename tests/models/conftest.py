"""What tests of trainers share."""

import pytest


@pytest.fixture
def values(tiny_model, tmp_path) -> dict:
    """Options of a short run."""
    from tests.trained import make_values

    return make_values(tiny_model, tmp_path)
