"""Page-locked host memory of exact size, from which copies to a GPU run beside the computation.

torch's own pinned memory comes in powers of two, up to twice of what is asked for.
"""

import torch
from torch import Tensor

from workbench.errors import UserError


def locked(size: int) -> Tensor:
    """So many bytes, [size] uint8. `unlock` them before they are let go of.

    Raises:
        UserError: the system refuses it.
    """
    return lock(torch.empty(size, dtype=torch.uint8))


def lock(memory: Tensor) -> Tensor:
    """Page-lock memory that is there. Raises UserError where the system refuses it."""
    code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) if memory.numel() else 0
    if code:
        raise UserError("host_weights_not_locked", gib=memory.numel() / 2**30, code=code)
    return memory


def unlock(memory: list[Tensor]) -> None:
    """Undo `lock` for each of these."""
    for one in memory:
        torch.cuda.cudart().cudaHostUnregister(one.data_ptr())
