"""The kernels of `kernels.c`, compiled on this machine for its processor and kept in the workspace."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from workbench.storage.workspace import Workspace

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")
_NEEDED = {"avx2", "fma", "f16c"}
_SECONDS = 120


class Linear(ctypes.Structure):
    """`Linear` of kernels.c; also the part of it in `Layer` and `Model`."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    ]


LINEARS = ("query", "key", "value", "out", "gate", "up", "down")


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("before", "after", "query_norm", "key_norm", "keys", "values")),
        ("window", ctypes.c_int64),
        *((name, Linear) for name in LINEARS),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("norm", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("count", "heads", "groups", "width", "hidden", "inner", "places", "page")
        ),
        *((name, ctypes.c_float) for name in ("eps", "head_eps", "scale")),
        ("head", Linear),
    ]


def processor() -> tuple[str, set[str]]:
    """The processor's name and what it can do, as Linux tells."""
    name, flags = platform.processor(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    except OSError:
        pass
    return name, flags


def load(workspace: Workspace, log: Callable[[str], None]) -> ctypes.CDLL | None:
    """The library, compiled where that was not done before (two seconds). None where it cannot be, with the reason in
    `log`."""
    name, flags = processor()
    if not flags >= _NEEDED:
        log("This processor has no AVX2: products with packed weights are PyTorch's.")
        return None
    compiler = shutil.which(os.environ.get("CC") or "gcc") or shutil.which("cc")
    if compiler is None:
        log("There is no C compiler (apt install gcc libc6-dev): products with packed weights are PyTorch's, slower.")
        return None
    key = [_SOURCE.read_text(), *_FLAGS, compiler, name, *sorted(flags)]
    target = workspace.cache / "cpu" / f"{hashlib.sha256('|'.join(key).encode()).hexdigest()[:16]}.so"
    try:
        if not (target.exists() and target.stat().st_uid == os.getuid()):  # nothing is loaded that another user wrote
            _compile(compiler, target)
        library = ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log(f"The kernels for the CPU could not be compiled, PyTorch's are used: {' '.join(said.split())[:300]}")
        return None
    pointer = ctypes.c_void_p
    library.product.argtypes = [ctypes.POINTER(Linear), pointer, pointer, ctypes.c_int64, ctypes.c_int]
    library.product.restype = None
    number = ctypes.c_int64
    library.step.argtypes = [ctypes.POINTER(Model), *[pointer] * 4, number, pointer, number, pointer, ctypes.c_int]
    return library


def _compile(compiler: str, target: Path) -> None:
    """Another process may do the same: the file is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".so.part", dir=target.parent)
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", name, "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)
