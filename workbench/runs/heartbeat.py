"""Signs of life of a process for those on other hosts, and their requests to it: pids and signals do not cross hosts.

The owner of a state directory touches `.heartbeat` every few seconds. Clocks of hosts differ, so only the file server's
counts: it stamps the heartbeat, and a file that the observer has just made. Where nothing can be made (a read-only
mount), the observer goes by how long the stamp has not changed before its eyes. Files are opened before their times
are read: NFS clients keep a file's attributes for a minute, but ask the server when it is opened.

Who wants a process of another host to stop appends a byte to `.stop-request`, which the owner looks at.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

BEAT = float(os.environ.get("WORKBENCH_BEAT", 10))  # seconds between two signs
QUIET = 3 * BEAT  # after which it is said that there is none
LOST = 12 * BEAT  # after which the process counts as gone
LOOK = min(2.0, BEAT / 4)  # between two looks for a request
_HEART, _REQUEST = ".heartbeat", ".stop-request"
_MEASURED = 60.0  # seconds for which the difference to the server's clock is believed
_MOST = 1000  # stamps that are remembered

_clocks: dict[str, tuple[float, float | None]] = {}  # folder: (when asked, its server's time when ours counted from 0)
_stamps: dict[str, tuple[float, float]] = {}  # directory: (its last stamp, when it was first seen)
_lock = threading.Lock()


class Heartbeat:
    """Signs of life of this process while it lives or until `end`.

    Args:
        path: the state directory that it owns; others see it as its own already.
        stop: called on a thread for each request to stop.
        taken: asked at each beat whether another process has taken the directory over.
        gone: called on a thread, once, if so. Then this process must not write there any more.
    """

    def __init__(
        self,
        path: Path,
        stop: Callable[[], None],
        taken: Callable[[], bool] = lambda: False,
        gone: Callable[[], None] = lambda: None,
    ):
        self._path, self._stop, self._taken, self._gone = path, stop, taken, gone
        self._over = threading.Event()
        with contextlib.suppress(OSError):
            (path / _REQUEST).write_bytes(b"")  # is there, so that no client believes for long that it is not
        self._beat()
        threading.Thread(target=self._live, daemon=True).start()

    def end(self) -> None:
        """No more signs."""
        self._over.set()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, or a server that is away: the next one may be seen
            (self._path / _HEART).touch()

    def _live(self) -> None:
        heard, last = 0, time.monotonic()
        while not self._over.wait(LOOK):
            for _ in range(heard, wanted := requests(self._path)):
                self._stop()
            heard = max(heard, wanted)
            if time.monotonic() - last >= BEAT:
                last = time.monotonic()
                if self._taken():
                    self._gone()
                    return
                self._beat()


def requests(path: Path) -> int:
    """How often somebody on another host has asked the owner of a directory to stop."""
    try:
        with open(path / _REQUEST, "rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError:
        return 0


def ask_stop(path: Path) -> None:
    """Ask the owner of a directory, on another host, to stop."""
    with open(path / _REQUEST, "ab") as file:
        file.write(b"s")
        file.flush()
        os.fsync(file.fileno())


def silence(path: Path) -> float:
    """Seconds since the owner of a directory has last touched its heartbeat or written its state, by the file server's
    clock; infinite if it never has."""
    stamp = max((_modified(path / name) for name in (_HEART, "state.json")), default=0.0)
    if not stamp:
        return float("inf")
    now = _server_time(path.parent)
    if now is not None:
        return max(0.0, now - stamp)
    with _lock:
        if len(_stamps) > _MOST:
            _stamps.clear()
        if _stamps.get(str(path), (0.0, 0.0))[0] != stamp:
            _stamps[str(path)] = stamp, time.monotonic()
        return time.monotonic() - _stamps[str(path)][1]


def _modified(path: Path) -> float:
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


def _server_time(folder: Path) -> float | None:
    """What the clock that stamps files in a folder says now; None if nothing can be written there. It is asked once a
    minute; meanwhile this host's monotonic clock is added, since the other one may be set."""
    with _lock:
        asked, start = _clocks.get(str(folder), (-_MEASURED, None))
    if time.monotonic() - asked >= _MEASURED:
        asked = time.monotonic()
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
                os.utime(file.fileno())
                start = os.fstat(file.fileno()).st_mtime - time.monotonic()
        except OSError:
            start = None
        with _lock:
            _clocks[str(folder)] = asked, start
    return None if start is None else start + time.monotonic()
