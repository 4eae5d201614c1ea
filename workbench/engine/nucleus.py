"""The nucleus of a distribution without sorting all of it."""

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor, TopPLogitsWarper

_LIKELIEST = 256  # tokens that are looked at first


class TopP(LogitsProcessor):
    """Keeps the likeliest tokens that together have `top_p`; the others become -inf. As transformers' warper, which
    sorts the whole vocabulary, save that equals of the least likely one that is kept are kept, too."""

    def __init__(self, top_p: float):
        self.top_p, self._whole = top_p, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` [rows, vocabulary]."""
        best = scores.topk(min(_LIKELIEST, scores.shape[-1]), dim=-1).values
        shares = torch.exp(best - scores.logsumexp(dim=-1, keepdim=True))
        sums = shares.cumsum(dim=-1)
        if not bool((sums[:, -1] > self.top_p).all()):  # flat: the nucleus is larger
            return self._whole(input_ids, scores)
        last = (sums < self.top_p).sum(dim=-1, keepdim=True)  # the place of the least likely that is kept
        return scores.masked_fill(scores < best.gather(1, last), -torch.inf)


def draw(chances: Tensor, generator: torch.Generator) -> Tensor:
    """One token [rows, 1] from each row of `chances` [rows, vocabulary]: one random number a row, where `multinomial`
    takes one for each token of the vocabulary.

    Raises:
        ValueError: the chances are no numbers.
    """
    sums = chances.double().cumsum(dim=-1)
    if not bool(torch.isfinite(sums[:, -1]).all()):
        raise ValueError("The model's numbers are too large to choose a token from (inf or nan).")
    at = torch.rand(len(chances), 1, dtype=torch.float64, device=chances.device, generator=generator)
    return torch.searchsorted(sums, at * sums[:, -1:], right=True).clamp_max(chances.shape[-1] - 1)
