"""Ctrl-C is not lost where other code swallows the exception."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tasks.execution import interrupt
from tasks.execution.interrupt import check_stopped, hold_ctrl_c, remember_stop_signals
from tasks.execution.isolate import run_isolated
from tasks.execution.progress import OnProgress


@pytest.fixture(autouse=True)
def own_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(interrupt, "_stopping", threading.Event())
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def sleep_long(progress: OnProgress) -> None:
    time.sleep(600)


def test_a_swallowed_ctrl_c_is_raised_again() -> None:
    remember_stop_signals()
    check_stopped()
    with suppress(KeyboardInterrupt):  # as a careless import does
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        check_stopped()


def test_ctrl_c_ends_a_silent_build_in_another_thread() -> None:
    remember_stop_signals()
    raised: list[type[BaseException]] = []

    def build() -> None:
        try:
            run_isolated(sleep_long, on_progress=lambda _phase, _done: True)
        except BaseException as error:  # noqa: BLE001  # the exception is what this test looks at
            raised.append(type(error))

    thread = threading.Thread(target=build)
    thread.start()
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    thread.join(60)
    assert raised == [KeyboardInterrupt]


@pytest.mark.parametrize("beside", [True, False])
def test_ctrl_c_waits_until_a_child_is_started_whole(beside: bool) -> None:
    """It comes to this thread, which holds it back, or to one that was there before and does not."""
    remember_stop_signals()
    began, sent = threading.Event(), threading.Event()
    started: list[str] = []

    def press() -> None:
        began.wait()
        os.kill(os.getpid(), signal.SIGINT)
        sent.set()

    def start() -> None:
        if not beside:
            presser.start()
        began.set()
        sent.wait(60)
        time.sleep(0.05)  # for Python to handle it in this thread
        started.append("whole")

    presser = threading.Thread(target=press)
    if beside:
        presser.start()
    with pytest.raises(KeyboardInterrupt), hold_ctrl_c():
        start()
    assert started == ["whole"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    presser.join()


def test_a_handler_that_another_library_set_does_not_stop_a_child_halfway() -> None:
    """Prefect sets one for SIGTERM while a flow runs, and it raises at once."""

    def raise_at_once(_number: int, _frame: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, raise_at_once)
    started: list[str] = []

    def start() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)  # for Python to handle it in this thread
        started.append("whole")

    with pytest.raises(KeyboardInterrupt), hold_ctrl_c():
        start()
    assert started == ["whole"]
    assert signal.getsignal(signal.SIGTERM) is raise_at_once


def asks_for_ctrl_c(progress: OnProgress) -> bool:
    os.kill(os.getpid(), signal.SIGINT)
    return signal.SIGINT in signal.sigpending()


def test_a_child_does_not_get_ctrl_c_even_before_its_first_line() -> None:
    assert run_isolated(asks_for_ctrl_c, on_progress=lambda _phase, _done: True)
