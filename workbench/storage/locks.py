"""Locks that end with their holder: `flock` on a file, given back by the kernel whatever kills the process.

A child that inherits the descriptor holds the lock too, so a run stays locked until the last of its processes is gone.
On a shared file system a lock counts on all hosts where that file system says so (docs/clusters.md): NFS makes it one
of the server's unless it is mounted with `nolock` or `local_lock`.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import UserError

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_PATIENCE = 1.0  # seconds: somebody may just be looking whether the lock is held


def try_lock(path: Path) -> int | None:
    """The descriptor of a lock on `path`, or None if another process holds it. Close it to let go.

    Raises:
        UserError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if error.errno not in _HELD:
                os.close(descriptor)
                raise _none(path, error) from None
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.01)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock on `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock on `path` inside; waits for it first. Raises UserError: the file system has no locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise _none(path, error) from None
        yield
    finally:
        os.close(descriptor)


def _none(path: Path, error: OSError) -> UserError:
    return UserError("no_locks", folder=path.parent, reason=error.strerror)
