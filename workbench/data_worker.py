"""The page's side of `corpus/worker.py`: one process that stays for previews, and one of its own for each long job."""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

from workbench.errors import UserError
from workbench.workspace import PROJECT, Workspace

_LINE = 256 << 20  # bytes of the longest answer
_PATIENCE = 30.0  # seconds that a question waits for the one before it
_KILLED = (
    "The process that reads the data was killed, probably for want of memory. Try again with fewer rows at a time."
)


class DataWorker:
    """Answers questions about data. The process is started when it is first asked, and anew if it should have died."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self._process: subprocess.Popen | None = None
        self._torch = False
        self._lock = threading.Lock()
        atexit.register(self.end)

    def ask(self, op: str, **args):
        """The result of a short operation (a method of `corpus.worker.Worker`).

        Raises:
            UserError: what the worker says, or that it has died.
        """
        request = (json.dumps({"op": op, "args": args}) + "\n").encode()
        if not self._lock.acquire(timeout=_PATIENCE):
            raise UserError("The data is still being read for another question. Try again in a moment.")
        try:
            for _ in range(2):
                process = self._running(_needs_torch(args))
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(request)
                    process.stdin.flush()
                for line in process.stdout:
                    if not line.endswith(b"\n"):
                        break  # killed while it wrote
                    answer = json.loads(line)
                    if "error" in answer:
                        raise UserError(answer["error"])
                    if "result" in answer:
                        return answer["result"]
                if process.wait() != 0:
                    break  # killed; one that only had nothing to do for long ends with 0, and is started anew
            self.end()
        finally:
            self._lock.release()
        raise UserError(_KILLED)

    def change(self, op: str, **args):
        """The result of an operation that changes data, in a process of its own, so that looking goes on meanwhile.

        Raises:
            UserError: what the worker says, or that it has died.
        """
        request = (json.dumps({"op": op, "args": args}) + "\n").encode()
        done = subprocess.run(
            _command(self.workspace, False),
            input=request,
            stdout=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
        for line in done.stdout.splitlines():
            answer = json.loads(line)
            if "error" in answer:
                raise UserError(answer["error"])
            if "result" in answer:
                return answer["result"]
        raise UserError(_KILLED)

    def _running(self, torch: bool) -> subprocess.Popen:
        if self._process is not None and (self._process.poll() is not None or self._torch != torch):
            self.end()
        if self._process is None:
            self._torch = torch
            self._process = subprocess.Popen(
                _command(self.workspace, torch), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), start_new_session=True)  # fmt: skip
        return self._process

    def end(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    async def job(self, op: str, *, torch: bool = False, **args) -> AsyncIterator[dict]:
        """A long operation in a process of its own: `{"progress": [words, share]}` until `{"result": …}`. It is killed when nobody listens any more.

        Raises:
            UserError: what the worker says, or that it has died.
        """
        process = await asyncio.create_subprocess_exec(
            *_command(self.workspace, torch or _needs_torch(args)), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=_environment(),
            start_new_session=True, limit=_LINE)  # fmt: skip
        try:
            process.stdin.write((json.dumps({"op": op, "args": args}) + "\n").encode())
            while line := await process.stdout.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise UserError(answer["error"])
                yield answer
                if "result" in answer:
                    return
            raise UserError(
                "The process that reads the data was killed, probably for want of memory. Set preprocessing_num_workers: 1 and try again."
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    await asyncio.wait_for(process.wait(), 5)
                except TimeoutError:
                    os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _needs_torch(args: dict) -> bool:
    return bool(args.get("config", {}).get("trust_remote_code"))  # a tokenizer's own code may


def _command(workspace: Workspace, torch: bool) -> list[str]:
    command = [sys.executable, "-m", "workbench.corpus.worker", str(workspace.root)]
    for folder in workspace.allowed:
        command += ["--allow", str(folder)]
    return command + ["--read-only"] * workspace.read_only + ["--torch"] * torch


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
