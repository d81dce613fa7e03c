"""Run a program as a process of its own: its lines arrive as they come, it has a time limit, and dies with this one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO

from registry.errors import BuildError
from tasks.execution.interrupt import check_stopped, hold_ctrl_c

# Of Enginery's own packages.
ROOT = Path(__file__).parents[3]
# Ctrl-C reaches only the main thread.
_POLL_SECONDS = 0.5
_CHUNK_BYTES = 2**16


def run_process(
    command: Sequence[str],
    *,
    python_path: Sequence[Path] = (),
    errors: IO[bytes] | int,
    on_line: Callable[[str], object],
    limit_seconds: float,
) -> int:
    """Run a command, call `on_line` with each line of its output, and return its exit code.

    `python_path` is what its Python finds first; `errors` is where its stderr goes. It and all that it started are
    killed when this process ends, even by kill -9, and on any exception here, Ctrl-C included.

    Raises:
        BuildError: it ran for more than `limit_seconds`.
    """
    launch = [sys.executable, "-P", "-m", "tasks.execution.tools.launch", str(os.getpid()), *command]
    search = os.pathsep.join(map(str, (*python_path, ROOT)))
    process = None
    try:
        with hold_ctrl_c():  # a terminal sends it to both; the parent decides
            process = subprocess.Popen(
                launch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": search},
                start_new_session=True,  # one group, to be killed together
            )
        deadline = time.monotonic() + limit_seconds
        if _pass_lines(process, on_line, deadline):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(max(deadline - time.monotonic(), 0))
        raise BuildError(f"{Path(command[0]).name} has run for {limit_seconds:g} s, and was ended")
    finally:
        if process is not None:
            _end(process)


def _pass_lines(process: subprocess.Popen[bytes], on_line: Callable[[str], object], deadline: float) -> bool:
    """Pass lines on until there are no more; return False where the time is up before."""
    output = _output(process)
    rest = b""
    while time.monotonic() < deadline:
        ready = wait([output.fileno()], timeout=_POLL_SECONDS)
        check_stopped()
        if not ready:
            continue
        chunk = os.read(output.fileno(), _CHUNK_BYTES)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines if chunk else [*lines, rest]:
            if line:
                on_line(line.decode(errors="replace"))
        if not chunk:
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it and all others of its group have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _output(process).close()


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise ValueError("the process has no pipe for its output")
    return process.stdout
