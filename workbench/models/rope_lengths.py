"""RoPE scalings that depend on the length of the text: dynamic NTK and longrope (Phi-3's).

transformers takes the largest position of a forward pass for the length, and dynamic NTK remembers the largest so far.
So a prompt read in pieces mixes several sets of factors, rows of one batch share one, and a request changes the next
one's. Here every token is given the length that decides its factors, and nothing is remembered:

- dynamic: the prompt's length for its tokens, and for each later token the length up to itself, as in transformers'
  own generation.
- longrope: the short factors while the whole text fits the original length, the long ones as soon as it does not; what
  was read with the short ones is then read again (transformers does so for Phi-3).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

KINDS = ("dynamic", "longrope")


class RopeLengths:
    """The rotary modules of `model` that depend on the length; changes their forward pass. `kind` is empty where there
    are none. `per_layer`: the model has several rotary embeddings of such a kind, which this cannot give lengths to."""

    def __init__(self, model):
        self.kind, self.per_layer, self.original = "", False, 0
        self._given: Tensor | None = None
        self._fixed: Tensor | None = None
        self._factors: Callable[[Tensor], Tensor] | None = None
        for module in model.modules():
            kind = getattr(module, "rope_type", None)
            if isinstance(kind, dict):
                self.per_layer |= any(one in KINDS for one in kind.values())
            elif kind in KINDS and hasattr(module, "inv_freq"):
                self.kind = kind
                self._install(module, kind)

    def _install(self, module, kind: str) -> None:
        forward, config = module.forward, module.config
        given = config.rope_parameters.get("original_max_position_embeddings")
        # dynamic scaling counts from max_position_embeddings in transformers
        self.original = given if kind == "longrope" else config.max_position_embeddings
        short, attribute = module.original_inv_freq, module.inv_freq
        long = ROPE_INIT_FUNCTIONS[kind](config, short.device, seq_len=self.original + 1)[0]
        module.rope_type = "by_length"  # transformers' own changes are off

        def factors(lengths: Tensor) -> Tensor:
            lengths = lengths[..., None]
            if kind == "longrope":
                return torch.where(lengths > self.original, long.to(lengths.device), short.to(lengths.device))
            return ROPE_INIT_FUNCTIONS[kind](config, lengths.device, seq_len=lengths)[0]

        def by_length(x: Tensor, position_ids: Tensor) -> Tensor:
            lengths = self._given
            if lengths is None:
                lengths = (position_ids.max() + 1).expand(position_ids.shape)
            module.inv_freq = factors(lengths.to(x.device)) if self._fixed is None else self._fixed
            try:
                return forward(x, position_ids)
            finally:
                module.inv_freq = attribute

        module.forward = by_length
        self._factors = factors

    def factors(self, lengths: Tensor) -> Tensor:
        """Inverse frequencies [rows, length, d / 2] for tokens with these lengths [rows, length]."""
        if self._factors is None:
            raise ValueError("nothing here depends on the length")
        return self._factors(lengths)

    @contextmanager
    def given(self, lengths: Tensor | None, factors: Tensor | None = None) -> Iterator[None]:
        """Inside, a forward pass takes these lengths [rows, length] for its tokens, or these factors."""
        self._given, self._fixed = lengths, factors
        try:
            yield
        finally:
            self._given = self._fixed = None

    def lengths(self, start: int, stop: int, prompt: int, total: int) -> list[int]:
        """The length that decides each token's factors, for the tokens at `start` to `stop` of a text of `total` tokens
        whose first `prompt` are the prompt."""
        if self.kind == "longrope":
            return [total] * (stop - start)
        return [max(prompt, position + 1) for position in range(start, stop)]

    def reread(self, before: int, after: int) -> bool:
        """Whether what was read of a text of `before` tokens must be read again when it has `after`."""
        return self.kind == "longrope" and before <= self.original < after

    def shareable(self, prompt: int, total: int) -> tuple[int, int]:
        """`(class, tokens)`: keys of the first `tokens` tokens are the same in all texts of the same class that begin
        with the same tokens."""
        if self.kind == "longrope":
            return int(total > self.original), total
        if self.kind == "dynamic":
            return (prompt, prompt) if prompt > self.original else (0, min(total, self.original))
        return 0, total
