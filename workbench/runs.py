"""Run directories: the contract between the page and the trainer (docs/architecture.md has the table of files).

The trainer writes, everybody else reads.
"""

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from workbench.config import to_yaml, write_atomically
from workbench.errors import UserError
from workbench.options import RunConfig
from workbench.state import StateDirectory
from workbench.workspace import Workspace, slug


@dataclass(frozen=True)
class Run(StateDirectory):
    """A run directory."""

    @property
    def metrics(self) -> Path:
        return self.path / "trainer_log.jsonl"

    @property
    def has_adapter(self) -> bool:
        return (self.path / "adapter_model.safetensors").is_file()

    def config_values(self) -> dict:
        """The run's options as launched; empty if `run.yaml` is missing or broken."""
        try:
            values = yaml.safe_load((self.path / "run.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return values if isinstance(values, dict) else {}

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first. `trainer_state.json` is written last, so its presence means whole."""
        found = [p for p in self.path.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
        whole = [p for p in found if (p / "trainer_state.json").is_file() and any(p.glob("*.safetensors"))]
        return sorted(whole, key=lambda p: int(p.name.split("-")[-1]))


def create_run(workspace: Workspace, config: RunConfig, *, confined: bool = False) -> Run:
    """Make a run directory with `run.yaml` and `state.json` (`queued`).

    `confined` holds `output_dir` inside the allowed folders, for configs that come from the page. A given
    `output_dir` becomes the run directory itself, with a link to it in `runs/`.

    Raises:
        UserError: the output folder holds a run already, or lies outside, or cannot be written.
    """
    workspace.create()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = slug(config.run_name or Path(config.model_name_or_path or "run").name)
    try:
        path = _claim(workspace.runs, f"{stamp}-{name}") if not config.output_dir else None
        if path is None:
            target = workspace.output(config.output_dir) if confined else (workspace.root / config.output_dir).resolve()
            _prepare_output(target, config.overwrite_output_dir)
            link = _claim(workspace.runs, f"{stamp}-{name}", target)
            path = link
        run = Run(path)
        # what the user set, defaults included, so that the file says what was launched and reruns elsewhere
        write_atomically(path / "run.yaml", to_yaml(config.model_dump(exclude_unset=True)))
        run.begin()
    except OSError as error:
        raise UserError(
            f"The run directory cannot be written: {error.strerror}. Check the disk, or choose another --workspace."
        ) from None
    return run


def _claim(folder: Path, name: str, link_to: Path | None = None) -> Path:
    """A new entry in `folder`, unique even when two runs start in the same second (mkdir and symlink are atomic)."""
    for number in range(1, 1000):
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            if link_to:
                path.symlink_to(link_to, target_is_directory=True)
            else:
                path.mkdir()
            return path
        except FileExistsError:
            continue
    raise UserError(f"There are too many runs named {name}. Choose another run_name.")


def _prepare_output(target: Path, overwrite: bool) -> None:
    existing = Run(target)
    if (target / "state.json").exists():
        if existing.state().active:
            raise UserError(f"The run in {target} is still going. Stop it first, or choose another output_dir.")
        if not overwrite:
            raise UserError(
                f"output_dir {target} already holds a run. Choose another, or set overwrite_output_dir: true."
            )
        for name in (
            "state.json",
            "trainer_log.jsonl",
            "running_log.txt",
            "training_loss.png",
            "all_results.json",
        ):
            (target / name).unlink(missing_ok=True)
        for checkpoint in target.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
    elif target.exists() and (not target.is_dir() or any(target.iterdir())) and not overwrite:
        raise UserError(
            f"output_dir {target} exists and is not empty. Choose another, or set overwrite_output_dir: true."
        )
    target.mkdir(parents=True, exist_ok=True)


def list_runs(workspace: Workspace) -> list[Run]:
    """All runs, newest first."""
    try:
        entries = [p for p in workspace.runs.iterdir() if p.is_dir()]
    except FileNotFoundError:
        return []
    return [Run(p) for p in sorted(entries, key=lambda p: p.name, reverse=True)]


def find_run(workspace: Workspace, run_id: str) -> Run:
    """The run with this id, or whose id starts so.

    Raises:
        UserError: none or several match.
    """
    runs = list_runs(workspace)
    matches = [r for r in runs if r.id == run_id] or [r for r in runs if run_id and r.id.startswith(run_id)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(r.id for r in (matches or runs)[:5]) or "none yet"
    problem = "Several runs match" if matches else "There is no run"
    raise UserError(f"{problem} '{run_id}'. Runs in {workspace.runs}: {names}.")
