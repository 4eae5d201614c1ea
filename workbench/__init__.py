"""QLoRA Workbench: fine-tune a language model in 4 bits from the browser, and talk to the result."""

import contextlib
import gc
from collections.abc import Iterator, Mapping

__version__ = "0.1.0"


class _Distributions(Mapping):
    """What `importlib.metadata.packages_distributions` returns, read when somebody looks into it."""

    def __init__(self, read):
        self._read, self._found = read, None

    def _all(self) -> Mapping[str, list[str]]:
        if self._found is None:
            self._found = self._read()
        return self._found

    def __getitem__(self, name: str) -> list[str]:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


@contextlib.contextmanager
def loading_libraries() -> Iterator[None]:
    """Around the imports with which a process starts. Modules stay, so that there is no garbage among them: without
    the collector, which would walk them again and again, torch, transformers and gradio load in less time. Later
    collections leave them out, too. TRL asks which files all installed packages have, a quarter of a second, and
    hardly ever looks at the answer."""
    import importlib.metadata

    read = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: _Distributions(read)
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
        importlib.metadata.packages_distributions = read
