"""The project as a package: one list of dependencies, one version, data that is found, files that parse."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from workbench import __version__
from workbench.storage.workspace import PRESETS, PROJECT

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(file: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


def test_the_package_has_the_pins_of_requirements_txt():
    assert PYPROJECT["project"]["dependencies"] == pins("requirements.txt")
    assert PYPROJECT["project"]["optional-dependencies"]["dev"] == pins("requirements-dev.txt")


def test_one_version():
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "workbench/__init__.py"
    done = subprocess.run([sys.executable, "-m", "workbench", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == __version__


def test_what_the_wheel_takes_along_is_where_the_code_looks_for_it():
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"presets": "workbench/assets/presets", "data": "workbench/assets/data"}
    assert PRESETS.parent == PROJECT == ROOT
    assert (PROJECT / "data" / "dataset_info.json").is_file()


def test_container_and_workflow_files_parse():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"workbench", "cuda"}
    assert "WORKBENCH_AUTH" in services["workbench"]["environment"]  # the page in a container has a login
    assert "bash .ci/run" in str(yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text()))
    copied = {line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")}
    assert all((ROOT / name).exists() for name in copied)


def test_files_that_the_docs_name_are_there():
    files = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if ".venv" not in p.parts]
    named = {}
    for doc in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`([a-z_/0-9]+\.py)`", doc.read_text(encoding="utf-8")):
            named.setdefault(name, doc.name)
    assert len(named) > 30
    assert {
        name: doc for name, doc in named.items() if not any(f"/{file}".endswith(f"/{name}") for file in files)
    } == {}
