"""The processes of a team stack: started, found again by another command, and stopped to the last one.

`enginery up` ends while its servers go on, and may be killed at any time. So each process carries a mark in its
environment, which its children inherit: what a server started in a session of its own is found by it, and nothing
that anybody else started is ever touched. Linux only: /proc tells.
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
# Enough for the last line of a log that grew for weeks.
_LAST_BYTES = 16 * 1024


@dataclass(frozen=True)
class Service:
    """A server or worker: how it is started, when it is well, and which signal makes it end in order."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    well: Callable[[], bool]
    stop_signal: int = signal.SIGTERM
    user: str | None = None
    port: int | None = None
    start_seconds: float = 180.0


class _Record(BaseModel):
    """One started process: its id and its start, since ids come round again, and the signal that ends it in order."""

    model_config = ConfigDict(extra="forbid")

    pid: int
    started: str
    stop_signal: int


class State(BaseModel):
    """ENGINERY_HOME/stack.json: the mark of all processes, what they were started with, and their leaders by name."""

    model_config = ConfigDict(extra="forbid")

    mark: str
    options: dict[str, str]
    services: dict[str, _Record]


class Processes:
    """The processes of the stack of one ENGINERY_HOME."""

    def __init__(self, state_file: Path, logs: Path) -> None:
        """Read what is there.

        Raises:
            BadInput: the state file is not one.
        """
        self._file, self._logs = state_file, logs
        self.state = _read(state_file)

    @property
    def options(self) -> dict[str, str]:
        """What the stack was last started with."""
        return self.state.options

    def remember(self, options: Mapping[str, str]) -> None:
        """Keep what it is started with, and the mark, before there is any process."""
        self.state = self.state.model_copy(update={"options": dict(options)})
        self._save()

    def is_running(self, name: str) -> bool:
        """Whether the process that was started under this name lives."""
        record = self.state.services.get(name)
        return record is not None and record.started != "" and start_of(record.pid) == record.started

    def log(self, name: str) -> Path:
        """The file that everything under this name is written to."""
        return self._logs / f"{name}.log"

    def environment(self, name: str, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process under this name."""
        return {**environment, MARK: f"{self.state.mark}/{name}"}

    def start(self, service: Service) -> None:
        """Start a service that does not run, after whatever a dead one left; `wait` for it after.

        Raises:
            BadInput: another program has its port.
            EngineryError: there is no such program.
        """
        self._sweep(service.name)
        _check_port(service)
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(service.name).open("ab") as log:
            try:
                process = subprocess.Popen(
                    service.command,
                    env=self.environment(service.name, service.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    user=service.user,
                    cwd="/" if service.user else None,
                )
            except OSError as error:
                raise EngineryError(f"{service.name} cannot be started: {error}") from error
        record = _Record(pid=process.pid, started=start_of(process.pid), stop_signal=service.stop_signal)
        self.state.services[service.name] = record
        self._save()

    def wait(self, service: Service) -> None:
        """Wait until a service is well.

        Raises:
            EngineryError: it ended, or was not well in time; its log says more.
        """
        deadline = time.monotonic() + service.start_seconds
        while not service.well():
            if not self.is_running(service.name):
                raise EngineryError(f"{service.name} ended at once: {self._last_words(service.name)}")
            if time.monotonic() > deadline:
                raise EngineryError(
                    f"{service.name} is not well after {service.start_seconds:.0f} s: "
                    f"{self._last_words(service.name)}; `enginery down` stops what runs"
                )
            time.sleep(_POLL_SECONDS)

    def run(self, name: str, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """Run a step to its end.

        Raises:
            EngineryError: it failed; its log says more.
        """
        with self.log(name).open("wb") as log:
            done = subprocess.run(
                command,
                env=self.environment(name, environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
                timeout=600,
            )
        if done.returncode:
            raise EngineryError(f"{name} failed: {self._last_words(name)}")

    def stop(self, name: str) -> None:
        """End a service in order, and then whatever it left, in its process group or out of it."""
        if self.is_running(name):
            record = self.state.services[name]
            leader = record.pid
            with suppress(ProcessLookupError):
                os.kill(leader, record.stop_signal)
            deadline = time.monotonic() + STOP_SECONDS
            while self.is_running(name) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            # The group's number is its leader's, which nobody else can have been given while we looked at it.
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        self._sweep(name)
        self.state.services.pop(name, None)
        self._save()

    def sweep(self) -> None:
        """End every process that carries the mark, whatever its name."""
        self._sweep("")

    def _sweep(self, name: str) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while (left := _marked(f"{MARK}={self.state.mark}/{name}", exact=bool(name))) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _last_words(self, name: str) -> str:
        written = self.log(name).read_bytes()[-_LAST_BYTES:].decode(errors="replace")
        said = [" ".join(line.split()) for line in written.split("\n") if line.strip()]
        return f"{said[-1][:300] if said else 'it said nothing'} (see {self.log(name)})"

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._file, json.dumps(self.state.model_dump(), indent=1).encode(), mode=0o600)


def _read(file: Path) -> State:
    try:
        return State.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return State(mark=secrets.token_hex(16), options={}, services={})
    except (OSError, ValidationError) as error:
        said = str(error).splitlines()[0]
        raise BadInput(f"{file} cannot be read: {said}; stop the stack's processes by hand and remove it") from error


def _check_port(service: Service) -> None:
    if service.port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", service.port))
        except OSError as error:
            raise BadInput(
                f"port {service.port} is taken by another program: name a free one with --{service.name}-port"
            ) from error


def _marked(mark: str, *, exact: bool) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended, or is another user's
        if any(each == mark.encode() if exact else each.startswith(mark.encode()) for each in variables):
            found.append(int(folder.name))
    return found
