"""Ctrl-C as a fact that stays: KeyboardInterrupt comes once, and an `except:` in somebody's import may swallow it."""

import signal
import threading
from types import FrameType

_stopping = threading.Event()


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


def _stop(_number: int, _frame: FrameType | None) -> None:
    _stopping.set()
    raise KeyboardInterrupt
