"""From logits to tokens: temperature, nucleus, penalties, grammar, seed; and what the model thought of each choice."""

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from workbench.engine.backend import Sampling
from workbench.engine.grammars import Plan, matcher
from workbench.engine.nucleus import TopP, draw
from workbench.errors import UserError

_GREEDY_BELOW = 0.01  # a lower temperature picks the best token anyway, and would overflow


class Sampler:
    """Chooses the next token of each row of one request; rows are its `n` answers."""

    def __init__(self, sampling: Sampling, prompt: torch.Tensor, tokenizer, vocabulary: int):
        """`prompt` [1, tokens]; `vocabulary` is the width of the logits."""
        self.sampling, self.tokenizer = sampling, tokenizer
        self.greedy = sampling.temperature < _GREEDY_BELOW or not sampling.top_p
        device = prompt.device
        self.generator = torch.Generator(device=device)
        if sampling.seed is not None:
            self.generator.manual_seed(sampling.seed % 2**63)
        else:
            self.generator.seed()
        self.repetition, self.warpers = LogitsProcessorList(), LogitsProcessorList()
        if sampling.repetition_penalty != 1.0:
            self.repetition.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self.greedy:
            if sampling.temperature != 1.0:
                self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self.warpers.append(TopP(sampling.top_p))
            if sampling.min_p:
                self.warpers.append(MinPLogitsWarper(sampling.min_p))
        self.ids = prompt.expand(sampling.n, -1)  # all tokens of each row; only kept up to date where needed
        penalized = sampling.presence_penalty or sampling.frequency_penalty
        self.counts = torch.zeros(sampling.n, vocabulary, device=device) if penalized else None
        self.bias = _bias(sampling.logit_bias, vocabulary, device)
        first = _grammar(tokenizer, sampling.grammar, vocabulary)
        self.grammars = [first, *(first.copy() for _ in range(sampling.n - 1))]

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Tokens [rows, 1] from logits [rows, vocabulary]; remembers them."""
        if self.counts is not None:
            seen = self.counts > 0
            logits = logits - self.sampling.presence_penalty * seen - self.sampling.frequency_penalty * self.counts
        if self.repetition:
            logits = self.repetition(self.ids, logits)
        if self.bias is not None:
            logits = logits + self.bias
        if self.sampling.grammar is not None:
            logits = torch.stack([grammar(row) for grammar, row in zip(self.grammars, logits, strict=True)])
        if self.greedy:
            chosen = logits.argmax(dim=-1, keepdim=True)
        else:
            chances = torch.softmax(self.warpers(self.ids, logits), dim=-1)
            chosen = draw(chances, self.generator)
        if self.repetition:
            self.ids = torch.cat([self.ids, chosen], dim=-1)
        if self.counts is not None:
            self.counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=self.counts.dtype))
        if self.sampling.grammar is not None:
            for grammar, token in zip(self.grammars, chosen[:, 0].tolist(), strict=True):
                grammar.take(token)
        return chosen

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on."""
        self.ids = self.ids[rows]
        self.grammars = [self.grammars[row] for row in rows]
        if self.counts is not None:
            self.counts = self.counts[rows]


def measure(logits: torch.Tensor, chosen: torch.Tensor, top: int) -> tuple[list[list[float]], list[list[int]]]:
    """What the model's own distribution says of the chosen tokens.

    Args:
        logits: [rows, vocabulary], float32, before temperature and penalties.
        chosen: [rows, 1].
        top: alternatives wanted.

    Returns:
        Per row `[logprob, rank, entropy, logprob of each alternative …]`, and the ids of the alternatives.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    mine = logits.gather(1, chosen)
    rank = (logits > mine).sum(dim=-1, keepdim=True) + 1
    # -Σ p log p with p = e^(x - total)
    entropy = total - (torch.softmax(logits, dim=-1) * logits.clamp_min(-1e4)).sum(dim=-1, keepdim=True)
    best, ids = logits.topk(max(top, 1), dim=-1)
    # in one tensor, so that a GPU is waited for once; float32 holds ids below 2^24 as they are
    parts = [mine - total, rank.to(logits.dtype), entropy, best - total, ids.to(logits.dtype)]
    rows = torch.cat(parts, dim=-1).tolist()
    width = ids.shape[-1]
    return [row[:-width] for row in rows], [[int(one) for one in row[-width:]] for row in rows]


class _Free:
    """No grammar."""

    stopped = False

    def copy(self) -> "_Free":
        return self

    def take(self, token: int) -> None:
        pass


class _Masked:
    """Masks what the grammar does not allow (llguidance)."""

    def __init__(self, matcher, vocabulary: int):
        self._matcher, self._vocabulary = matcher, vocabulary
        self._bits = np.zeros((vocabulary + 31) // 32, dtype=np.int32)  # one for each token, the low bit first

    def copy(self) -> "_Masked":
        """The same grammar at the same place, for another row."""
        return _Masked(self._matcher.deep_copy(), self._vocabulary)

    @property
    def stopped(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._matcher.is_stopped()

    def __call__(self, row: torch.Tensor) -> torch.Tensor:
        if self.stopped:
            return row
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        return row.masked_fill(torch.from_numpy(allowed).to(row.device) == 0, float("-inf"))

    def take(self, token: int) -> None:
        if not self.stopped:
            self._matcher.consume_token(token)


def _bias(biases: dict[int, float], vocabulary: int, device) -> torch.Tensor | None:
    """What is added to the logits [vocabulary]. Raises UserError for a token that there is not."""
    if not biases:
        return None
    if unknown := [token for token in biases if not 0 <= token < vocabulary]:
        raise UserError("bias_unknown", token=unknown[0], last=vocabulary - 1)
    added = torch.zeros(vocabulary, device=device)
    added[list(biases)] = torch.tensor(list(biases.values()), dtype=added.dtype, device=device)
    return added


def sampling_defaults(generation_config) -> dict[str, float]:
    """The sampling values that a model's `generation_config` names, as fields of `Sampling`."""
    named = {
        name: getattr(generation_config, name, None)
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    }
    return {name: value for name, value in named.items() if isinstance(value, int | float)}


def _grammar(tokenizer, wanted: str | dict | Plan | None, vocabulary: int):
    """Raises UserError when the schema is none, or uses what llguidance does not know."""
    if wanted is None:
        return _Free()
    plan = (
        wanted if isinstance(wanted, Plan) else Plan(schema={"type": "object"} if isinstance(wanted, str) else wanted)
    )
    return _Masked(matcher(tokenizer, plan, vocabulary), vocabulary)
