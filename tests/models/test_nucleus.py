"""The nucleus is the one that transformers finds by sorting."""

import pytest
import torch
from transformers.generation.logits_process import TopPLogitsWarper

from workbench.engine.nucleus import TopP, draw


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
def test_it_keeps_what_transformers_keeps(spread, top_p):
    """Flat distributions, where it is larger than what is looked at first, among them."""
    torch.manual_seed(1)
    scores = torch.randn(3, 5000) * spread
    scores[0, :100] = -torch.inf  # as a grammar or top_k leave it
    found, want = TopP(top_p)(None, scores), TopPLogitsWarper(top_p)(None, scores)
    same = (found == want).all(dim=-1)
    kept = [(row > -torch.inf).sum(dim=-1) for row in (found, want)]
    assert ((kept[0] - kept[1]).abs() <= 1).all() and same.sum() >= 2  # a sum at the very edge may round either way


def test_a_certain_token_and_equals():
    certain = torch.full((1, 300), -50.0).index_fill(1, torch.tensor([7]), 50.0)
    assert (TopP(0.9)(None, certain) > -torch.inf).nonzero().tolist() == [[0, 7]]
    equal = torch.zeros(1, 300)
    assert (TopP(0.5)(None, equal) > -torch.inf).sum() >= 150


def test_draws_follow_the_chances_and_never_take_what_has_none():
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]])
    generator = torch.Generator().manual_seed(3)
    drawn = torch.cat([draw(chances, generator) for _ in range(4000)]).flatten()
    shares = drawn.bincount(minlength=6) / 4000
    assert torch.allclose(shares, chances[0], atol=0.03) and shares[chances[0] == 0].sum() == 0
    again = torch.Generator().manual_seed(3)
    assert torch.equal(drawn[:5], torch.cat([draw(chances, again) for _ in range(5)]).flatten())
    with pytest.raises(ValueError, match="too large"):
        draw(torch.tensor([[float("nan"), 1.0]]), generator)
