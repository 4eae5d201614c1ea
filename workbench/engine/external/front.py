"""From an `EngineConfig` to a backend on another engine: started here, or at `engine_url`."""

import os
import time
from collections.abc import Callable
from types import SimpleNamespace

from workbench.config.options import EngineConfig
from workbench.data.encode import set_template
from workbench.engine.external.backend import ExternalBackend
from workbench.engine.external.child import Child
from workbench.engine.external.program import TITLES
from workbench.engine.external.upstream import Upstream
from workbench.engine.sampling import sampling_defaults
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress
from workbench.models.ends import end_tokens
from workbench.models.load import generation_settings, load_tokenizer, model_source
from workbench.models.locate import check_folder, locate_adapter
from workbench.runs.state import StateDirectory
from workbench.storage.workspace import Workspace

_TOLD_SECONDS = 0.5  # between two lines of the engine that the page shows


class Front:
    """The other engine of a config: `start` it, then ask `backend`.

    `name`: the base model's name in the API. `stop` may be called at any time, from any thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        workspace: Workspace,
        name: str,
        adapters: dict[str, str],
        progress: Progress,
        log: Callable[[str], None],
        state: StateDirectory | None,
    ):
        """Raises UserError: an adapter does not exist."""
        self._config, self._workspace, self._name, self._log, self._state = config, workspace, name, log, state
        self._progress, self._told = progress, 0.0
        self._adapters = {one: locate_adapter(path, workspace) for one, path in adapters.items()}
        for folder in self._adapters.values():
            check_folder(folder)
        self._key = os.environ.pop("WORKBENCH_ENGINE_KEY", "")
        self._child: Child | None = None
        self.device = ""  # what the page shows as the place where the model is

    def start(self) -> ExternalBackend:
        """Call it on the main thread; waits until the engine answers.

        Raises:
            UserError: it is not installed, does not start, does not answer, or serves another model.
        """
        config = self._config
        tokenizer = load_tokenizer(config, self._workspace, self._progress)
        set_template(tokenizer, config.template, config.enable_thinking)
        settings = generation_settings(config, self._workspace, self._progress)
        ends = set(end_tokens(SimpleNamespace(generation_config=settings), tokenizer))
        title = TITLES.get(config.engine, "")
        if config.engine_url is None:
            if self._name in self._adapters:
                raise UserError("adapter_named_as_base", name=self._name)
            source = model_source(config, self._workspace, self._progress)
            self._child = Child(config, source, self._name, self._adapters, self._tell, self._log)
            upstream = Upstream(self._child.url, self._child.key, title)
            self._child.wait_ready(upstream, self._state.log if self._state else "–")
            gpus = config.tensor_parallel_size
            self.device = title if gpus == 1 else f"{title}, {gpus} GPUs"
        else:
            upstream = Upstream(config.engine_url, self._key, title or " / ".join(TITLES.values()))
            self.device = upstream.url
        defaults = sampling_defaults(settings)
        backend = ExternalBackend(upstream, config.engine, tokenizer, ends, defaults, self._workspace, self._name)
        if config.engine_url is not None:
            self.device = f"{upstream.title}, {upstream.url}"
            for name, folder in self._adapters.items():  # a child has them already
                self._progress(Message("phase_adapter", name=name), 0.0)
                backend.add_adapter(name, str(folder))
        return backend

    def watch(self, died: Callable[[Message | str], None]) -> None:
        """Call `died` with what is said of it, should the engine that was started here end by itself."""
        if self._child:
            self._child.watch(died)

    def stop(self) -> None:
        """End what was started here."""
        if self._child:
            self._child.end()

    def _tell(self, line: str, share: float) -> None:
        now = time.monotonic()
        if self._state and now - self._told > _TOLD_SECONDS:
            self._told = now
            phase = Message("phase_other_engine", engine=TITLES[self._config.engine], line=line)
            self._state.update(phase=phase, progress=share, heartbeat=time.time())
