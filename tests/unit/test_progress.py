"""Progress of libraries that show tqdm bars, also where those are switched off (a run has no terminal)."""

import pytest
from tqdm.auto import tqdm

from workbench.models.demo import watch_tqdm


@pytest.mark.parametrize("disable", [False, True])
def test_bars_are_reported_whether_shown_or_not(disable):
    told = []
    with (
        watch_tqdm(lambda what, share: told.append((what, share))),
        tqdm(total=4, desc="weights: ", disable=disable, mininterval=0) as bar,
    ):
        bar.update(1)
        bar.update(3)
    assert told == [("weights", 0.25), ("weights", 1.0)]
    with tqdm(total=4, disable=disable) as bar:
        bar.update(1)
    assert len(told) == 2
