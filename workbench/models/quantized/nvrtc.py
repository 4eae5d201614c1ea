"""CUDA sources compiled at run time by NVRTC, which PyTorch brings, and launched by the driver; compiled code is kept
beside Triton's (`TRITON_CACHE_DIR`)."""

import ctypes
import glob
import hashlib
import os
import tempfile
from pathlib import Path

import torch


class CudaModule:
    """The functions of a compiled source. Raises RuntimeError when it cannot be compiled, OSError without NVRTC."""

    def __init__(self, source: str, name: str):
        """`name`: for messages of the compiler."""
        torch.cuda.current_stream()  # the context of the thread
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
        self._functions: dict[str, ctypes.c_void_p] = {}
        code = _compiled(source, name)
        self._module = ctypes.c_void_p()
        self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), code))

    def launch(self, function: str, grid: tuple[int, int], threads: int, *arguments) -> None:
        """Launch on the current stream. Tensors are passed as addresses, int as int, float as double."""
        found = self._functions.get(function)
        if found is None:
            found = self._functions[function] = ctypes.c_void_p()
            self._check(self._driver.cuModuleGetFunction(ctypes.byref(found), self._module, function.encode()))
        values = [_as_c(one) for one in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = torch.cuda.current_stream().cuda_stream
        self._check(self._driver.cuLaunchKernel(found, *grid, 1, threads, 1, 1, 0, stream, pointers, None))

    def _check(self, result: int) -> None:
        if result:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(text))
            raise RuntimeError(f"CUDA: {(text.value or b'an unknown error').decode()}")


def _as_c(value):
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int(value)


def _compiled(source: str, name: str) -> bytes:
    """Machine code of the source for the GPU at hand."""
    major, minor = torch.cuda.get_device_capability()
    architecture = f"--gpu-architecture=sm_{major}{minor}"
    key = hashlib.sha256("|".join([source, architecture, str(torch.version.cuda)]).encode()).hexdigest()[:16]
    folder = os.environ.get("TRITON_CACHE_DIR")
    kept = Path(folder) / "nvrtc" / f"{key}.cubin" if folder else None
    if kept and kept.is_file() and kept.stat().st_uid == os.getuid():  # nothing is loaded that another user wrote
        return kept.read_bytes()
    code = _compile(source, name, architecture)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".part", delete=False) as file:
            file.write(code)
        Path(file.name).replace(kept)
    return code


def _compile(source: str, name: str, architecture: str) -> bytes:
    library = _library()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    try:
        options = (ctypes.c_char_p * 1)(architecture.encode())
        if library.nvrtcCompileProgram(program, 1, options):
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            text = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, text)
            raise RuntimeError(f"{name}: {' '.join(text.value.decode(errors='replace').split())[:500]}")
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _library() -> ctypes.CDLL:
    version = (torch.version.cuda or "").split(".")[0]
    site = Path(torch.__file__).parents[1]
    names = [f"libnvrtc.so.{version}"]
    for pattern in (
        f"{site}/nvidia/*/lib/libnvrtc.so.*",
        f"{site}/torch/lib/libnvrtc*.so*",
        "/usr/local/cuda/lib64/libnvrtc.so",
    ):
        names += sorted(glob.glob(pattern))
    for name in names:
        if "alt" in Path(name).name:
            continue
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("NVRTC, the compiler for CUDA sources that PyTorch brings, was not found")
