"""Sessions of the page (a browser tab each) as Gradio keeps them, in bounded memory.

Gradio's own table grows with every event that updates a component which is also an input (each update leaves one more
instance of it), holds a copy of the whole page's config for each session (for deep links, which are not used here), and
forgets no session. Checked with gradio 6.31: `tests/security/test_memory.py` fails when a change there needs another
answer here.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable
from copy import copy

from gradio.blocks import Block, Blocks
from gradio.components import State
from gradio.state_holder import SessionState, StateHolder

CLOSED_SECONDS = (
    300.0  # a tab that is closed is forgotten after this time: until then it may be a connection that broke
)
IDLE_SECONDS = 3600.0  # one that has asked for nothing; an open tab asks every second
MOST = 2000


class Session(SessionState):
    """One tab's components and states."""

    def __init__(self, blocks: Blocks):
        self.blocks_config = copy(blocks.default_config)
        self.config_values = {}
        self.state_data = {}
        self._state_ttl = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = CLOSED_SECONDS

    def __setitem__(self, key: int, value) -> None:
        if isinstance(self.blocks_config.blocks.get(key), State):
            self.state_data[key] = value
            return
        if isinstance(value, Block):
            value._id = key  # it stands in for this component: as an input it is looked up by the id it has
        self.blocks_config.blocks[key] = value

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value) -> None:
        pass


class Sessions(StateHolder):
    """All sessions, by their hash. Sessions end when their tab is closed (Gradio sets `is_closed`), or asks for nothing
    any more."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        super().__init__()
        self._now = now
        self._used: dict[str, float] = {}
        self._closed: dict[str, float] = {}

    def __getitem__(self, session_id: str) -> Session:
        with self.lock:
            session = self.session_data.get(session_id)
            if session is None:
                session = self.session_data[session_id] = Session(self.blocks)
                while len(self.session_data) > MOST:
                    self._forget(next(iter(self.session_data)))
            self.session_data.move_to_end(session_id)
            session.is_closed = False
            self._closed.pop(session_id, None)
            self._used[session_id] = self._now()
            return session

    def update(self, session_id: str) -> None:
        """Gradio's own bookkeeping, done in `__getitem__`."""

    def delete_all_expired_state(self) -> None:
        """Forget the sessions whose time is over. Called by Gradio now and then, and by the page's clock."""
        now = self._now()
        with self.lock:
            for name, session in self.session_data.items():
                if session.is_closed:
                    self._closed.setdefault(name, now)
            ended = [name for name, then in self._closed.items() if now - then >= CLOSED_SECONDS]
            ended += [name for name, then in self._used.items() if now - then >= IDLE_SECONDS]
            for name in dict.fromkeys(ended):
                self._forget(name)

    def delete_state(self, session_id: str, expired_only: bool = False) -> None:
        """As above; nothing has to be called for a single state."""

    def _forget(self, name: str) -> None:
        self.session_data.pop(name, None)
        self._used.pop(name, None)
        self._closed.pop(name, None)
        queue = self.blocks._queue
        queue.pending_messages_per_session.pop(name, None)
        queue.pending_event_ids_session.pop(name, None)


def trim() -> None:
    """Give memory that is free, but held by the C library for threads that no longer need it, back to the system."""
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def use(app, blocks: Blocks) -> Sessions:
    """Let a Gradio app (`gradio.routes.App`) keep its sessions so."""
    sessions = Sessions()
    app.state_holder = sessions
    sessions.set_blocks(blocks)
    sessions.capacity = MOST
    return sessions
