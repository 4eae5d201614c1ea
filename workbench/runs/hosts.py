"""Which host this is, and whether a process is one of it.

A workspace may be shared by several hosts. A pid means something only on the host that gave it, more exactly in its pid
namespace: two containers of one machine are two hosts. `WORKBENCH_HOST` names a host whose own name says nothing or
changes, as that of a container does.
"""

import os
import socket
from pathlib import Path

_FIRST_NAMESPACE = "pid:[4026531836]"  # that of the machine itself; Linux numbers it so


def name() -> str:
    """The name of this host, one line."""
    return _given() or socket.gethostname()


def boot() -> str:
    """What names this boot of this host, and where pids are counted in it; empty where the system does not tell."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        machine = ""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = _FIRST_NAMESPACE
    given = f"@{_given()}" if _given() else ""
    return machine + (f" {namespace}" if namespace != _FIRST_NAMESPACE else "") + given


def is_here(of: str) -> bool:
    """Whether a process with this `boot` was started on this host since it started. One that does not tell counts as
    such."""
    return not of or of == boot()


def _given() -> str:
    return " ".join(os.environ.get("WORKBENCH_HOST", "").split())[:64]
