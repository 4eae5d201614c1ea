"""Decoding steps as CUDA graphs: what differs between two steps lies in tensors, so a step is one launch.

A model's own forward pass is recorded, for a few numbers of rows and for each adapter (or none); rows that are missing
are filled up with ones that write to the trash page. Attention reads the pages in place (`attention.py`), so texts of
any length share a recording. Recordings are made when they are needed first, each in a fraction of a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.engine.batching.cache import PagedCache, View
from workbench.engine.recorded.attention import Places, reading
from workbench.models.rope_lengths import RopeLengths

ROWS = (1, 2, 4, 8, 16, 32, 64)  # of recordings
_NUMBERS = 3  # int64 of a row: its token, its position, the place to write to


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    logits: Tensor
    places: Places  # holds what the graph reads


class RecordedSteps:
    """The recordings of one model and one cache.

    Attributes:
        refused: the adapters (None: the base) whose steps cannot be recorded, with the reason.
        report: is told of these.
    """

    def __init__(self, model, cache: PagedCache, rope: RopeLengths, form: str, window: int, pages: int):
        """`form`: as the runner's. `window`: of sliding layers, or 0. `pages`: the most that a row can have."""
        self.model, self.cache, self.rope, self.form, self.window = model, cache, rope, form, window
        self.refused: dict[str | None, str] = {}
        self.report: Callable[[str], None] = lambda line: None
        device = model.get_input_embeddings().weight.device
        most = ROWS[-1]
        self._numbers = torch.zeros(_NUMBERS, most, dtype=torch.int64, device=device)
        self._table = torch.zeros(most, pages, dtype=torch.int32, device=device)
        self._lengths = torch.ones(most, dtype=torch.int32, device=device)
        self._factors: Tensor | None = None  # [rows, 1, d / 2], where these depend on the length
        self._host_numbers = torch.zeros(_NUMBERS, most, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._host_table = torch.zeros(most, pages, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._host_lengths = torch.ones(most, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._known: list[tuple[Sequence[int], int]] = [((), 0)] * most  # whose pages a row of the table holds
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self._graphs: dict[tuple[str | None, int], _Recording] = {}
        self._pool = None

    def run(self, pieces: Sequence, adapter: str | None) -> Tensor | None:
        """Logits [rows, vocabulary] in float32 of pieces of one token; None where steps are not recorded.

        The logits are those of the recording: they hold until the next step.
        """
        if adapter in self.refused or len(pieces) > ROWS[-1]:
            return None
        rows = next(count for count in ROWS if count >= len(pieces))
        self._fill(pieces, rows)
        key = adapter, rows
        recording = self._graphs.get(key)
        if recording is None:
            try:
                recording = self._graphs[key] = self._record(adapter, rows)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of whatever a model's code does that cannot be recorded
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self.refused[adapter] = reason
                self.report(f"Steps of this adapter are not recorded, which makes them slower: {reason}.")
                return None
        recording.graph.replay()
        return recording.logits[: len(pieces)]

    def forget_all(self) -> None:
        """Something that all recordings read has another address now."""
        self._graphs, self._pool = {}, None

    def forget(self, adapter: str) -> None:
        """The adapter is gone, or another one has its name."""
        self._graphs = {key: one for key, one in self._graphs.items() if key[0] != adapter}
        self.refused.pop(adapter, None)

    def _fill(self, pieces: Sequence, rows: int) -> None:
        """What the step reads, from its pieces."""
        if self._copied:
            self._copied.synchronize()  # what an earlier step reads has left the host's memory
        size, numbers = self.cache.size, self._host_numbers.numpy()
        table, lengths = self._host_table.numpy(), self._host_lengths.numpy()
        widest = 1
        for row, piece in enumerate(pieces):
            page = piece.pages[piece.start // size]
            numbers[:, row] = piece.tokens[0], piece.start, page * size + piece.start % size
            lengths[row] = piece.start + 1
            known, count = self._known[row]
            used = piece.start // size + 1
            if known is not piece.pages:
                count = 0
            if count < used:
                table[row, count:used] = piece.pages[count:used]
                self._known[row] = piece.pages, used
            widest = max(widest, used)
        for row in range(len(pieces), rows):
            numbers[:, row], lengths[row], table[row, 0] = 0, 1, 0
            self._known[row] = (), 0
        self._numbers[:, :rows].copy_(self._host_numbers[:, :rows], non_blocking=True)
        self._lengths[:rows].copy_(self._host_lengths[:rows], non_blocking=True)
        self._table[:rows, :widest].copy_(self._host_table[:rows, :widest], non_blocking=True)
        if self._copied:
            self._copied.record()
        if self.rope.kind:
            given = np.ones((rows, 1), dtype=np.int64)
            given[: len(pieces), 0] = [piece.lengths[0] for piece in pieces]
            factors = self.rope.factors(torch.from_numpy(given).to(self._numbers.device))
            if self._factors is None:
                self._factors = factors.new_empty(ROWS[-1], 1, factors.shape[-1])
            self._factors[:rows].copy_(factors)

    def _record(self, adapter: str | None, rows: int) -> "_Recording":
        places = Places(self._table[:rows], self._lengths[:rows], self.window, self._latent(adapter))
        # kernels are compiled, and workspaces made, outside of the recording
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(rows, places)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._forward(rows, places)
        self._pool = self._pool or graph.pool()
        return _Recording(graph, logits, places)

    def _forward(self, rows: int, places: Places) -> Tensor:
        """The step for so many rows: logits [rows, vocabulary] in float32."""
        numbers = self._numbers[:, :rows]
        mask = torch.ones(rows, 1, 1, 1, dtype=torch.bool, device=numbers.device)  # four dimensions: it is left alone
        masks = mask if self.form == "plain" else {"full_attention": mask, "sliding_attention": mask}
        factors = None if self._factors is None else self._factors[:rows]
        self.cache.view = View(numbers[2], self._table[:rows, :1], in_place=True)
        with torch.inference_mode(), self.rope.given(None, factors), reading(self.model, places):
            out = self.model(
                input_ids=numbers[0, :, None],
                position_ids=numbers[1, :, None],
                attention_mask=masks,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return out.logits[:, -1].float()

    def _latent(self, adapter: str | None) -> dict:
        """Matrices of latent attention that another recording of the same adapter has made."""
        for (name, _), recording in self._graphs.items():
            if name == adapter:
                return recording.places.latent
        return {}
