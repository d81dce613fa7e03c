"""A fresh process: its errors, its deaths, and that it leaves nothing behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from registry.errors import BadInput, MeasurementError
from registry.errors import BuildError as Died
from tasks.execution.isolate import run_isolated
from tasks.execution.progress import OnProgress


def proceed(phase: str, fraction: float) -> bool:
    return True


def add(left: int, right: int, progress: OnProgress) -> int:
    return left + right


def own_pid(progress: OnProgress) -> int:
    return os.getpid()


def read_address_zero(progress: OnProgress) -> None:
    ctypes.string_at(0)


def leave(code: int, progress: OnProgress) -> None:
    os._exit(code)


def refuse(sentence: str, progress: OnProgress) -> None:
    raise BadInput(sentence)


def divide_by_zero(progress: OnProgress) -> float:
    return 1 / 0


def return_a_lambda(progress: OnProgress) -> object:
    return lambda: None


def count_steps_until_cancelled(progress: OnProgress) -> int:
    steps = 0
    while progress("count", steps / 10):
        steps += 1
    return steps


def report_pid_and_sleep(file: Path, progress: OnProgress) -> None:
    file.with_suffix(".new").write_text(str(os.getpid()))
    file.with_suffix(".new").replace(file)
    time.sleep(600)


def test_result_comes_back_from_another_process() -> None:
    assert run_isolated(add, 2, 3, on_progress=proceed) == 5
    assert run_isolated(own_pid, on_progress=proceed) != os.getpid()


def test_segfault_is_an_error_that_names_the_signal() -> None:
    with pytest.raises(Died, match=r"read_address_zero: its process was ended by SIGSEGV"):
        run_isolated(read_address_zero, on_progress=proceed)


@pytest.mark.parametrize("code", [0, 7])
def test_exit_without_a_result_is_an_error(code: int) -> None:
    with pytest.raises(MeasurementError, match=f"exit status {code} and no result"):
        run_isolated(leave, code, on_progress=proceed, died=MeasurementError)


def test_a_child_that_never_ends_is_ended_at_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(Died, match=r"report_pid_and_sleep: its process has run for 5 s, and was ended"):
        run_isolated(report_pid_and_sleep, file, on_progress=proceed, limit_seconds=5)
    if file.exists():  # a busy machine may not have begun it by then
        assert not psutil.pid_exists(int(file.read_text()))


def test_error_of_ours_arrives_as_itself() -> None:
    with pytest.raises(BadInput, match=r"^the cat sat on it$"):
        run_isolated(refuse, "the cat sat on it", on_progress=proceed)


def test_error_of_others_arrives_as_text_with_its_trace() -> None:
    with pytest.raises(Died, match=r"(?s)ZeroDivisionError: division by zero.*return 1 / 0"):
        run_isolated(divide_by_zero, on_progress=proceed)


def test_result_that_cannot_travel_is_an_error() -> None:
    with pytest.raises(Died, match="return_a_lambda"):
        run_isolated(return_a_lambda, on_progress=proceed)


def test_progress_arrives_in_order_and_its_answer_goes_back() -> None:
    seen: list[tuple[str, float]] = []

    def cancel_at_half(phase: str, fraction: float) -> bool:
        seen.append((phase, fraction))
        return fraction < 0.5

    assert run_isolated(count_steps_until_cancelled, on_progress=cancel_at_half) == 5
    assert seen == [("count", step / 10) for step in range(6)]


def test_ctrl_c_ends_the_child_and_is_raised_here() -> None:
    def interrupt(phase: str, fraction: float) -> bool:
        raise KeyboardInterrupt

    before = set(child_workers())
    with pytest.raises(KeyboardInterrupt):
        run_isolated(count_steps_until_cancelled, on_progress=interrupt)
    assert set(child_workers()) <= before


def test_kill_9_of_the_parent_ends_the_child(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "from pathlib import Path; from tests.unit.tasks.execution.test_isolate import *;"
        f"run_isolated(report_pid_and_sleep, Path({str(file)!r}), on_progress=proceed)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[4]) as parent:
        wait_until(file.exists)
        child = psutil.Process(int(file.read_text()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def child_workers() -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline())
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
