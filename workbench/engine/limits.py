"""A time limit on Python code that other people wrote, such as a chat template, within a thread."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside when it takes longer.

    The exception is set from another thread (CPython's `PyThreadState_SetAsyncExc`) and arrives between two
    instructions: an endless loop ends, one long call into C is waited for.
    """
    thread, lock, armed, fired = threading.get_ident(), threading.Lock(), False, False

    def fire() -> None:
        nonlocal fired
        with lock:
            if armed:  # never while this thread is in the code that starts or ends the timer
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeoutError))

    timer = threading.Timer(seconds, fire)
    timer.daemon = True
    timer.start()
    try:
        armed = True
        yield
    finally:
        with lock:
            armed = False
            if fired:  # in case it has not arrived yet
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)
        timer.cancel()
