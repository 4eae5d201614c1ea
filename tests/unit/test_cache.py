"""What the workspace's cache takes of the disk, and clearing it."""

import json

import pytest
from typer.testing import CliRunner

from workbench.cli.main import app
from workbench.runs.state import own_process
from workbench.storage import cache
from workbench.storage.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "w").create()
    for name, size in {"quantized/model-1/a": 3000, "quantized/model-2/b": 500, "tokens/c": 20}.items():
        file = workspace.cache / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 10_000)
    (workspace.cache / "tokens" / "link").symlink_to(outside)
    (workspace.cache / "linked").symlink_to(tmp_path)
    return workspace


def _said(workspace, *arguments):
    result = CliRunner().invoke(app, ["cache", "--workspace", str(workspace.root), *arguments])
    return result.exit_code, result.output, result.exception


def test_parts_and_their_sizes(workspace):
    first, second = cache.parts(workspace)
    assert (first.name, first.bytes, first.count) == ("quantized", 3500, 2)
    # a link counts as itself, and not what it leads to
    assert second.name == "tokens" and 20 < second.bytes < 10_000 and second.count == 2


def test_command_lists_and_clears(workspace, tmp_path):
    code, said, _ = _said(workspace, "--json")
    assert code == 0 and [part["name"] for part in json.loads(said)] == ["quantized", "tokens"]
    code, said, _ = _said(workspace, "--clear", "quantized")
    assert code == 0 and "quantized" in said and not (workspace.cache / "quantized").exists()
    assert _said(workspace, "--clear", "all")[0] == 0
    assert not cache.parts(workspace) and (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["nothing", "..", "../runs", "linked", ""])
def test_only_parts_are_cleared(workspace, name):
    _, _, error = _said(workspace, "--clear", name)
    assert error.message.code == "cache_part" and workspace.runs.exists() and len(cache.parts(workspace)) == 2


def test_not_while_a_run_goes_on(workspace):
    folder = workspace.runs / "20260101-000000-a"
    folder.mkdir()
    (folder / "run.yaml").write_text("model_name_or_path: x\n")
    (folder / "state.json").write_text(json.dumps({"state": "running", **own_process()}))
    assert _said(workspace, "--clear", "tokens")[2].message.code == "cache_in_use"
    assert (workspace.cache / "tokens").exists()
