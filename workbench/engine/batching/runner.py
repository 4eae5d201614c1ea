"""One forward pass of a model over rows of different lengths, through the paged cache."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.engine.batching.cache import PagedCache, View
from workbench.engine.batching.pages import BLANK, TRASH
from workbench.engine.batching.quick import QuickForward
from workbench.engine.batching.step import one_step
from workbench.engine.recorded.steps import ROWS, RecordedSteps
from workbench.models.rope_lengths import RopeLengths

STEP_ROWS = ROWS[-1]
MaskForm = Literal["plain", "by_layer_type"]


@dataclass
class Piece:
    """Tokens of one row that a pass reads: `tokens` at `start` and after it, of a text whose earlier tokens are in
    `pages`. `lengths`: what decides each token's rotary factors, where that is a question."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    lengths: Sequence[int] | None = None


class Runner:
    """Runs pieces through `model`. `form`: how the model wants masks that are given to it."""

    def __init__(
        self,
        model,
        cache: PagedCache,
        rope: RopeLengths,
        form: MaskForm,
        quick: QuickForward | None = None,
        steps: bool = False,
        recorded: int = 0,
    ):
        """`quick`: in the place of the model's own forward pass. `steps`: rows' next tokens in one call, where there is
        such a step. `recorded`: rows' next tokens by recordings, for rows of up to so many pages."""
        self.model, self.cache, self.rope, self.form, self.quick = model, cache, rope, form, quick
        self.step = one_step(quick, cache) if steps else None
        self.config = model.config.get_text_config()
        self.device = model.get_input_embeddings().weight.device
        self._places = torch.arange(0, device=self.device)
        kinds = getattr(self.config, "layer_types", None) or ()
        window = getattr(self.config, "sliding_window", None)
        self.windowed = bool(window) and (not kinds or "sliding_attention" in kinds)
        self.recorded: RecordedSteps | None = None
        if recorded:
            width = int(window) if self.windowed else 0
            self.recorded = RecordedSteps(model, cache, rope, form, width, recorded)

    def grow(self, pages: int) -> None:
        """Let the cache have `pages` pages. Raises torch.OutOfMemoryError; then it has as many as before, and steps are
        recorded anew."""
        if self.recorded:
            self.recorded.forget_all()
        self.cache.grow(pages)
        if self.step:
            self.step = one_step(self.quick, self.cache)

    def run(self, pieces: Sequence[Piece], own: bool = False, mixed: bool = False) -> Tensor:
        """Logits [rows, vocabulary] in float32 after the last token of each piece. `own`: by the model's own forward
        pass in any case. `mixed`: some rows have adapters."""
        quick = None if own else self.quick
        ids, positions, write, table = self._layout(pieces)
        length = table.shape[1] * self.cache.size
        lengths = None
        if self.rope.kind:
            widest = positions.shape[1]
            filled = [[1] * (widest - len(p.tokens)) + list(p.lengths or [1] * len(p.tokens)) for p in pieces]
            lengths = torch.tensor(filled)
        self.cache.view = View(write, table, self._run_of(pieces))
        with torch.inference_mode(), self.rope.given(lengths):
            if self.step and ids.shape[1] == 1 and not own and not mixed and self.step.ready():
                return self.step(ids, positions, table)
            one = ids.numel() == 1 and self.cache.view.run is not None and not self.windowed
            if quick and one:  # it sees all that is there
                self.cache.view.tokens = pieces[0].start + 1
                return quick(ids, positions, None, self.cache)
            masks = self._masks(positions, length, additive=quick is not None)
            if quick:
                return quick(ids, positions, masks, self.cache)
            out = self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=masks,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return out.logits[:, -1].float()

    def decode(self, pieces: Sequence[Piece], adapter: str | None) -> Tensor | None:
        """As `run` for pieces of one token each, by a recording; `adapter` is the one that is switched on in the whole
        model. None where steps are not recorded."""
        return None if self.recorded is None else self.recorded.run(pieces, adapter)

    def in_steps(self, pieces: Sequence[Piece], adapter: str | None) -> Tensor | None:
        """As `run` for short pieces, by recordings: each token is a row of its own. A row sees what those before it
        write in the same step, because every layer writes before it reads. None where steps are not recorded."""
        rows = [
            Piece([token], piece.start + i, piece.pages, piece.lengths and [piece.lengths[i]])
            for piece in pieces
            for i, token in enumerate(piece.tokens)
        ]
        ends = list(itertools.accumulate(len(piece.tokens) for piece in pieces))
        found: list[Tensor] = []
        for start in range(0, len(rows), STEP_ROWS):
            logits = self.decode(rows[start : start + STEP_ROWS], adapter)
            if logits is None:
                return None
            here = [end - 1 - start for end in ends if start < end <= start + STEP_ROWS]
            if here:
                found.append(logits[here])  # a copy: the next step writes over its logits
        return torch.cat(found)

    def _layout(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids and positions [rows, length], the places to write to, and the table of pages. Short pieces are filled up
        on the left, so that every row ends with its last token; what fills is written to the trash page."""
        size = self.cache.size
        widest = max(len(piece.tokens) for piece in pieces)
        ends = [piece.start + len(piece.tokens) for piece in pieces]
        pages = max(-(-end // size) for end in ends)
        ids, positions, write, table = [], [], [], []
        for piece, end in zip(pieces, ends, strict=True):
            missing = widest - len(piece.tokens)
            places = range(piece.start, end)
            ids.append([0] * missing + list(piece.tokens))
            positions.append([0] * missing + list(places))
            write += [TRASH] * missing + [piece.pages[at // size] * size + at % size for at in places]
            mine = list(piece.pages[: -(-end // size)])
            table.append(mine + [BLANK] * (pages - len(mine)))
        return tuple(torch.tensor(rows, device=self.device) for rows in (ids, positions, write, table))

    def _run_of(self, pieces: Sequence[Piece]) -> int | None:
        if len(pieces) > 1:
            return None
        (piece,) = pieces
        pages = piece.pages[: -(-(piece.start + len(piece.tokens)) // self.cache.size)]
        return pages[0] if all(b == a + 1 for a, b in itertools.pairwise(pages)) else None

    def _masks(self, positions: Tensor, length: int, additive: bool = False):
        """What each new token sees of its row: what is not after it, and within a sliding window not too long before.

        Given as four dimensions, so that transformers takes it as it is. `additive`: as numbers to add to the scores,
        which saves turning it into them at each layer.
        """
        if length > len(self._places):
            self._places = torch.arange(length, device=self.device)
        places, here = self._places[:length], positions[:, None, :, None]
        seen = places <= here
        near = seen & (places > here - self.config.sliding_window) if self.windowed else seen
        additive |= self.config._attn_implementation == "eager"
        whole, part = self._as_wanted(seen, additive), self._as_wanted(near, additive) if self.windowed else None
        if self.form == "plain":
            return whole if part is None else part
        return {"full_attention": whole, "sliding_attention": whole if part is None else part}

    def _as_wanted(self, seen: Tensor, additive: bool) -> Tensor:
        if not additive:
            return seen
        dtype = self.model.get_input_embeddings().weight.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
