"""Load a model and serve it: what `python -m workbench serve` runs."""

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from workbench import loading_libraries
from workbench.config.options import EngineConfig
from workbench.engine.backend import Backend
from workbench.engine.door import Door
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.kernel_cache import use_kernel_cache
from workbench.runs.state import StateDirectory, own_process
from workbench.storage.workspace import Workspace


def serve(
    config: EngineConfig,
    workspace: Workspace,
    *,
    host: str,
    port: int,
    api_key: str,
    adapters: dict[str, str],
    cors: list[str] | None = None,
    state: StateDirectory | None = None,
    exit_with_stdin: bool = False,
) -> None:
    """Load, then serve until SIGTERM. `adapters` maps names to run ids or folders. Port 0 takes a free one.

    With `state`, progress, port and failures are written there for the page. With `exit_with_stdin` the process
    ends when its standard input closes, that is, when the process that started it is gone.

    Raises:
        UserError: the port is in use, or the model or an adapter cannot be loaded.
    """
    if not config.external:
        set_environment(config)
        use_kernel_cache(workspace)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    listener = _listen(host, port)
    closing: list[Callable[[], None]] = []  # what to end before this process ends
    if exit_with_stdin:
        threading.Thread(target=_exit_at_end_of_input, args=(closing,), daemon=True).start()
    if state:
        state.update(state="starting", started=time.time(), port=listener.getsockname()[1], **own_process())

    with loading_libraries():
        import transformers
        import uvicorn

        from workbench.engine.quiet_end import end_quietly
        from workbench.engine.server import build_app
        from workbench.train.metrics_log import log, progress_writer

    warnings.filterwarnings("ignore", category=FutureWarning)  # deprecations inside transformers
    transformers.utils.logging.disable_progress_bar()
    progress = progress_writer(state) if state else (lambda phase, share: None)
    progress(Message("phase_starting"), 0.0)

    said: list[str] = []  # what the page says, too

    def warn(line: str) -> None:
        said.append(line)
        if state:
            state.update(warning=said[0] if len(said) == 1 else "\n".join(said))

    def tell(line: str) -> None:
        log(line)
        if "RoPE scaling" in line:  # what the context becomes
            warn(line)

    load = _another_engine if config.external else _own_engine
    backend, device = load(config, workspace, adapters, progress, tell, state, closing)
    if reason := backend.capabilities.not_batched:
        warn(Message("takes_turns", reason=reason))
    if reason := getattr(backend, "not_recorded", ""):
        warn(Message("not_recorded", reason=reason))
    name = base_name(config)
    if state:
        state.update(state="running", phase="", progress=1.0, device=device)
    log(f"{name} is ready on {device}: http://{host}:{listener.getsockname()[1]}/v1")
    # a key protects as well, and clients in containers have other names for this machine
    door = None if api_key else Door(() if host in ("0.0.0.0", "::") else (host,))
    app = build_app(backend, name, api_key, cors, door)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    end_quietly()
    try:
        server.run(sockets=[listener])
    finally:
        for end in closing:
            end()
    if state:
        state.update(state="stopped", ended=time.time())


def set_environment(config: EngineConfig) -> None:
    """What torch reads when it starts: the allocator, and which GPUs there are."""
    from workbench.train.supervise import ALLOCATOR

    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    if config.devices == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif config.devices != "auto":
        os.environ["CUDA_VISIBLE_DEVICES"] = config.devices
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def _own_engine(config, workspace, adapters, progress, log, state, closing) -> tuple[Backend, str]:
    """The backend on a model in this process, and the name of its device. Raises UserError."""
    with loading_libraries():
        import torch

        from workbench.engine.batching.scheduler import backend_of
        from workbench.engine.transformers_backend import TransformersDecoder

    decoder = TransformersDecoder(config, workspace, progress, log, list(adapters.values()))
    for name, path in adapters.items():
        progress(Message("phase_adapter", name=name), 0.0)
        decoder.add_adapter(name, path)
    progress(Message("phase_trying"), 1.0)
    return backend_of(decoder, log), torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _another_engine(config, workspace, adapters, progress, log, state, closing) -> tuple[Backend, str]:
    """The backend on vLLM or SGLang, and where that is. Raises UserError."""
    with loading_libraries():
        from workbench.engine.external.front import Front

    front = Front(config, workspace, base_name(config), adapters, progress, log, state)
    closing.append(front.stop)

    def stopped(signum, frame):
        front.stop()
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stopped)  # the server's own handler replaces it while that runs
    try:
        backend = front.start()
    except BaseException:
        front.stop()
        raise

    def died(reason: Message | str) -> None:
        log(reason)
        if state:
            state.update(state="failed", reason=reason, ended=time.time())
        front.stop()
        os._exit(1)

    front.watch(died)
    return backend, front.device


def base_name(config: EngineConfig) -> str:
    """The base model's name in `/v1/models`: the last part of its path or id."""
    return Path(config.model_name_or_path).name


def _listen(host: str, port: int) -> socket.socket:
    # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named; else each is 40 ms late
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise UserError("port_taken", port=port, host=host, reason=error.strerror) from None
    listener.listen()
    return listener


def _exit_at_end_of_input(closing: list[Callable[[], None]]) -> None:
    sys.stdin.buffer.read()
    for end in closing:
        end()
    os._exit(0)
