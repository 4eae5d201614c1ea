"""Engine processes as the page sees them: start, watch through `state.json`, end. One model at a time.

Ending the process gives all its memory back for certain. An engine ends with the page: its standard input is a pipe
from the page's process, and when that closes, it exits.
"""

import secrets
import subprocess
import threading
import time
from pathlib import Path

from workbench.config.options import EngineConfig
from workbench.config.run_config import changed_values
from workbench.engine.external.program import find_program
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.locate import locate_adapter, locate_model
from workbench.models.memory import free_gib, loaded_gib
from workbench.models.reward import check_answers
from workbench.runs import job
from workbench.runs.run import active_runs
from workbench.runs.state import ProcessState, StateDirectory
from workbench.storage.workspace import Workspace
from workbench.train.placement import fits_from_host

SILENT_SECONDS = 10.0  # without an answer, after which an engine counts as silent
LISTEN_SECONDS = 1.0  # between two looks
_OTHERS_END_SECONDS = 20.0  # that another engine, with a process for each GPU, may take to end
SILENT = Message("engine_silent", seconds=SILENT_SECONDS)


class Engine:
    """The page's engine. All methods may be called from any thread."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.config: EngineConfig | None = None
        self._directory: StateDirectory | None = None
        self._process: subprocess.Popen | None = None
        self._key = ""
        self._adapters: set[str] = set()
        self._lock = threading.Lock()
        self._heard = time.monotonic()

    @property
    def model(self) -> str:
        """The base model's name in the API; empty when nothing is loaded."""
        return Path(self.config.model_name_or_path).name if self.config else ""

    @property
    def key(self) -> str:
        """What this engine wants as API key; new for each load."""
        return self._key

    def keeps(self, key: str) -> bool:
        """Whether the engine with this key is still the one that should answer: not unloaded, no other loaded."""
        return self._process is not None and self._key == key

    def state(self) -> ProcessState | None:
        """What the engine process says of itself, or None when none was started."""
        process = self._process
        if process is not None:
            process.poll()  # one that has ended does not stay as a zombie
        return self._directory.state() if self._directory else None

    @property
    def ready(self) -> bool:
        state = self.state()
        return bool(state and state.state == "running") and not self.silent

    @property
    def silent(self) -> bool:
        """Whether the process lives, but has not answered for `SILENT_SECONDS`."""
        return self._process is not None and time.monotonic() - self._heard > SILENT_SECONDS

    def _listen(self, process: subprocess.Popen, directory: StateDirectory) -> None:
        """Ask the engine again and again whether it is there, until it has ended."""
        import httpx

        with httpx.Client(timeout=SILENT_SECONDS) as client:
            while self._process is process and process.poll() is None:
                state = directory.state()
                try:
                    if state.state != "running":
                        self._heard = time.monotonic()
                    elif (answer := client.get(f"http://127.0.0.1:{state.port}/health")).status_code == 200:
                        self._heard = time.monotonic()
                        # another engine may have adapters that were not named here
                        if new := set(answer.json()["adapters"]) - self._adapters:
                            self._adapters = self._adapters | new
                except (httpx.HTTPError, ValueError, KeyError):
                    pass
                time.sleep(LISTEN_SECONDS)

    @property
    def url(self) -> str:
        """Base URL of the engine's API.

        Raises:
            UserError: no model is loaded.
        """
        state = self.state()
        if not state or state.state != "running":
            raise UserError("engine_not_loaded")
        if self.silent:
            raise UserError(SILENT)
        return f"http://127.0.0.1:{state.port}"

    def load(self, config: EngineConfig, adapter: str = "", engine_key: str = "") -> None:
        """Start a process that loads `config`; an engine that runs is ended first. Returns at once. `engine_key`: what
        the server at `engine_url` wants.

        Raises:
            UserError: the model, the adapter or the other engine does not exist, or there is no room beside a run that
                is going.
        """
        locate_model(config.model_name_or_path, self.workspace)
        if adapter:
            check_answers(locate_adapter(adapter, self.workspace))
        if config.engine_url is None:
            if config.external:
                find_program(config.engine)
            self.check_room(config)
        with self._lock:
            self._end()
            directory = job.new_directory(self.workspace.engines, Path(config.model_name_or_path).name)
            self._key = secrets.token_urlsafe(24)
            arguments = [config.model_name_or_path, "--port", "0", "--workspace", self.workspace.root]
            for name, value in changed_values(config).items():
                if name != "model_name_or_path":
                    arguments += ["--set", f"{name}={value}"]
            if adapter:
                arguments += ["--adapter", adapter]
            self._process = job.start(
                directory,
                "workbench",
                "serve",
                *arguments,
                "--state-dir",
                directory.path,
                "--exit-with-stdin",
                # this page's own WORKBENCH_ENGINE_KEY is not for an address that a user has given
                changes={"WORKBENCH_API_KEY": self._key, "WORKBENCH_ENGINE_KEY": engine_key},
                stdin=subprocess.PIPE,
            )
            # an engine that dies before its first word would otherwise look as if it were still starting
            directory.update(pid=self._process.pid)
            self.config, self._directory, self._adapters = config, directory, {adapter} if adapter else set()
            self._heard = time.monotonic()
            threading.Thread(target=self._listen, args=(self._process, directory), daemon=True).start()

    def check_room(self, config: EngineConfig) -> None:
        """Say before it is tried that a model will not fit, and above all that it would end a run beside it.

        What the model that is loaded now takes will be free by then. Another engine can split a model over GPUs, and
        knows best what it needs.
        """
        going = active_runs(self.workspace)
        if config.external and config.tensor_parallel_size > 1:
            return
        if self.config and self.config.external and self.config.engine_url is None and not going:
            return  # such an engine takes most of the memory, however small its model is, and gives it back
        free, on_gpu = free_gib(config.devices)
        if self.config and self.ready:
            free += self._size(self.config, on_gpu)
        need = self._size(config, on_gpu)
        if need <= free or (on_gpu and fits_from_host(config, self.workspace, free)):
            return
        if going:
            raise UserError("engine_too_large_beside", need=need, free=free, id=going[0].id)
        raise UserError("engine_too_large", need=need, free=free)

    def _size(self, config: EngineConfig, on_gpu: bool) -> float:
        """GiB that a model takes here, or 0 when its files are not here to tell."""
        if config.engine_url is not None:
            return 0.0
        return loaded_gib(
            Path(locate_model(config.model_name_or_path, self.workspace)), config.quantization_bit, on_gpu
        )

    def knows(self, adapter: str) -> bool:
        """Whether the engine has this adapter loaded."""
        return adapter in self._adapters

    def remember(self, adapter: str) -> None:
        self._adapters.add(adapter)

    def unload(self) -> None:
        """End the engine process; its memory is free when this returns."""
        with self._lock:
            self._end()
            self.config, self._directory = None, None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        job.end(process, _OTHERS_END_SECONDS if self.config and self.config.external else job.END_SECONDS)
        if process.stdin:
            process.stdin.close()
