"""The processes of one training from the inside: how they find each other, agree, take turns and add up gradients.

accelerate and transformers use the process group that `join` makes. Beside it there is one over gloo, for what
processes say to each other on the CPU: it does not wait for the GPU. Alone, a process does nothing of all that.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.train.launch import count, rank
from workbench.train.versions import versions

JOIN_SECONDS = float(os.environ.get("WORKBENCH_JOIN_SECONDS", 50))
# one may read data or save while the others wait; a process that dies is noticed by the supervisor
_PATIENCE = timedelta(hours=12)
_BUCKET = 8 << 20  # gradients that are added up in one call
_control: dist.ProcessGroup | None = None


def join(fail: Callable[[Message], None]) -> None:
    """Find the other processes and see that they can talk.

    Args:
        fail: writes down why this process ends; what hangs in a library cannot be interrupted, so the process does.

    Raises:
        UserError: they have different versions, or their GPUs do not reach each other.
    """
    global _control
    if count() == 1:
        return
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    with _within(JOIN_SECONDS, Message("ranks_not_joined", size=count(), seconds=JOIN_SECONDS, address=address), fail):
        try:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                count(),
                rank() == 0,
                timeout=timedelta(seconds=JOIN_SECONDS),
            )
            store.set_timeout(_PATIENCE)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=rank(), world_size=count(), timeout=_PATIENCE)
            _control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise UserError("ranks_not_joined", size=count(), seconds=JOIN_SECONDS, address=address) from error
    _check_versions()
    if torch.cuda.is_available():
        silent = Message("ranks_do_not_talk", reason=Message("no_answer", seconds=JOIN_SECONDS))
        with _within(JOIN_SECONDS, silent, fail):
            try:
                dist.all_reduce(torch.ones(1, device="cuda"))
                torch.cuda.synchronize()
            except (dist.DistError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError("ranks_do_not_talk", reason=reason) from error


def leave() -> None:
    """At the end: without it torch warns of a process group that was left open."""
    global _control
    if dist.is_initialized():
        dist.destroy_process_group()
        _control = None


@contextmanager
def _within(seconds: float, reason: Message, fail: Callable[[Message], None]) -> Iterator[None]:
    """End the process unless the body is through after so many seconds."""

    def end() -> None:
        fail(reason)
        os._exit(2)

    timer = threading.Timer(seconds + 5, end)  # what can end by itself does so before
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_versions() -> None:
    """Raise UserError where another process has other versions."""
    everybody = gathered(versions())
    for other, theirs in enumerate(everybody):
        for package, version in theirs.items():
            if version != (here := everybody[0][package]):
                raise UserError("ranks_versions", package=package, here=here, other=version, rank=other)


@contextmanager
def first_before_others() -> Iterator[None]:
    """The body runs in the first process, then in the others at once: they find what the first has kept."""
    if count() > 1 and rank() > 0:
        dist.barrier(group=_control)
    yield
    if count() > 1 and rank() == 0:
        dist.barrier(group=_control)


def agree(wish: bool) -> bool:
    """Whether any process wishes it; all of them must ask."""
    if count() == 1:
        return wish
    flag = torch.tensor(int(wish))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=_control)
    return bool(flag)


def gathered(value) -> list:
    """The values of all processes, in the order of their ranks; all of them must give one."""
    if count() == 1:
        return [value]
    values: list = [None] * count()
    dist.all_gather_object(values, value, group=_control)
    return values


def copy_from_first(parameters: Iterable[torch.nn.Parameter]) -> None:
    """What is trained starts alike everywhere."""
    if count() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)


def add_up_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """`.grad` becomes the sum over all processes. Where no process has one, it stays None."""
    if count() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    there = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
    dist.all_reduce(there, op=dist.ReduceOp.MAX, group=_control)
    gradients = []
    for parameter, somewhere in zip(trained, there.tolist(), strict=True):
        if somewhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if somewhere:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients of one dtype, up to `_BUCKET` values at once."""
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in sorted(gradients, key=lambda g: str(g.dtype)):  # sorting keeps the order within a dtype
        if bucket and (size + gradient.numel() > _BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
