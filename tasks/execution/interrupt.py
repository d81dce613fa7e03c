"""Remember Ctrl-C: KeyboardInterrupt is raised only once, and a bare `except:` in a dependency may swallow it.

SIGTERM (a cancelled CI job, `timeout`, systemd) and SIGHUP (a closed terminal) end the work as Ctrl-C does.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

_stopping, _held = threading.Event(), threading.Event()


def remember_stop_signals() -> None:
    """Remember Ctrl-C, SIGTERM and SIGHUP for `check_stopped` from now on; called in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup has SIGHUP ignored, and a shell's `&` may have SIGINT ignored: that stays.
        if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle_stop)


def check_stopped() -> None:
    """Stop the work of the current thread after a Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if _stopping.is_set():
        raise KeyboardInterrupt


@contextmanager
def hold_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the block ends: a half-started child would print a traceback.

    Processes that are started in the block never get Ctrl-C, although a terminal sends it to the whole group.

    Raises:
        KeyboardInterrupt: at the end of the block, if one of them came.
    """
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The kernel then delivers the signal to another thread, and Python still handles it in the main thread.
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {}
    if is_main:
        _held.set()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        for number, handler in handlers.items():
            # Prefect's own handler of SIGTERM, which it sets while a flow runs, would raise at once.
            if callable(handler):
                signal.signal(number, _handle_stop)
    try:
        yield
    finally:
        # A held signal is handled here, and only remembered, so that it raises nothing before the mask is restored.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
        if is_main:
            _held.clear()
    check_stopped()


def _handle_stop(_number: int, _frame: FrameType | None) -> None:
    _stopping.set()
    if not _held.is_set():
        raise KeyboardInterrupt
