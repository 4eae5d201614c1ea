"""Packed (4-bit) weights as operators see them: found by a handle, unpacked when needed, forgotten at once.

A custom operator takes tensors, and a packed weight is more than one: bytes, scales, scales of the scales. So modules
with packed weights get a number, and operators take that. The number travels as a tensor on the CPU: for an int that
differs, torch.compile would make one graph per layer.

Where memory allows, a module's unpacked weights can be kept (`keep_unpacked`), which saves the time to unpack them.
"""

import functools
import importlib.util
import weakref

import torch

from workbench.models.quantized.bnb import bnb

_modules: "weakref.WeakValueDictionary[int, torch.nn.Module]" = weakref.WeakValueDictionary()


def is_packed(parameter) -> bool:
    return isinstance(parameter, bnb.nn.Params4bit)


def register(module: torch.nn.Module) -> None:
    """Give `module` its handle, `packed_handle`."""
    if getattr(module, "packed_handle", None) is None:
        number = len(_modules)
        while number in _modules:
            number += 1
        _modules[number] = module
        module.packed_handle = torch.tensor(number, dtype=torch.int64, device="cpu")
        module.kept_unpacked = {}


def module_of(handle: torch.Tensor) -> torch.nn.Module:
    return _modules[int(handle)]


def weights(module: torch.nn.Module, name: str, half: int | None = None) -> torch.Tensor:
    """The unpacked parameter `name` of a registered module, or one half of it: the kept one, or a fresh one."""
    kept = module.kept_unpacked.get(name)
    return unpacked(module._parameters[name], half) if kept is None else _half(kept, half)


def unpacked(parameter, half: int | None = None) -> torch.Tensor:
    """The weights of a packed parameter in the dtype they were quantized from (experts': `products_in`); another one as
    it is.

    Args:
        half: of matrices [E, 2N, M] only `[:, :N]` (0) or `[:, N:]` (1). On a GPU nothing else is unpacked.
    """
    if not is_packed(parameter):
        return _half(parameter.data, half)
    state = parameter.quant_state
    dtype = products_in(state.dtype, parameter.device.type) if len(state.shape) == 3 else state.dtype
    if on_gpu(parameter) and not (state.nested and state.state2.dtype is not torch.float32):
        from workbench.models.quantized import kernels

        return kernels.dequantize(parameter.data, state, dtype, half)
    return _half(bnb.functional.dequantize_4bit(parameter.data, state).to(dtype), half)


def _half(matrices: torch.Tensor, half: int | None) -> torch.Tensor:
    return matrices if half is None else matrices.chunk(2, dim=1)[half]


def products_in(dtype: torch.dtype, device: str) -> torch.dtype:
    """What grouped products of experts are computed in, for activations of this dtype.

    torch's grouped product has no fast kernel for float16: it loops over the experts, and waits for the GPU to know
    their rows. So where there is one for bfloat16 (compute capability 9 and up), that is used.
    """
    if dtype is torch.float16 and device == "cuda" and torch.cuda.get_device_capability() >= (9, 0):
        return torch.bfloat16
    return dtype


def keep_unpacked(module: torch.nn.Module) -> int:
    """Unpack a registered module's weights for good; returns the bytes that this takes."""
    for name, parameter in module._parameters.items():
        if parameter is not None and is_packed(parameter):
            module.kept_unpacked[name] = unpacked(parameter)
    return sum(kept.numel() * kept.element_size() for kept in module.kept_unpacked.values())


class Casts:
    """LoRA factors in the dtype that they are multiplied in, cast all at once instead of each where it is used.

    `refresh` once before every forward pass; `cast` then finds them as long as this object lives.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], dtype: torch.dtype):
        self._full = [p.detach() for p in parameters if p.dtype != dtype]
        self._low = [torch.empty_like(p, dtype=dtype) for p in self._full]

    def refresh(self) -> None:
        if self._full:
            torch._foreach_copy_(self._low, self._full)
            _casts.update(zip((p.data_ptr() for p in self._full), self._low, strict=True))


_casts: "weakref.WeakValueDictionary[int, torch.Tensor]" = weakref.WeakValueDictionary()


def cast(factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`factor.to(dtype)`, from `Casts` where it is there."""
    known = _casts.get(factor.data_ptr()) if factor.dtype != dtype else None
    if known is not None and known.dtype == dtype and known.shape == factor.shape:
        return known
    return factor.to(dtype)


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether to use the Triton kernels on this tensor; a compiler fuses plain torch itself."""
    return not torch.compiler.is_compiling() and tensor.device.type == "cuda" and triton_is_here()


@functools.cache
def triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability() >= (7, 5)
