"""The next token of each row from the logits of a pass, and what the model thought of it."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.engine.backend import Sampling
from workbench.engine.batching.rows import Row
from workbench.engine.sampling import measure

_NO_MATTER = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "seed",
    "n",
    "logprobs",
}  # to a greedy choice


def plain(sampling: Sampling) -> bool:
    """Whether nothing changes the logits, so that a greedy choice is their largest."""
    for one in dataclasses.fields(sampling):
        value = getattr(sampling, one.name)
        if one.name not in _NO_MATTER and value and value != one.default:
            return False
    return True


@dataclasses.dataclass
class Chosen:
    """A row's next token; `figures` and `others` as `measure` gives them, where they were asked for. `error`: why there
    is none."""

    token: int = -1
    figures: list[float] | None = None
    others: list[int] | None = None
    error: Exception | None = None


def choose(rows: Sequence[Row], logits: Tensor) -> list[Chosen]:
    """What each row goes on with, from logits [rows, vocabulary] in float32. A row whose choice fails does not disturb
    the others."""
    chosen = [Chosen() for _ in rows]
    with torch.inference_mode():
        simple = [i for i, row in enumerate(rows) if row.sampler.greedy and row.plain]
        tokens = logits.argmax(dim=-1) if simple else logits.new_zeros(len(rows), dtype=torch.int64)
        for i in set(range(len(rows))).difference(simple):
            try:
                tokens[i] = rows[i].sampler.choose(logits[i : i + 1])[0, 0]
            except Exception as error:
                chosen[i].error = error
        asked = [i for i, row in enumerate(rows) if row.sampler.sampling.logprobs is not None and not chosen[i].error]
        measured = None
        if asked:
            everything = len(asked) == len(rows)
            most = max(rows[i].sampler.sampling.logprobs or 0 for i in asked)
            measured = measure(
                logits if everything else logits[asked], (tokens if everything else tokens[asked])[:, None], most
            )
        for one, token in zip(chosen, tokens.tolist(), strict=True):
            if not one.error:
                one.token = token
        if measured:
            for i, figures, others in zip(asked, *measured, strict=True):
                chosen[i].figures, chosen[i].others = figures, others
    return chosen
