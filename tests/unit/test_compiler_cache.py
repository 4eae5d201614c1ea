"""What one run leaves for the next: compiled code by version, and a step's need of memory."""

import os
import subprocess
import sys

import pytest

from workbench.models.cost.plan import worth_compiling
from workbench.storage.workspace import Workspace
from workbench.train.fast import compiler_cache
from workbench.train.fast.compiler_cache import Need, Needs, use_compiler_cache

NEED = Need(standing=1, step=2, stored=3, kept=4)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    workspace = Workspace(tmp_path / "w").create()
    use_compiler_cache(workspace)
    yield workspace.cache / "compiled"
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)


def test_other_code_has_another_folder(cache, tmp_path, monkeypatch):
    (folder,) = cache.iterdir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    package = tmp_path / "package"
    for name in ("models", "train/fast"):
        (package / name).mkdir(parents=True)
    (package / "models" / "a.py").write_text("new")
    monkeypatch.setattr(compiler_cache, "_PACKAGE", package)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_compiler_cache(Workspace(cache.parents[1]))
    assert len(list(cache.iterdir())) == 2
    long_ago = folder.stat().st_mtime - 20 * 24 * 3600
    os.utime(folder, (long_ago, long_ago))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_compiler_cache(Workspace(cache.parents[1]))
    assert folder not in list(cache.iterdir()) and len(list(cache.iterdir())) == 1


def test_folder_of_the_user_is_used(cache, tmp_path, monkeypatch):
    (folder,) = cache.iterdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    use_compiler_cache(Workspace(cache.parents[1]))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own" / folder.name)


def test_need_is_found_again(cache):
    assert Needs().get("a") is None
    Needs().put("a", NEED)
    Needs().put("b", Need(0, 0, 0, 0))
    assert Needs().get("a") == NEED and Needs().get("c") is None


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"step": 1}}', '{"a": {"step": "x"}}', "[" * 100_000])
def test_broken_file_is_nothing_known(cache, text):
    (folder,) = cache.iterdir()
    (folder / "needs.json").write_text(text)
    assert Needs().get("a") is None
    Needs().put("a", NEED)
    assert Needs().get("a") == NEED


def test_torch_is_not_imported_by_it():
    code = "import sys; import workbench.train.fast.compiler_cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_compiling_pays_for_long_runs_and_sooner_where_it_was_done_before():
    # 60 s at 36 us saved a token, by 27 layers of 2,048 (docs/performance.md): 1.8 million tokens
    pays = [worth_compiling(tokens, 27, 2048, again=False) for tokens in (1.7e6, 1.9e6)]
    assert pays == [False, True]
    pays = [worth_compiling(tokens, 27, 2048, again=True) for tokens in (0.2e6, 0.4e6)]
    assert pays == [False, True]
