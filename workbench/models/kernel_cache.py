"""Where compiled kernels are kept between processes: in the workspace. No torch here: it is called before."""

import os

from workbench.storage.workspace import Workspace


def use_kernel_cache(workspace: Workspace) -> None:
    """Let Triton, and what compiles CUDA sources beside it, keep their results in the workspace, if
    `TRITON_CACHE_DIR` names no other folder."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(workspace.cache / "kernels"))
