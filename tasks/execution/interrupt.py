"""Ctrl-C as a fact that stays: KeyboardInterrupt comes once, and an `except:` in somebody's import may swallow it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

_stopping, _held = threading.Event(), threading.Event()


def remember_ctrl_c() -> None:
    """From now on Ctrl-C is also remembered, for `check_stopped`; called from the main thread by the command line."""
    signal.signal(signal.SIGINT, _stop)


def check_stopped() -> None:
    """End what is going on here, in whatever thread, after a Ctrl-C.

    Raises:
        KeyboardInterrupt: it came.
    """
    if _stopping.is_set():
        raise KeyboardInterrupt


@contextmanager
def hold_ctrl_c() -> Iterator[None]:
    """Ctrl-C comes after the block: a child of which half is started says so in a traceback of its own.

    Processes that are started in the block never get it, although a terminal sends it to the whole group.

    Raises:
        KeyboardInterrupt: at the end of the block, where it came.
    """
    resource_tracker.ensure_running()  # multiprocessing's; its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The kernel gives the signal to another thread then, and Python handles it in the main one all the same.
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        _held.set()
    try:
        yield
    finally:
        # One that waited is handled here, and only remembered, so that it breaks nothing off before the mask is back.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            _held.clear()
    check_stopped()


def _stop(_number: int, _frame: FrameType | None) -> None:
    _stopping.set()
    if not _held.is_set():
        raise KeyboardInterrupt
