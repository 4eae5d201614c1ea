"""Training steps as CUDA graphs: recorded once for a shape of the batch, then replayed without Python.

A step of a large model launches thousands of kernels. With short batches the GPU would wait for Python most of the
time. Recorded is a forward and a backward pass, which add to fixed gradient buffers; clipping and the optimizer stay
outside. Batches are padded to a few lengths, so that a few recordings serve all.
"""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 24  # recorded shapes
_AT_ONCE = 256 << 20  # bytes of gradients up to which they are added to their buffers all at once
_AFTER = 3


def padded_length(length: int) -> int:
    """The next length that batches are padded to: at most an eighth more, and a multiple of 16."""
    step = max(16, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


def _key(inputs: dict[str, Tensor]) -> tuple:
    return tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items()))


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was missing here or in what this error came from: ending a broken recording fails in its turn."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    loss: Tensor


class StepGraphs:
    """Runs `step(inputs) -> loss`, which goes forward and backward, and replays it where it can.

    The gradients of `parameters` live in buffers that stay. A shape that cannot be recorded is run as it is, and
    `problem` then says why; `out_of_memory` if that is why.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], step: Callable[[dict[str, Tensor]], Tensor], after: int = _AFTER
    ):
        self.enabled = True
        self.after = after  # times that a shape is run before it is recorded
        self.problem = ""
        self.out_of_memory = False
        self._step = step
        self._gradients = [(p, torch.zeros_like(p)) for p in parameters]
        self._at_once = sum(p.numel() * p.element_size() for p in parameters) <= _AT_ONCE
        self._seen: Counter = Counter()
        self._recordings: dict[tuple, _Recording] = {}
        self._pool = None

    def forget(self) -> None:
        """Drop all recordings, and their memory: something that they contain has changed."""
        self._recordings.clear()
        self._seen.clear()
        self._pool = None
        self.problem, self.out_of_memory = "", False
        gc.collect()
        torch.cuda.empty_cache()

    def record(self, inputs: dict[str, Tensor]) -> None:
        """Record the shape of these inputs without running it, if it can be."""
        self._attach_gradients()
        if self.enabled:
            self._record(_key(inputs), inputs)

    def clear_gradients(self) -> None:
        """Set all gradients to 0."""
        torch._foreach_zero_([buffer for _, buffer in self._gradients])

    def run(self, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of one step, detached; gradients are added to `.grad`."""
        self._attach_gradients()
        key = _key(inputs)
        recording = self._recordings.get(key)
        if recording is None:
            self._seen[key] += 1
            if not self.enabled or self._seen[key] <= self.after or len(self._recordings) >= LIMIT:
                return self._run(inputs)
            recording = self._record(key, inputs)
            if recording is None:
                return self._run(inputs)
        for name, value in inputs.items():
            recording.inputs[name].copy_(value, non_blocking=True)
        recording.graph.replay()
        return recording.loss.clone()

    def _attach_gradients(self) -> None:
        fresh = [buffer for parameter, buffer in self._gradients if parameter.grad is None]
        if fresh:
            torch._foreach_zero_(fresh)
            for parameter, buffer in self._gradients:
                parameter.grad = buffer

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        """One step from Python. Hundreds of small gradients are added to their buffers in a few kernels, not one by
        one."""
        if not self._at_once:
            return self._step(inputs)
        for parameter, _ in self._gradients:
            parameter.grad = None
        loss = self._step(inputs)
        pairs = [(buffer, parameter.grad) for parameter, buffer in self._gradients if parameter.grad is not None]
        if pairs:
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
        for parameter, buffer in self._gradients:
            parameter.grad = buffer
        return loss

    def _record(self, key: tuple, inputs: dict[str, Tensor]) -> _Recording | None:
        own = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()  # what the steps before it used must be there for the recording
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self._run(own)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self.enabled = False
            self.problem = " ".join(str(error).split())[:300]
            self.out_of_memory = _is_out_of_memory(error)
            del graph
            gc.collect()
            torch.cuda.empty_cache()
            return None
        self._recordings[key] = _Recording(graph, own, loss)
        return self._recordings[key]
