"""Run a function in a fresh process, so that a vendor library may crash, leak or hang without harm to this one."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar, TypeVarTuple

from registry.errors import BuildError, EngineryError, explain_place
from tasks.execution.interrupt import check_stopped, hold_ctrl_c
from tasks.execution.progress import OnProgress

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

# A build may report nothing for seconds, and Ctrl-C reaches only the main thread.
_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class _Step:
    phase: str
    fraction: float


@dataclass(frozen=True)
class _Done:
    result: object


@dataclass(frozen=True)
class _Failed:
    error: EngineryError


@dataclass(frozen=True)
class _Late:
    """The time limit has passed."""


@dataclass(frozen=True)
class _Bug:
    """An exception that is not an EngineryError: sent as text, because its class may not unpickle."""

    summary: str
    trace: str


def run_isolated(
    function: Callable[[*Arguments, OnProgress], Result],
    *args: *Arguments,
    on_progress: OnProgress,
    died: type[EngineryError] = BuildError,
    limit_seconds: float = math.inf,
) -> Result:
    """Call `function(*args, progress)` in a spawned process and return its result.

    The function, its arguments and its result must be picklable. `progress` calls `on_progress` in this
    process and returns its answer. The child is killed when this process ends, even by kill -9, and on any exception
    here, Ctrl-C included.

    Raises:
        EngineryError: the function raised it, and it arrives as itself.
        died: the process ended by a signal or an exit, raised something that is not an EngineryError, or ran for more
            than `limit_seconds`.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=_run_child,
        args=(theirs, os.getpid(), function, args),
        name=f"enginery-{_name_function(function)}",
        daemon=True,
    )
    try:
        with hold_ctrl_c():  # a terminal sends it to both; the parent decides
            child.start()
        theirs.close()  # or the pipe would never report that the child has ended
        message = _await_result(child, ours, on_progress, time.monotonic() + limit_seconds)
        if message is None:
            child.join()
            raise died(f"{_name_function(function)}: its process {describe_exit(child.exitcode)}")
    finally:
        _end_child(child)
        ours.close()
    if isinstance(message, _Late):
        raise died(f"{_name_function(function)}: its process has run for {limit_seconds:g} s, and was ended")
    if isinstance(message, _Failed):
        raise message.error
    if isinstance(message, _Bug):
        raise died(f"{_name_function(function)} failed unexpectedly: {message.summary}\n{message.trace}")
    result: Result = message.result  # type: ignore[assignment]  # what `function` returned, through a pickle
    return result


def _await_result(
    child: BaseProcess, ours: Connection, on_progress: OnProgress, deadline: float
) -> _Done | _Failed | _Bug | _Late | None:
    """Answer the child's progress calls until it is done; return None when it died without a result."""
    while time.monotonic() < deadline:
        ready = wait([ours, child.sentinel], timeout=_POLL_SECONDS)
        check_stopped()
        if not ready:
            continue
        try:
            if not ours.poll():
                return None
            message = ours.recv()
            if not isinstance(message, _Step):
                return message  # type: ignore[no-any-return]
            ours.send(on_progress(message.phase, message.fraction) is not False)
        except (EOFError, ConnectionError):
            return None
    return _Late()


def _end_child(child: BaseProcess) -> None:
    if child.pid is None:
        return
    if child.is_alive():
        child.kill()  # a child stuck in vendor code ignores a softer signal
    child.join()
    child.close()


def describe_exit(code: int | None) -> str:
    """Say how a process without a result ended."""
    if code is None or code >= 0:
        return f"ended with exit status {code} and no result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ": perhaps out of memory, see `dmesg`" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _name_function(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _run_child(theirs: Connection, parent: int, function: Callable[..., object], args: tuple[object, ...]) -> None:
    """Run the function in the child, and send its result or error."""
    die_with(parent)
    lock = threading.Lock()  # vendor libraries report from several threads

    def progress(phase: str, fraction: float) -> bool:
        try:
            with lock:
                theirs.send(_Step(phase, fraction))
                return bool(theirs.recv())
        except (EOFError, ConnectionError):
            os._exit(1)  # the parent has ended

    try:
        message: _Done | _Failed | _Bug = _Done(function(*args, progress))
    except EngineryError as error:
        message = _Failed(error)
    except Exception as error:  # noqa: BLE001  # sent to the parent as text
        place = explain_place(error) if isinstance(error, OSError) else None
        message = _Failed(place) if place else _Bug(f"{type(error).__name__}: {error}", traceback.format_exc())
    try:
        theirs.send(message)
    except ConnectionError:
        os._exit(1)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends: man 2 prctl, PR_SET_PDEATHSIG."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)
