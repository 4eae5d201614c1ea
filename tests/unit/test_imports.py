"""The plan of the packages: imports go downwards only, gradio stays in `ui/`, and what starts quickly does not load
torch."""

import ast
import gc
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import loading_libraries

ROOT = Path(__file__).parents[2]
ORDER = (
    ("messages",),
    ("errors",),
    ("storage",),
    ("config", "chat"),
    ("runs",),
    ("models", "uncertainty"),
    ("data",),
    ("train",),
    ("engine",),
    ("evaluation",),
    ("ui",),
    ("cli",),
)
LEVEL = {package: level for level, packages in enumerate(ORDER) for package in packages} | {"__main__": len(ORDER)}
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate"}
LIGHT = (
    "ui",
    "cli",
    "chat",
    "config",
    "storage",
    "runs",
    "uncertainty",
    "messages",
)  # page and command line, as far as they go
LIGHT_MODULES = (
    "workbench.train.supervise",
    "workbench.train.queue",
    "workbench.data.worker",
    "workbench.engine.process",
)
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "workbench").rglob("*.py")}


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Modules that a file imports, as `a.b` or, for `from a import b`, both `a` and `a.b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the whole module"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def upward(module: str, names: set[str]) -> list[str]:
    """Those of `names` that `module` may not import: of another package on its own level, or of one above."""
    own = module.split(".")[1]
    packages = {name.split(".")[1] for name in names if name.startswith("workbench.")} & set(LEVEL)
    return sorted(package for package in packages if package != own and LEVEL[package] >= LEVEL[own])


def test_every_package_imports_only_packages_below_it():
    assert {module.split(".")[1] for module in FILES} - {"__init__"} <= set(LEVEL), "a package without a place in ORDER"
    found = {module: upward(module, imports(path)) for module, path in FILES.items() if module != "workbench.__init__"}
    assert {module: names for module, names in found.items() if names} == {}
    assert upward("workbench.data.worker", {"workbench.train.queue", "workbench.errors"}) == ["train"]  # it can fail


def test_only_ui_imports_gradio():
    users = {m.split(".")[1] for m, path in FILES.items() if any(n.split(".")[0] == "gradio" for n in imports(path))}
    assert users == {"ui"}


def test_page_and_command_line_load_no_torch_when_imported():
    waiting = [m for m in FILES if m.split(".")[1] in LIGHT or m in LIGHT_MODULES]
    seen = set(waiting)
    while waiting:
        names = imports(FILES[waiting.pop()], top_only=True)
        assert not {name.split(".")[0] for name in names} & HEAVY, names
        more = {m for n in names for m in (n, f"{n}.__init__") if m in FILES} - seen
        seen |= more
        waiting.extend(more)


def test_a_tokenizer_is_loaded_without_torch():
    """As the data worker does, from which torch is kept away."""
    code = "from workbench.data.chat_template import without_torch; without_torch(); import workbench.models.load"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_libraries_load_without_the_collector_which_goes_on_afterwards():
    try:
        with loading_libraries():
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count() > 0
        with pytest.raises(ImportError), loading_libraries():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_what_distributions_there_are_is_read_when_somebody_looks():
    read = importlib.metadata.packages_distributions
    try:
        with loading_libraries():
            found = importlib.metadata.packages_distributions()
            assert found._found is None
    finally:
        gc.unfreeze()
    assert importlib.metadata.packages_distributions is read
    assert found["pytest"] == ["pytest"] and "no_such_package" not in found
    assert dict(found) == dict(read())
