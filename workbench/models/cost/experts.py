"""What the packed experts of a layer need while they are computed (`models/quantized/experts.py`, step by step).

S = tokens · k rows of width H go through experts of width I. W_up and W_down are the unpacked matrices of all experts,
in 16 bits. All results are bytes.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertWork:
    """`rows` (S), `hidden` (H), `width` (I), `count` of experts, `rank` of adapters on them (0: none).
    `kept`: the matrices are unpacked already. `halves`: without adapters, W_up is unpacked one half after the other."""

    rows: int
    hidden: int
    width: int
    count: int
    rank: int = 0
    kept: bool = False
    halves: bool = False

    @property
    def _parts(self) -> tuple[int, int, int, int]:
        up = 0 if self.kept else (2 if self._in_halves else 4) * self.count * self.width * self.hidden
        down = 0 if self.kept else 2 * self.count * self.width * self.hidden
        return 2 * self.rows * self.hidden, 2 * self.rows * self.width, up, down

    @property
    def _in_halves(self) -> bool:
        return self.halves and not self.rank

    def forward(self) -> int:
        """The most that exists at once in the forward pass, its result included."""
        wide, narrow, up, down = self._parts
        low = 4 * self.rows * self.rank if self.rank else 0
        update_up, update_down = (2 * narrow, wide) if self.rank else (0, 0)
        return max(
            wide + 2 * narrow + max(up, update_up + low),  # rows, gate_up, its matrices
            3 * narrow + wide + max(down, update_down + low),  # gate_up, gated, result
        )

    def backward(self, gate_up_kept: bool) -> int:
        """The most that exists at once on the way back, beyond the gradient that comes in and what was kept.

        Args:
            gate_up_kept: the forward pass kept `gate_up`, so that it is not computed again.
        """
        wide, narrow, up, down = self._parts
        own = 0 if gate_up_kept else 2 * narrow  # gate_up, if it is made here
        fresh = 2 * narrow if gate_up_kept else 0  # its gradient takes its place if it was made here
        if self._in_halves:
            rows, first = (0, fresh) if gate_up_kept else (wide, narrow)
            return max(
                wide + narrow + down,
                rows + narrow + own + (0 if gate_up_kept else up),
                own + fresh + up + wide,  # the way back through the second half, then through the first
                first + up + 2 * wide,
            )
        if not self.rank:
            rows = 0 if gate_up_kept else wide
            return max(
                rows + wide + narrow + down,
                rows + narrow + own + (0 if gate_up_kept else up),
                narrow + own + fresh,
                own + fresh + up + wide,
                own + fresh + 2 * wide,
            )
        low = 8 * self.rows * self.rank
        factors = 4 * self.count * self.rank * (self.hidden + self.width)
        return max(
            wide + own + max(up, own),  # gate_up again, and its low-rank update
            2 * wide + own + 2 * narrow + max(down, narrow + low + factors),
            wide + own + fresh + narrow,
            2 * wide + own + fresh + max(up, wide + low + factors),
        )
