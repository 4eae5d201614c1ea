"""Where things live. One folder holds everything that the workbench writes.

    runs/           one folder per run              models/       converted, downloaded and merged models
    uploads/        datasets from the page          corrections/  what users corrected and voted, as datasets
    conversations/  conversations of the Chat tab   probes/       probe sets of the user's own, reports of base models
    engines/        state of loaded models          jobs/         state of exports, predictions, evaluations
    predictions/    answers of base models          tasks/        task files of lm-evaluation-harness
    cache/          tokenized datasets, 4-bit weights and compiled code (may be deleted when nothing is going)

Paths that come from the page are checked against this folder and those named at start.
"""

import contextlib
import copy
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message

CODE = Path(__file__).resolve().parents[2]  # holds the package: in a checkout the project, else site-packages
PROJECT = (
    CODE if (CODE / "presets" / "smollm2-demo.yaml").is_file() else CODE / "workbench" / "assets"
)  # presets/, data/
PRESETS = PROJECT / "presets"
DEMO_MODEL = "SmolLM2-135M-Instruct"
_DATA = ("dataset", "eval_dataset")


class NotFound(UserError):
    """A folder that does not exist."""


class Workspace:
    """The workspace folder and the other folders that the page may read."""

    def __init__(
        self,
        root: Path | str = "workspace",
        allowed: Sequence[Path | str] = (),
        read_only: bool = False,
        remote_code: bool = False,
        confined: bool = False,
    ):
        """`allowed`: folders beside it that may be read, and those of `WORKBENCH_ALLOW`, which a page hands on to what
        it starts. `remote_code`: code that comes with models may run. `confined`: what asks is a page's user, not who
        owns the machine."""
        self.read_only, self.remote_code, self.confined = read_only, remote_code, confined
        self.user = ""  # whose conversations and corrections these are; everybody's without a name
        allowed = [*allowed, *filter(None, os.environ.get("WORKBENCH_ALLOW", "").split(os.pathsep))]
        self.root = Path(root).expanduser().resolve()
        self.runs = self.root / "runs"
        self.models = self.root / "models"
        self.uploads = self.root / "uploads"
        self.presets = self.root / "presets"
        self.engines = self.root / "engines"
        self.corrections = self.root / "corrections"
        self.conversations = self.root / "conversations"
        self.cache = self.root / "cache"
        self.jobs = self.root / "jobs"
        self.incoming = self.uploads / ".incoming"  # what browsers send, before it is taken in
        self.allowed = [self.root, PROJECT / "data", *(Path(p).expanduser().resolve() for p in allowed)]

    def seen(self, *, confined: bool) -> "Workspace":
        """This workspace for a page's user (`confined`), or for who owns the machine."""
        other = copy.copy(self)
        other.confined = confined
        return other

    def of_user(self, name: str) -> "Workspace":
        """This workspace for a user who logs in: with conversations and corrections of the user's own."""
        other = copy.copy(self)
        other.user, other.conversations = name, self.conversations / name
        return other

    def create(self) -> "Workspace":
        """Make the folders. Raises UserError where the place is not writable."""
        try:
            for folder in self.own_folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError("workspace_not_created", folder=self.root, reason=error.strerror) from None
        return self

    @property
    def fingerprint(self) -> str:
        """A short name that tells this workspace from others without telling where it lies."""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:12]

    @property
    def own_folders(self) -> tuple[Path, ...]:
        return (
            self.runs,
            self.models,
            self.uploads,
            self.engines,
            self.corrections,
            self.conversations,
            self.cache,
            self.jobs,
        )

    @property
    def dataset_folders(self) -> tuple[Path, ...]:
        """Folders of the workspace whose datasets every run can use, beside those of its `dataset_dir`."""
        return self.corrections, self.uploads

    def check_writable(self) -> None:
        """Raise UserError where runs may only be looked at."""
        if self.read_only:
            raise UserError("page_read_only")

    def may_read(self, path: Path) -> bool:
        """Whether a path lies in an allowed folder, whatever links say."""
        return any(path.resolve().is_relative_to(folder) for folder in self.allowed)

    def inside(self, path: Path | str, *, what: str = "path") -> Path:
        """`path` resolved (relative ones lie in the workspace), if it is inside an allowed folder.

        Raises:
            UserError: it is outside, also by way of `..` or a link; or neither a file nor a folder.
        """
        resolved = resolve(self.root / expanded(path, what), what)
        if resolved.is_relative_to(self.incoming):
            raise UserError("path_incoming", what=what, path=path)
        talks = self.root / "conversations"  # are nobody else's data, neither by name nor in a folder around them
        if self.confined and (resolved.is_relative_to(talks) or (what in _DATA and talks.is_relative_to(resolved))):
            raise UserError("path_conversations", what=what, path=path)
        if any(resolved.is_relative_to(folder) for folder in self.allowed):
            try:
                mode = resolved.stat().st_mode
            except OSError:  # not there (yet): who reads it says so
                return resolved
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError("path_device", what=what, path=path)
            return resolved
        raise UserError("path_outside", what=what, path=path, root=self.root, parent=Path(path).parent)

    def output(self, path: str) -> Path:
        """Where a run from the page may write: inside the workspace, beside its own folders.

        Raises:
            UserError: elsewhere, also by way of `..` or a link.
        """
        resolved = resolve(self.root / expanded(path, "output_dir"), "output_dir")
        if not resolved.is_relative_to(self.root):
            raise UserError("output_outside", path=path, root=self.root, name=resolved.name)
        if resolved == self.root or any(resolved.is_relative_to(folder) for folder in self.own_folders):
            raise UserError("output_reserved", path=path, name=resolved.name)
        return resolved

    def check_code(self, trusted) -> None:
        """Raise UserError where code that comes with a model is trusted by a user, but not by the server."""
        if trusted and not self.remote_code:
            raise UserError("remote_code_off")

    def confine(self, config) -> None:
        """Check every path in a config that comes from the page.

        Raises:
            UserError: a model, adapter, dataset, dataset folder, output or checkpoint outside the allowed folders; or
                code that comes with a model, which this server was not told to run.
        """
        self.check_code(getattr(config, "trust_remote_code", False) or getattr(config, "trust_reward_code", False))
        fields = type(config).model_fields
        for name in (name for name, field in fields.items() if "path" in field.json_schema_extra["affects"]):
            value = getattr(config, name, None)
            if not value or (name == "resume_from_checkpoint" and value.lower() in ("true", "false")):
                continue
            several = value.split(",") if name == "adapter_name_or_path" else []
            for part in dict.fromkeys([value, *(part.strip() for part in several if part.strip())]):
                path = expanded(part, name)
                if path.is_absolute() or ".." in path.parts or (name != "dataset_dir" and path.is_dir()):
                    self.inside(path if path.is_absolute() else Path.cwd() / path, what=name)
            if name == "dataset_dir" and not path.is_absolute() and ".." not in path.parts:
                with contextlib.suppress(NotFound):
                    self.inside(dataset_folder(value, self), what=name)
        kept = getattr(config, "tokenized_path", None)  # read where it is there, else written
        if kept and not self.inside(kept, what="tokenized_path").exists():
            self.output(kept)
        if tokens := getattr(config, "new_special_tokens_config", None):  # a file, also one that is named from here
            self.inside(Path.cwd() / expanded(tokens, "new_special_tokens_config"), what="new_special_tokens_config")
        for name in ("dataset", "eval_dataset"):
            # a data file may be named instead of a dataset
            for value in (getattr(config, name, None) or "").split(","):
                path = expanded(value.strip(), name)
                if path.is_absolute() or ".." in path.parts or (("/" in value or path.suffix) and path.exists()):
                    self.inside(path if path.is_absolute() else Path.cwd() / path, what=name)

    def model_folders(self) -> list[str]:
        """Names of the models in the workspace."""
        return sorted(p.name for p in self.models.glob("*") if (p / "config.json").is_file())


def expanded(path: Path | str, what: str = "path") -> Path:
    """A path with `~` replaced. Raises UserError: it cannot be one (no such user, a NUL, too long)."""
    try:
        path_expanded = Path(path).expanduser()
        path_expanded.exists()
        if "\0" in str(path):
            raise UserError("path_impossible", what=what, path=str(path)[:100], reason=Message("holds_nul"))
        return path_expanded
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError("path_impossible", what=what, path=str(path)[:100], reason=reason) from None


def resolve(path: Path, what: str = "path") -> Path:
    """An absolute path without `..` and links. Raises UserError: it cannot be one (a NUL, a circle of links)."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError("path_unresolved", what=what, reason=error) from None


def slug(text: str) -> str:
    """`text` as a short, safe part of a folder name."""
    return re.sub(r"[^A-Za-z0-9.\u4e00-\u9fff]+", "-", text).strip("-.").lower()[:48] or "run"


def dataset_folder(dataset_dir: str, workspace: Workspace | None = None) -> Path:
    """Where `dataset_dir` points: an absolute path, a folder here, in the workspace, or the bundled one."""
    given = expanded(dataset_dir, "dataset_dir")
    guard = workspace if workspace is not None and workspace.confined else None
    if guard and (given.is_absolute() or ".." in given.parts):  # before it is looked whether it exists
        guard.inside(given, what="dataset_dir")
    candidates = [given] if given.is_absolute() else [Path.cwd() / given, PROJECT / given]
    if workspace and not given.is_absolute():
        candidates.insert(0, workspace.root / given)
    for folder in candidates:
        if folder.is_dir():
            return guard.inside(folder, what="dataset_dir") if guard else folder.resolve()
    raise NotFound("dataset_folder_missing", folder=dataset_dir)
