"""Run a function in a fresh process: a vendor library may crash, leak or hang without taking us along."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar, TypeVarTuple

from registry.errors import BuildError, EngineryError
from tasks.execution.interrupt import check_stopped, hold_ctrl_c
from tasks.execution.progress import OnProgress

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

# A build may say nothing for seconds, and Ctrl-C reaches the main thread only.
_SECONDS_BETWEEN_LOOKS = 0.5
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
class _Bug:
    """An exception that is none of ours: it crosses as text, because its class may not unpickle."""

    summary: str
    trace: str


def run_isolated(
    function: Callable[[*Arguments, OnProgress], Result],
    *args: *Arguments,
    on_progress: OnProgress,
    died: type[EngineryError] = BuildError,
) -> Result:
    """Call `function(*args, progress)` in a spawned process and return its result.

    The function, its arguments and its result must be picklable. `progress` calls `on_progress` in this
    process and returns its answer. The child dies with this process, even by kill -9, and on any exception
    here, Ctrl-C too.

    Raises:
        EngineryError: the function raised it, and it arrives as itself.
        died: the process ended by a signal or an exit, or raised something that is not an EngineryError.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=_serve,
        args=(theirs, os.getpid(), function, args),
        name=f"enginery-{_name(function)}",
        daemon=True,
    )
    try:
        with hold_ctrl_c():  # a terminal sends it to both; the parent decides
            child.start()
        theirs.close()  # or the pipe would never report that the child has gone
        message = _converse(child, ours, on_progress)
        if message is None:
            child.join()
            raise died(f"{_name(function)}: its process {_ending(child.exitcode)}")
    finally:
        _end(child)
        ours.close()
    if isinstance(message, _Failed):
        raise message.error
    if isinstance(message, _Bug):
        raise died(f"{_name(function)} failed unexpectedly: {message.summary}\n{message.trace}")
    result: Result = message.result  # type: ignore[assignment]  # what `function` returned, through a pickle
    return result


def _converse(child: BaseProcess, ours: Connection, on_progress: OnProgress) -> _Done | _Failed | _Bug | None:
    """Answer the child's steps until it is done; None when it died without a word."""
    while True:
        ready = wait([ours, child.sentinel], timeout=_SECONDS_BETWEEN_LOOKS)
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


def _end(child: BaseProcess) -> None:
    if child.pid is None:
        return
    if child.is_alive():
        child.kill()  # a child stuck in vendor code would not heed anything softer
    child.join()
    child.close()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit status {code} and no result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ": perhaps out of memory, see `dmesg`" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _serve(theirs: Connection, parent: int, function: Callable[..., object], args: tuple[object, ...]) -> None:
    """The child's side: one function, then out."""
    _die_with(parent)
    lock = threading.Lock()  # vendor libraries report from several threads

    def progress(phase: str, fraction: float) -> bool:
        try:
            with lock:
                theirs.send(_Step(phase, fraction))
                return bool(theirs.recv())
        except (EOFError, ConnectionError):
            os._exit(1)  # the parent has gone

    try:
        message: _Done | _Failed | _Bug = _Done(function(*args, progress))
    except EngineryError as error:
        message = _Failed(error)
    except Exception as error:  # noqa: BLE001  # crosses the process border as text
        message = _Bug(f"{type(error).__name__}: {error}", traceback.format_exc())
    try:
        theirs.send(message)
    except ConnectionError:
        os._exit(1)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends: man 2 prctl, PR_SET_PDEATHSIG."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)
