"""Run directories: the contract between the page and the trainer (docs/architecture.md has the table of files).

The trainer writes, everybody else reads.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from workbench.config.options import RunConfig
from workbench.config.run_config import to_yaml
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import hosts
from workbench.runs.files import remove_run_files
from workbench.runs.state import ProcessState, StateDirectory
from workbench.storage import files
from workbench.storage.files import write_atomically
from workbench.storage.locks import is_held, try_lock
from workbench.storage.workspace import Workspace, slug


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model's config and weights."""
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


@dataclass(frozen=True)
class Run(StateDirectory):
    """A run directory. `writes`: this process writes the run's files."""

    writes: ClassVar[bool] = True

    @property
    def metrics(self) -> Path:
        return self.path / "trainer_log.jsonl"

    @property
    def has_adapter(self) -> bool:
        return (self.path / "adapter_model.safetensors").is_file()

    @property
    def has_model(self) -> bool:
        """Whether it has trained a whole model, which is in its folder."""
        return is_model(self.path)

    def state(self) -> ProcessState:
        """As for other processes. A run that was asked to stop is `stopping` at once, long before its trainer gets to
        say so; while the trainer saves after its supervisor's death, the run is `stopping`, too, not `lost`."""
        state = super().state()
        if state.state == "lost" and state.pid and hosts.is_here(state.boot) and is_held(self.path / ".lock"):
            state.state, state.reason = "stopping", ""
        if state.state in ("starting", "running") and (self.path / ".stopping").exists():
            state.state = "stopping"
        return state

    def config_values(self) -> dict:
        """The run's options as launched; empty if `run.yaml` is missing or broken."""
        try:
            values = files.parse_yaml(files.read_text(self.path / "run.yaml", files.MAX_YAML))
        except (OSError, UserError):
            return {}
        return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first (see `is_whole`)."""
        whole = [p for p in self.path.glob("checkpoint-*") if p.name.split("-")[-1].isdigit() and is_whole(p)]
        return sorted(whole, key=step_of)

    def notes(self) -> dict[str, str]:
        """What people say of the run: `title`, `note`, `tags`, `group`, `parent`, the run that its config was
        cloned from, and `sweep`, the options that its sweep varies."""
        try:
            stored = files.read_object(self.path / "meta.json", files.MAX_YAML)
            return {k: v for k, v in stored.items() if isinstance(v, str)}
        except (OSError, UserError):
            return {}

    def problems(self) -> list[Message]:
        """Why `run.yaml` or `meta.json` cannot be read, a message each; nothing for files that are not there."""
        problems = []
        for name, read in (
            ("run.yaml", lambda path: files.parse_yaml(files.read_text(path, files.MAX_YAML))),
            ("meta.json", lambda path: files.read_object(path, files.MAX_YAML)),
        ):
            try:
                read(self.path / name)
            except OSError:
                continue
            except files.Unreadable as error:
                problems.append(Message("file_of_run", name=name, reason=error.reason))
        return problems

    def set_notes(self, **changes: str) -> None:
        """Change `title`, `note`, `tags`, `group`, `parent` or `sweep`."""
        write_atomically(self.path / "meta.json", json.dumps(self.notes() | changes, ensure_ascii=False, indent=1))

    def lock(self) -> int | None:
        """The lock that the run's processes hold while one of them lives (a descriptor), or None if it is held."""
        return try_lock(self.path / ".lock")

    def check_ended(self, code: str) -> None:
        """Raise UserError while a process of the run is there: `code` if on this host, else a sentence that names the
        other one."""
        lock, state = self.lock(), self.state()
        if lock is not None:
            os.close(lock)
        if state.pid and not hosts.is_here(state.boot) and (state.active or (lock is None and state.state == "lost")):
            raise UserError("run_going_on" if state.active else "lock_elsewhere", id=self.id, host=state.host)
        if lock is None or state.active:
            raise UserError(code, id=self.id)


@dataclass(frozen=True)
class FollowedRun(Run):
    """A run as the processes of a training see it that are not its first (rank 0): that one alone writes."""

    writes: ClassVar[bool] = False

    def update(self, **changes) -> ProcessState:
        return self.stored_state()

    def set_notes(self, **changes: str) -> None:
        pass


def group_name(text: str | None) -> str:
    """The name of a group of runs, from what a person wrote: one line of at most 80 letters."""
    return " ".join(str(text or "").split())[:80]


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.split("-")[-1])


def write_manifest(checkpoint: Path) -> None:
    """`files.json`: all files of a finished checkpoint and their sizes, on the disk before the checkpoint gets its
    name."""
    sizes = {}
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
        sizes[str(file.relative_to(checkpoint))] = file.stat().st_size
    write_atomically(checkpoint / "files.json", json.dumps(sizes, indent=1))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from: every file of its `files.json` is there in its size.

    One without that list (of another program) needs a state, written last, and weights.
    """
    try:
        sizes = files.read_object(checkpoint / "files.json")
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except FileNotFoundError:
        if (checkpoint / "files.json").exists():
            return False  # a file of the list is missing
        return (checkpoint / "trainer_state.json").is_file() and any(checkpoint.glob("*.safetensors"))
    except (OSError, ValueError, UserError):
        return False


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, links not followed."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def run_named(workspace: Workspace, name) -> Run | None:
    """The run with exactly this id, which may come from a browser: nothing but the name of a folder in `runs/`."""
    text = str(name or "")
    if not text or text.startswith(".") or "/" in text or os.sep in text or "\0" in text:
        return None
    run = Run(workspace.runs / text)
    return run if run.path.is_dir() else None


def delete_run(run: Run) -> None:
    """Delete a run with all its files; of an `output_dir`, only what the workbench wrote.

    Raises:
        UserError: it has not ended, or is no run.
    """
    if not ((run.path / "run.yaml").exists() or (run.path / "state.json").exists()):
        raise UserError("no_run_in", path=run.path)
    run.check_ended("run_not_ended")
    target = run.path.resolve()
    if run.path.is_symlink():
        run.path.unlink()
        remove_run_files(target)
        return
    gone = target.with_name(f".deleted-{target.name}-{time.time_ns()}")  # half a run is never seen
    os.rename(target, gone)
    shutil.rmtree(gone, ignore_errors=True)


def create_run(workspace: Workspace, config: RunConfig, *, confined: bool = False, **state) -> Run:
    """Make a run directory with `run.yaml` and `state.json` (`queued`, or as `state` says).

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
            output_dir = config.output_dir or ""
            target = workspace.output(output_dir) if confined else (workspace.root / output_dir).resolve()
            _check_neighbors(workspace, target)
            _prepare_output(target, config.overwrite_output_dir)
            for old in workspace.runs.iterdir():  # one folder is one run
                if old.is_symlink() and old.resolve() == target:
                    old.unlink()
            link = _claim(workspace.runs, f"{stamp}-{name}", target)
            path = link
        run = Run(path)
        # what the user set, defaults included, so that the file says what was launched and reruns elsewhere
        write_atomically(path / "run.yaml", to_yaml(config.model_dump(exclude_unset=True)))
        run.begin()
        run.update(**{"position": time.time()} | state)
    except OSError as error:
        raise UserError("run_not_written", reason=error.strerror) from None
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
    raise UserError("run_names", name=name)


def _check_neighbors(workspace: Workspace, target: Path) -> None:
    """Raise UserError if an output folder lies inside another run's, or around it: deleting one would delete the
    other."""
    for item in list_states(workspace):
        other_path = item.run.path.resolve()
        if other_path != target and (other_path.is_relative_to(target) or target.is_relative_to(other_path)):
            raise UserError("output_shared", path=target, id=item.run.id, other=other_path)


def _prepare_output(target: Path, overwrite: bool) -> None:
    existing = Run(target)
    if (target / "state.json").exists():
        if existing.state().active:
            raise UserError("output_going", path=target)
        if not overwrite:
            raise UserError("output_has_run", path=target)
        remove_run_files(target)
    elif target.exists() and (not target.is_dir() or any(target.iterdir())) and not overwrite:
        raise UserError("output_not_empty", path=target)
    target.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Listed:
    """A run in a list, its state, and what its files' names last changed at (every atomic write does that)."""

    run: Run
    state: ProcessState
    changed: int

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to the run by itself."""
        return not self.state.active and (self.state.ended is not None or not self.state.pid)


_listed: dict[str, Listed] = {}


def list_states(workspace: Workspace) -> list[Listed]:
    """All runs with their states, newest first. Of a run that has ended only one look at its folder is taken."""
    states = []
    try:
        with os.scandir(workspace.runs) as entries:
            for entry in entries:
                try:
                    if entry.name.startswith(".") or not entry.is_dir():
                        continue
                    changed = entry.stat().st_mtime_ns
                except OSError:  # deleted meanwhile
                    continue
                known = _listed.get(entry.path)
                if known is None or known.changed != changed or not known.settled:
                    run = Run(workspace.runs / entry.name)
                    known = Listed(run, run.state(), changed)
                    # what has just been written may be written again in the same tick of the file system's clock
                    if known.state.created and time.time_ns() - changed > 2e9:
                        _listed[entry.path] = known
                states.append(known)
    except FileNotFoundError:
        return []
    return sorted(states, key=lambda item: item.run.id, reverse=True)


def list_runs(workspace: Workspace) -> list[Run]:
    """All runs, newest first."""
    return [item.run for item in list_states(workspace)]


def find_run(workspace: Workspace, run_id: str) -> Run:
    """The run with this id, or whose id starts so.

    Raises:
        UserError: none or several match.
    """
    runs = list_runs(workspace)
    matches = [r for r in runs if r.id == run_id] or [r for r in runs if run_id and r.id.startswith(run_id)]
    if len(matches) == 1:
        return matches[0]
    names = [r.id for r in (matches or runs)[:5]] or Message("none_yet")
    raise UserError("run_several" if matches else "run_missing", id=run_id, folder=workspace.runs, names=names)


def active_runs(workspace: Workspace) -> list[Run]:
    """Runs that have not ended, newest first."""
    return [item.run for item in list_states(workspace) if item.state.active]
