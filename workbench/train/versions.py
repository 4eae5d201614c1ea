"""What has to be the same in all processes that train together. Without torch, which is slow to import."""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import workbench

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes", "datasets")


def versions() -> dict[str, str]:
    """Of Python, packages (`-`: not installed), and the code of the workbench."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    folder, digest = Path(workbench.__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return found | {"workbench": f"{workbench.__version__} ({digest.hexdigest()[:8]})"}
