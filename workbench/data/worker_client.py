"""The page's side of `worker.py`: processes that look at data, each within limits.

Foreign data and templates can do anything that takes time or memory, so nothing of them is looked at in the page's own
process. A short question goes to a process that is kept for the next one; a long job has a process of its own. One that
takes too long is killed, its user gets a sentence, and nobody else waits: every user has one question and `JOBS_EACH`
jobs at a time, every address `ADDRESS_EACH` of each.
"""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from workbench.data.encodings import WrongEncoding
from workbench.errors import UserError
from workbench.messages.answers import with_messages
from workbench.messages.message import Message
from workbench.runs import job
from workbench.storage.files import parse_json
from workbench.storage.workspace import Workspace

LOOK_SECONDS = 30.0  # that a question may take
SILENT_SECONDS = 120.0  # that a job may be without progress
LOOK_MEMORY, JOB_MEMORY = 2 << 30, 4 << 30  # bytes of data that a process may hold; twice that with torch
MAX_ANSWER = 32 << 20  # bytes of one answer
PROCESSES = 8  # that answer questions at a time; as many for jobs
JOBS_EACH = 2  # of a user
ADDRESS_EACH = 4  # jobs, waiting jobs and questions of an address: whoever takes many names does not get all places
JOB_PATIENCE = 10.0  # seconds that a job waits for a place; the page's own short ones end in that time
KEPT = 2  # processes that are kept for the next question
_MODULE = "workbench.data.worker"
_PATIENCE = 30.0  # seconds that a question waits for its user's one before it, or for a process

_TOO_MUCH = Message("answer_too_large", most=MAX_ANSWER >> 20)


class _Lock:
    """A lock that can be held weakly."""

    def __init__(self):
        self.held = threading.Lock()


class _Process:
    """One worker process that answers questions."""

    def __init__(self, workspace: Workspace, torch: bool):
        self.torch = torch
        arguments = _arguments(workspace, torch, LOOK_MEMORY, LOOK_SECONDS + 5)
        self.popen = job.popen(_MODULE, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.popen.stdin and self.popen.stdout  # they are pipes
        self.requests, self.answers = self.popen.stdin, self.popen.stdout
        self.timed_out = False

    def ask(self, request: bytes) -> tuple[dict | None, int | None]:
        """`(answer, None)`, or `(None, exit code)` when it has ended instead."""
        timer = self._timer()
        try:
            with contextlib.suppress(BrokenPipeError):
                self.requests.write(request)
                self.requests.flush()
            while (line := self.answers.readline(MAX_ANSWER + 1)).endswith(b"\n"):  # else it was killed while it wrote
                answer = with_messages(parse_json(line, Message("worker_answer")))
                if "error" in answer or "result" in answer:
                    return answer, None
                timer.cancel()  # it tells that it goes on
                timer = self._timer()
            if len(line) > MAX_ANSWER:
                self.end()
                return {"error": _TOO_MUCH}, None
            return None, self.popen.wait()
        finally:
            timer.cancel()

    def _timer(self) -> threading.Timer:
        timer = threading.Timer(LOOK_SECONDS, self._too_long)
        timer.daemon = True
        timer.start()
        return timer

    def _too_long(self) -> None:
        self.timed_out = True
        self._kill()

    def _kill(self) -> None:
        job.kill(self.popen)

    def end(self) -> None:
        self._kill()
        self.popen.wait()
        self.requests.close()
        self.answers.close()


class DataWorker:
    """Answers questions about data. All methods may be called from any thread."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._free = threading.Condition()
        self._asking: WeakValueDictionary[str, _Lock] = WeakValueDictionary()  # by user
        self._jobs: Counter[str] = Counter()  # by user
        self._waiting: Counter[str] = Counter()  # jobs without a place, by address
        self._questions: Counter[str] = Counter()  # by address
        atexit.register(self.end)

    def ask(self, op: str, user: str = "", **args):
        """The result of a short operation (a method of `worker.Worker`).

        Args:
            user: who asks, an address first; questions of one user come one after the other.

        Raises:
            UserError: what the worker says, or that it took too long or has died.
        """
        request = (json.dumps({"op": op, "args": args}) + "\n").encode()
        with self._free:
            lock = self._asking.setdefault(user, _Lock())
        if not lock.held.acquire(timeout=_PATIENCE):
            raise UserError("reader_asked")
        try:
            for _ in range(2):
                process = self._take(_needs_torch(args), _address(user))
                try:
                    answer, code = process.ask(request)
                finally:
                    self._give_back(process, _address(user))
                if answer is not None:
                    return _result(answer)
                if process.timed_out or code == -signal.SIGALRM:
                    raise UserError("reader_too_long", seconds=LOOK_SECONDS)
                if code != 0:  # killed; one that only had nothing to do for long ends with 0, and another is started
                    break
        finally:
            lock.held.release()
        raise UserError("reader_killed")

    def _take(self, torch: bool, address: str) -> _Process:
        """A process for one question. Raises UserError: all are busy for long."""
        with self._free:
            room = lambda: len(self._busy) < PROCESSES and self._questions[address] < ADDRESS_EACH  # noqa: E731
            if not self._free.wait_for(room, _PATIENCE):
                raise UserError("reader_busy")
            while self._idle:
                fitting = next((one for one in reversed(self._idle) if one.torch == torch), self._idle[0])
                self._idle.remove(fitting)
                if fitting.torch == torch and fitting.popen.poll() is None:
                    break
                fitting.end()
            else:
                fitting = _Process(self.workspace, torch)
            self._busy.add(fitting)
            self._questions[address] += 1
            return fitting

    def _give_back(self, process: _Process, address: str) -> None:
        with self._free:
            self._busy.discard(process)
            _less(self._questions, address)
            if process.popen.poll() is None and not process.timed_out and len(self._idle) < KEPT:
                self._idle.append(process)
            else:
                process.end()
            self._free.notify_all()

    @property
    def processes(self) -> list[subprocess.Popen]:
        """Those that answer questions, the one that will be asked next last."""
        with self._free:
            return [*(one.popen for one in self._busy), *(one.popen for one in self._idle)]

    def end(self) -> None:
        """End the processes that wait for questions."""
        with self._free:
            while self._idle:
                self._idle.pop().end()

    async def job(self, op: str, *, user: str = "", torch: bool = False, **args) -> AsyncIterator[dict]:
        """A long operation in a process of its own: `{"progress": [words, share]}` until `{"result": …}`. It is killed
        when nobody listens any more, or when it makes no progress.

        Raises:
            UserError: what the worker says, that it has died, or that the user has too many.
        """
        await self._place(user)
        torch, process = torch or _needs_torch(args), None
        try:
            process = await asyncio.create_subprocess_exec(
                *job.command(_MODULE, *_arguments(self.workspace, torch, JOB_MEMORY, SILENT_SECONDS + 5)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=job.environment(),
                start_new_session=True,
                limit=MAX_ANSWER,
            )
            assert process.stdin  # it is a pipe
            process.stdin.write((json.dumps({"op": op, "args": args}) + "\n").encode())
            while line := await _line(process):
                answer = with_messages(parse_json(line, Message("worker_answer")))
                if "progress" in answer:
                    yield answer
                    continue
                _result(answer)
                yield answer
                return
            code = await process.wait()
            if code == -signal.SIGALRM:
                raise UserError("reader_too_long", seconds=SILENT_SECONDS)
            raise UserError("reader_job_killed")
        finally:
            _less(self._jobs, user)
            if process is not None:
                await _ended(process)

    async def _place(self, user: str) -> None:
        """Count a job of `user` as running, as soon as there is a place. Raises UserError: there is none for long."""
        address, deadline = _address(user), time.monotonic() + JOB_PATIENCE
        self._waiting[address] += 1
        try:
            while True:
                running = sum(count for other, count in self._jobs.items() if _address(other) == address)
                full = running >= ADDRESS_EACH or self._jobs.total() >= PROCESSES
                if not full and self._jobs[user] < JOBS_EACH:
                    self._jobs[user] += 1
                    return
                if time.monotonic() > deadline or self._waiting[address] > ADDRESS_EACH:
                    raise UserError("own_jobs" if self._jobs[user] >= JOBS_EACH else "other_jobs")
                await asyncio.sleep(0.1)
        finally:
            _less(self._waiting, address)

    async def change(self, op: str, *, user: str = "", **args):
        """The result of an operation that changes data, as a job. Raises UserError as `job`."""
        result = None
        async for answer in self.job(op, user=user, **args):
            result = answer.get("result")
        return result


def _address(user: str) -> str:
    return user.split(" ")[0]


def _less(counts: Counter, key: str) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


async def _line(process) -> bytes:
    """The next line of a job. Raises UserError: there is none for too long, or it is too large."""
    try:
        return await asyncio.wait_for(process.stdout.readline(), SILENT_SECONDS)
    except TimeoutError:
        raise UserError("reader_too_long", seconds=SILENT_SECONDS) from None
    except ValueError:  # longer than the limit
        raise UserError(_TOO_MUCH) from None


async def _ended(process) -> None:
    """End a job with all its processes: asked first, so that half-written files are deleted."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), 5)
        except TimeoutError:
            pass
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _result(answer: dict):
    if answer.get("encoding"):
        raise WrongEncoding(answer["error"], answer["encoding"])
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]


def _needs_torch(args: dict) -> bool:
    return bool(args.get("config", {}).get("trust_remote_code"))  # a tokenizer's own code may


def _arguments(workspace: Workspace, torch: bool, memory: int, seconds: float) -> list[str]:
    arguments = [str(workspace.root)]
    for folder in workspace.allowed:
        arguments += ["--allow", str(folder)]
    arguments += ["--memory", str(memory * (2 if torch else 1)), "--seconds", f"{seconds:.0f}"]
    flags = {"--read-only": workspace.read_only, "--remote-code": workspace.remote_code, "--torch": torch}
    return arguments + [flag for flag, on in flags.items() if on]
