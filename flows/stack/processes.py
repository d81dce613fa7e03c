"""The processes of a team stack: started by one command, found and stopped by another, down to the last child.

`enginery up` ends while its servers keep running, and may be killed at any time. So each process carries a mark in its
environment, which its children inherit: a child in a session of its own is found by it, and no process that somebody
else started is ever touched. Linux only: the marks are read from /proc.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from registry.errors import BadInput, EngineryError
from registry.host.durable import replace_file
from registry.host.process import start_of

MARK = "ENGINERY_STACK"
STOP_SECONDS = 20.0
_POLL_SECONDS = 0.1
# Enough for the last line, without reading a log that grew for weeks.
_TAIL_BYTES = 16 * 1024


@dataclass(frozen=True)
class Service:
    """A server or worker: its command, the check that it is ready, and the signal that shuts it down in order."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    is_ready: Callable[[], bool]
    stop_signal: int = signal.SIGTERM
    user: str | None = None
    port: int | None = None
    start_seconds: float = 180.0


class _Record(BaseModel):
    """One started process: its id, its start time (ids are reused), and the signal that shuts it down in order."""

    model_config = ConfigDict(extra="forbid")

    pid: int
    started: str
    stop_signal: int


class State(BaseModel):
    """ENGINERY_HOME/stack.json: the mark of all processes, the options of the last start, and the services by name."""

    model_config = ConfigDict(extra="forbid")

    mark: str
    options: dict[str, str]
    services: dict[str, _Record]


class Processes:
    """The processes of the stack of one ENGINERY_HOME."""

    def __init__(self, state_file: Path, logs: Path, stop_seconds: float = STOP_SECONDS) -> None:
        """Read the state file, if there is one.

        Args:
            state_file: where the state is kept between commands.
            logs: folder of the services' logs.
            stop_seconds: how long a process may take to shut down before it is killed.

        Raises:
            BadInput: the state file cannot be read.
        """
        self._file, self._logs, self._stop_seconds = state_file, logs, stop_seconds
        self.state = _read_state(state_file)

    @property
    def options(self) -> dict[str, str]:
        """The options that the stack was last started with."""
        return self.state.options

    def remember_options(self, options: Mapping[str, str]) -> None:
        """Save the options and the mark, before the first process starts."""
        self.state = self.state.model_copy(update={"options": dict(options)})
        self._save()

    def is_running(self, name: str) -> bool:
        """Return whether the process that was started under this name lives."""
        record = self.state.services.get(name)
        return record is not None and record.started != "" and start_of(record.pid) == record.started

    def log_file(self, name: str) -> Path:
        """Return the file that a service's output goes to."""
        return self._logs / f"{name}.log"

    def mark_environment(self, name: str, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment with the mark by which the service's processes are found."""
        return {**environment, MARK: f"{self.state.mark}/{name}"}

    def start(self, service: Service) -> None:
        """Start a service that is not running, after killing what its predecessor left; `wait` for it afterwards.

        Raises:
            BadInput: another program uses its port.
            EngineryError: its program cannot be started.
        """
        self._kill_marked(service.name)
        _check_port(service)
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log_file(service.name).open("ab") as log:
            try:
                process = subprocess.Popen(
                    service.command,
                    env=self.mark_environment(service.name, service.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    user=service.user,
                    cwd="/" if service.user else None,
                )
            except OSError as error:
                raise EngineryError(f"{service.name} cannot be started: {error}; check its installation") from error
        record = _Record(pid=process.pid, started=start_of(process.pid), stop_signal=service.stop_signal)
        self.state.services[service.name] = record
        self._save()

    def wait(self, service: Service) -> None:
        """Wait until a service is ready.

        Raises:
            EngineryError: it exited, or was not ready in time; the message ends with the last line of its log.
        """
        deadline = time.monotonic() + service.start_seconds
        while not service.is_ready():
            if not self.is_running(service.name):
                raise EngineryError(f"{service.name} exited before it was ready: {self._read_last_line(service.name)}")
            if time.monotonic() > deadline:
                raise EngineryError(
                    f"{service.name} is not ready after {service.start_seconds:.0f} s: "
                    f"{self._read_last_line(service.name)}; stop the other services with `enginery down`"
                )
            time.sleep(_POLL_SECONDS)

    def run(self, name: str, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """Run a command to its end.

        Raises:
            EngineryError: it failed; the message ends with the last line of its log.
        """
        with self.log_file(name).open("wb") as log:
            done = subprocess.run(
                command,
                env=self.mark_environment(name, environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
                timeout=600,
            )
        if done.returncode:
            raise EngineryError(f"{name} failed: {self._read_last_line(name)}")

    def stop(self, name: str) -> None:
        """Shut a service down in order, then kill what is left of it, in its process group or out of it."""
        if self.is_running(name):
            record = self.state.services[name]
            leader = record.pid
            with suppress(ProcessLookupError):
                os.kill(leader, record.stop_signal)
            deadline = time.monotonic() + self._stop_seconds
            while self.is_running(name) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            # The group's id is its leader's, which cannot have been reused while we waited for the leader.
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        self._kill_marked(name)
        self.state.services.pop(name, None)
        self._save()

    def sweep(self) -> None:
        """Kill every process that carries the mark, of any service."""
        self._kill_marked("")

    def _kill_marked(self, name: str) -> None:
        mark, deadline = f"{MARK}={self.state.mark}/{name}", time.monotonic() + self._stop_seconds
        while (pids := _find_marked(mark, exact=bool(name))) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _read_last_line(self, name: str) -> str:
        tail = self.log_file(name).read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        lines = [" ".join(line.split()) for line in tail.split("\n") if line.strip()]
        return f"{lines[-1][:300] if lines else 'it logged nothing'} (see {self.log_file(name)})"

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._file, json.dumps(self.state.model_dump(), indent=1).encode(), mode=0o600)


def _read_state(file: Path) -> State:
    try:
        return State.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return State(mark=secrets.token_hex(16), options={}, services={})
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not what `enginery up` writes"
        raise BadInput(f"{file} cannot be read: {reason}; stop the stack's processes by hand and remove it") from error


def _check_port(service: Service) -> None:
    if service.port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", service.port))
        except OSError as error:
            raise BadInput(
                f"port {service.port} is in use by another program: choose a free one with --{service.name}-port"
            ) from error


def _find_marked(mark: str, *, exact: bool) -> list[int]:
    """Return the ids of the processes whose environment has the mark, or begins one with it."""
    pids = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended, or is another user's
        if any(variable == mark.encode() if exact else variable.startswith(mark.encode()) for variable in variables):
            pids.append(int(folder.name))
    return pids
