"""Another engine as a child of the engine's process: started, watched until it is ready, ended."""

import re
import secrets
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from workbench.config.options import EngineConfig
from workbench.engine.external.program import TITLES, child_environment, command_line, find_program
from workbench.engine.external.upstream import Upstream
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs import job

START_SECONDS = 3600.0  # a large model is read from a slow disk, and its kernels are compiled
END_SECONDS = 10.0  # that it may take to end
_LOOK_SECONDS = 0.5
_SHARE = re.compile(r"(\d{1,3})%")  # of progress bars
_ERROR = re.compile(r"\w*(Error|Exception): (?!.*See root cause above)")
_LINE = 300  # characters of a line that are told


class Child:
    """A running vLLM or SGLang. `tell(line, share)` is called for each line that it prints, until it is ready."""

    def __init__(
        self,
        config: EngineConfig,
        model: str,
        name: str,
        adapters: dict[str, Path],
        tell: Callable[[str, float], None],
        log: Callable[[str], None],
    ):
        """Start it; call this on the main thread. Raises UserError: it is not installed, or cannot be started."""
        self.title, self._tell, self._log = TITLES[config.engine], tell, log
        self.key, port = secrets.token_urlsafe(24), job.free_port()
        self.url = f"http://127.0.0.1:{port}"
        line = command_line(config, find_program(config.engine), model, name, adapters, port)
        log(" ".join(line))
        self._lines: deque[str] = deque(maxlen=200)
        self._starting, self._ending = True, False
        try:
            self.process = job.popen_program(
                line,
                child_environment(config, self.key, bool(adapters)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise UserError("engine_program_ended", engine=self.title, code=error.errno, line=error.strerror) from None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        share = 0.0
        assert self.process.stdout
        for line in self.process.stdout:  # a progress bar's carriage returns end lines, too
            line = line.rstrip()
            if not line:
                continue
            self._lines.append(line)
            self._log(line)
            if self._starting:
                if found := _SHARE.search(line):
                    share = min(int(found[1]), 100) / 100
                self._tell(line[:_LINE], share)

    def wait_ready(self, upstream: Upstream, log: Path | str) -> None:
        """Return when it answers. Raises UserError: it has ended, or takes too long; it is ended then."""
        deadline = time.monotonic() + START_SECONDS
        while not upstream.wait(upstream.healthy()):
            if self.process.poll() is not None:
                raise self.death()
            if time.monotonic() > deadline:
                self.end()
                raise UserError("engine_start_slow", engine=self.title, minutes=START_SECONDS / 60, log=log)
            time.sleep(_LOOK_SECONDS)
        self._starting = False

    def death(self) -> UserError:
        """What is said of one that has ended: its exit code, and the last error that it printed, or its last line."""
        self._reader.join(5)
        lines = list(self._lines) or ["–"]
        line = next((one for one in reversed(lines) if _ERROR.search(one)), lines[-1])
        return UserError("engine_program_ended", engine=self.title, code=self.process.returncode, line=line[-_LINE:])

    def watch(self, died: Callable[[Message | str], None]) -> None:
        """Call `died` with what is said of it, should it end by itself."""

        def wait() -> None:
            self.process.wait()
            if not self._ending:
                died(self.death().message)

        threading.Thread(target=wait, daemon=True).start()

    def end(self) -> None:
        """End it with everything it has started."""
        self._ending = True
        job.end_tree(self.process, END_SECONDS)
        job.end_group()
