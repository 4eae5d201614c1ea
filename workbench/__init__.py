"""QLoRA Workbench: fine-tune a language model in 4 bits from the browser, and talk to the result."""

import contextlib
import gc
from collections.abc import Iterator

__version__ = "0.1.0"


@contextlib.contextmanager
def loading_libraries() -> Iterator[None]:
    """Around the imports with which a process starts. Modules stay, so that there is no garbage among them: without
    the collector, which would walk them again and again, torch, transformers and gradio load in less time. Later
    collections leave them out, too."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
