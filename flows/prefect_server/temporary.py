"""Prefect's temporary server in a process that ends with this one, whatever ends it, and writes to no stream of ours.

Prefect's own class leaves its server running behind a `kill -9`, with the caller's output open, and starts it again and
again without end where its database cannot be made.
"""

import atexit
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO

import httpx
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, get_current_settings

from flows.prefect_server import serve
from flows.prefect_server.room import describe_full_disks
from registry.errors import EngineryError

_POLL_SECONDS = 0.1
_LINES_KEPT = 200
_EXCEPTION = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception): .+")


class TemporaryServer(SubprocessASGIServer):
    """The instance that Prefect uses too, once it exists: Prefect keeps one per process."""

    _output: deque[str]

    def start(self, timeout: int | None = None) -> None:
        """Start the server, once, and wait until it answers.

        Raises:
            EngineryError: it ended before, or did not answer within `timeout` seconds (Prefect's setting by default).
        """
        if self.running:
            return
        self.running, self._output = True, deque(maxlen=_LINES_KEPT)
        atexit.register(self.stop)
        try:
            self.server_process = self._spawn()
            self._await_ready(timeout or PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server, if it runs."""
        process = self.server_process
        super().stop()
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def describe_failure(self) -> str:
        """Return the last exception that the server wrote, or its last line."""
        lines = list(self._output)
        found = [line for line in lines if _EXCEPTION.fullmatch(line)] or lines
        return found[-1][:300] if found else "it wrote nothing"

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Bound here: a port that is only chosen here could be taken before the server has it.
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = int(listening.getsockname()[1])
            process = subprocess.Popen(
                [sys.executable, "-P", str(Path(serve.__file__)), str(listening.fileno())],
                env={
                    **os.environ,
                    **get_current_settings().to_environment_variables(exclude_unset=True),
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                },
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A signal to our process group, as of Ctrl-C, would end it before our flow has reported its end.
                start_new_session=True,
            )
        Thread(target=_keep_lines, args=(process.stdout, self._output), daemon=True).start()
        return process

    def _await_ready(self, seconds: float) -> None:
        deadline, process = time.monotonic() + seconds, self.server_process
        with httpx.Client(trust_env=False) as client:
            while process is not None and process.poll() is None and time.monotonic() < deadline:
                with suppress(httpx.TransportError):
                    if client.get(f"{self.api_url}/health").is_success:
                        return
                time.sleep(_POLL_SECONDS)
        ended = process is None or process.poll() is not None
        state = "ended as it started" if ended else f"does not answer after {seconds:.0f} s"
        reason = describe_full_disks() or self.describe_failure()
        raise EngineryError(
            f"Prefect's temporary server, with its data in {os.environ.get('PREFECT_HOME', '~/.prefect')}, {state} "
            f"({reason}): mend that, or set PREFECT_API_URL to a Prefect server"
        )


def _keep_lines(output: IO[bytes], lines: deque[str]) -> None:
    """Read a server's output to its end, so that it never waits for a reader."""
    with output:
        for line in output:
            if text := line.decode(errors="replace").strip():
                lines.append(text)
