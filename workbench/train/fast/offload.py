"""What a layer stores for the backward pass, kept in the host's memory meanwhile (as in Unsloth's checkpointing).

A layer that is computed again stores little (its input, its attention's output), and there is time to copy it out and
in again while the GPU computes. Copies run on a stream of their own. Host buffers are pinned and used again in every
step, so that the copies can be part of a CUDA graph.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.models.pinned import locked, unlock

SMALLEST = 4 << 20  # bytes; smaller tensors stay on the GPU
_IN_FLIGHT = 3  # layers that may wait for their copies before the computation waits for them
_AHEAD = 1  # layers whose tensors are fetched before they are asked for


@dataclass
class _Stored:
    number: int
    layer: int
    host: Tensor
    gpu: Tensor | None  # until the copy is done, and again when it has been fetched
    copied: torch.cuda.Event


class Offload:
    """Context in which a layer is run forward: big tensors that it stores go to the host.

    `begin` starts a training step. With `active` False nothing is moved. `stored_bytes` is what the last step stored
    in the contexts, moved or not; parameters do not count. `exact`: buffers have no more bytes than they need, which
    takes longer to make.
    """

    def __init__(self, device: torch.device, parameters, active: bool = True, exact: bool = False):
        self.active, self._exact = active, exact
        self._locked: list[Tensor] = []
        if exact:
            weakref.finalize(self, unlock, self._locked).atexit = False
        self.stored_bytes = 0
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._parameters = {p.untyped_storage().data_ptr() for p in parameters}
        self._buffers: list[Tensor] = []
        self._replaced: list[Tensor] = []  # captured graphs may still copy to these
        self._stored: list[_Stored] = []
        self._layer = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def begin(self) -> None:
        self._stored = []
        self._layer = 0
        self.stored_bytes = 0

    def __enter__(self):
        self._layer += 1
        self._hooks.__enter__()

    def __exit__(self, *error):
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor):
        size = tensor.numel() * tensor.element_size()
        if size < SMALLEST or tensor.device != self._device or tensor.untyped_storage().data_ptr() in self._parameters:
            return tensor
        self.stored_bytes += size
        if not self.active or not _dense(tensor):
            return tensor
        self._drop(self._layer - _IN_FLIGHT)
        number = len(self._stored)
        host = self._buffer(number, size).view(tensor.dtype).as_strided(tensor.size(), tensor.stride())
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            copied = self._stream.record_event()
        self._stored.append(_Stored(number, self._layer, host, tensor, copied))
        return self._stored[-1]

    def _drop(self, layer: int) -> None:
        """Let go of tensors on the GPU whose copy is done: all of the layers up to this one."""
        for stored in self._stored:
            if stored.layer > layer:
                return
            if stored.gpu is not None:
                torch.cuda.current_stream(self._device).wait_event(stored.copied)
                stored.gpu = None

    def _unpack(self, stored):
        if isinstance(stored, Tensor):
            return stored
        for other in reversed(self._stored[: stored.number + 1]):
            if other.layer < stored.layer - _AHEAD:
                break
            self._fetch(other)
        torch.cuda.current_stream(self._device).wait_event(stored.copied)
        tensor, stored.gpu = stored.gpu, None
        stored.host = None  # fetched once
        return tensor

    def _fetch(self, stored: _Stored) -> None:
        if stored.gpu is not None or stored.host is None:
            return
        host = stored.host
        # allocated on the computing stream, whose work on that memory the copy waits for
        stored.gpu = torch.empty_strided(host.size(), host.stride(), dtype=host.dtype, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            stored.gpu.copy_(host, non_blocking=True)
            stored.copied = self._stream.record_event()

    def _buffer(self, number: int, size: int) -> Tensor:
        if number < len(self._buffers) and self._buffers[number].numel() >= size:
            return self._buffers[number][:size]
        if self._exact:
            fresh = locked(size)
            self._locked.append(fresh)
        else:
            fresh = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        if number < len(self._buffers):
            self._replaced.append(self._buffers[number])
            self._buffers[number] = fresh
        else:
            self._buffers.append(fresh)
        return fresh


def _dense(tensor: Tensor) -> bool:
    """Whether the tensor fills a stretch of memory of its own size, in some order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.size(), strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
