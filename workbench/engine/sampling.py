"""From logits to tokens: temperature, nucleus, penalties, grammar, seed; and what the model thought of each choice."""

from functools import lru_cache

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from workbench.engine.backend import Sampling
from workbench.engine.nucleus import TopP, draw
from workbench.errors import UserError

_GREEDY_BELOW = 0.01  # a lower temperature picks the best token anyway, and would overflow


class Sampler:
    """Chooses the next token of each row of one request; rows are its `n` answers."""

    def __init__(self, sampling: Sampling, prompt: torch.Tensor, tokenizer, vocabulary: int):
        """`prompt` [1, tokens]; `vocabulary` is the width of the logits."""
        self.sampling, self.tokenizer = sampling, tokenizer
        self.greedy = sampling.temperature < _GREEDY_BELOW
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
        self.ids = prompt.expand(sampling.n, -1)  # all tokens of each row; only kept up to date where needed
        penalized = sampling.presence_penalty or sampling.frequency_penalty
        self.counts = torch.zeros(sampling.n, vocabulary, device=device) if penalized else None
        self.grammars = [_grammar(tokenizer, sampling.grammar, vocabulary) for _ in range(sampling.n)]

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Tokens [rows, 1] from logits [rows, vocabulary]; remembers them."""
        if self.counts is not None:
            seen = self.counts > 0
            logits = logits - self.sampling.presence_penalty * seen - self.sampling.frequency_penalty * self.counts
        if self.repetition:
            logits = self.repetition(self.ids, logits)
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
    figures = torch.cat([mine - total, rank.to(logits.dtype), entropy, best - total], dim=-1)
    return figures.tolist(), ids.tolist()


class _Free:
    """No grammar."""

    stopped = False

    def take(self, token: int) -> None:
        pass


class _Json:
    """Masks what cannot go on as valid JSON (llguidance)."""

    def __init__(self, matcher, vocabulary: int):
        import llguidance.torch as masks

        self._masks, self._matcher = masks, matcher
        self._mask = masks.allocate_token_bitmask(1, vocabulary)

    @property
    def stopped(self) -> bool:
        """Whether the JSON is complete and nothing may follow."""
        return self._matcher.is_stopped()

    def __call__(self, row: torch.Tensor) -> torch.Tensor:
        if self.stopped:
            return row
        self._masks.fill_next_token_bitmask(self._matcher, self._mask, 0)
        allowed = row[None].clone()
        self._masks.apply_token_bitmask_inplace(allowed, self._mask.to(row.device))
        return allowed[0]

    def take(self, token: int) -> None:
        if not self.stopped:
            self._matcher.consume_token(token)


@lru_cache(maxsize=2)
def _guided(tokenizer, vocabulary: int):
    import llguidance.hf

    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)


def _grammar(tokenizer, wanted: str | dict | None, vocabulary: int):
    """Raises UserError when the schema is none, or uses what llguidance does not know."""
    if wanted is None:
        return _Free()
    import json

    from llguidance import LLMatcher

    schema = {"type": "object"} if wanted == "json" else wanted
    try:
        matcher = LLMatcher(
            _guided(tokenizer, vocabulary),
            LLMatcher.grammar_from_json_schema(json.dumps(schema), {"whitespace_flexible": wanted == "json"}),
        )
        problem = matcher.get_error() if matcher.is_error() else ""
    except ValueError as error:
        problem = str(error)
    if problem:
        raise UserError(f"response_format: this JSON schema cannot be used: {' '.join(problem.split())[:300]}")
    return _Json(matcher, vocabulary)
