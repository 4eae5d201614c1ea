"""bitsandbytes, without the compiler that it would load as it is imported.

Some of its operators for devices without kernels of its own are compiled by `torch.compile`, which loads all of
Inductor at once: 0.8 s and 40 MB in each process that loads a model, for operators that few of them call. Here they are
compiled when they are called first.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch


@contextlib.contextmanager
def compiled_when_called() -> Iterator[None]:
    """Within: `torch.compile` returns at once, and what it returns compiles when it is called first."""
    compile_now = torch.compile

    def later(function: Callable | None = None, **options):
        if function is None:
            return functools.partial(later, **options)
        compiled = functools.cache(lambda: compile_now(function, **options))

        @functools.wraps(function)
        def call(*arguments, **named):
            return compiled()(*arguments, **named)

        return call

    torch.compile = later
    try:
        yield
    finally:
        torch.compile = compile_now


with compiled_when_called():
    import bitsandbytes as bnb

__all__ = ["bnb", "compiled_when_called"]
