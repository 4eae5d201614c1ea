"""Gradio without the stubs for editors that it writes as it is imported.

For each class of components Gradio parses its source and its `.pyi` file, and writes that into its own folder where it
differs: a second at each start of the page, and two pages that start together write the same files.
"""

import contextlib
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

_MODULE, _FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


class _Finder(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != _MODULE or (spec := PathFinder.find_spec(fullname, path)) is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_without(module):
            run(module)
            setattr(module, _FUNCTION, lambda *arguments: None)

        spec.loader.exec_module = run_without  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def no_stubs_written() -> Iterator[None]:
    """Around the first import of gradio."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
