"""Kernels of ours are launched on the GPU where their tensors are. torch's own find that themselves; Triton and the
driver launch on the thread's current GPU, which is another one where a model is split over several (`device_map:
auto`)."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable)


def on_its_gpu(function: _Function) -> _Function:
    """`function` with the GPU of its first argument as the current one."""

    @functools.wraps(function)
    def launched(first: torch.Tensor, *args, **kwargs):
        if not first.is_cuda or first.get_device() == torch.cuda.current_device():
            return function(first, *args, **kwargs)
        with torch.cuda.device(first.device):
            return function(first, *args, **kwargs)

    return launched  # type: ignore[return-value]
