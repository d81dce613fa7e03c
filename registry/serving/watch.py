"""Follow an alias on a serving host: place each version beside the last, swap `current`, check it, roll it back.

`MODEL/current` is a relative link, replaced in one rename: a reader that resolves it once has a whole bundle.
"""

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from registry.errors import EngineryError
from registry.serving.fetch import Fetched, discard, locked

CURRENT = "current"
# While the registry is down, the polls become rarer, up to this.
MAX_WAIT_SECONDS = 300.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """The settings of a watch. `hook` tells the server about a swap; `health` checks whether it serves.

    Both are commands, run without a shell. They get MODEL VERSION PATH as arguments and ENGINERY_MODEL,
    ENGINERY_VERSION, ENGINERY_PATH and ENGINERY_PREVIOUS (a version or empty) in their environment. An exit code other
    than 0 is a failure, and so is running longer than `command_seconds`. `keep` is how many versions stay on the disk.
    """

    interval_seconds: float = 30.0
    keep: int = 3
    hook: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    command_seconds: float = 120.0


@dataclass(frozen=True)
class Followed:
    """The result of one poll: the version at `current`, and the one that its hook or health check refused, if any."""

    serving: int | None
    refused: int | None = None


def watch(
    fetch_current: Callable[[], Fetched], model_folder: Path, options: Watch, wait: Callable[[float], bool]
) -> None:
    """Follow an alias until `wait` says to stop.

    An error of the registry is logged and waited out, longer each time. Permanent refusals (signature, replay) are
    logged each time too: somebody has to act.

    Args:
        fetch_current: fetches the version that the alias points at.
        model_folder: the folder that holds the model's versions.
        options: how to follow.
        wait: gets seconds to sleep, and returns whether to stop.
    """
    refused: int | None = None
    errors = 0
    while True:
        try:
            refused = follow(fetch_current(), model_folder, options, refused).refused
            errors = 0
        except EngineryError as error:
            errors += 1
            _log.warning("%s", error)
        if wait(min(options.interval_seconds * 2 ** min(errors, 10), max(MAX_WAIT_SECONDS, options.interval_seconds))):
            return


def follow(fetched: Fetched, model_folder: Path, options: Watch, refused: int | None = None) -> Followed:
    """Make `fetched` current, unless it already is, or is the version that was `refused` before.

    If the hook or the health check fails, the link goes back to the previous version, and the hook runs for that one.

    Raises:
        EngineryError: the folder cannot be written.
    """
    previous = current_version(model_folder)
    if fetched.version == previous:
        return Followed(previous)
    if fetched.version == refused:
        return Followed(previous, refused)
    with _explain_disk_errors(model_folder):
        healthy = False
        try:
            _point_current(model_folder, fetched.version)
            healthy = all(
                _run_command(command, model_folder, fetched.version, previous, options.command_seconds)
                for command in (options.hook, options.health)
            )
        finally:
            # Also after an interrupt: an engine that passed no health check must not stay.
            if not healthy:
                _go_back(model_folder, fetched.version, previous, options)
        if not healthy:
            return Followed(previous, fetched.version)
        _log.info("%s: version %s is current, after %s", model_folder.name, fetched.version, previous or "none")
        _prune_versions(model_folder, options.keep, {fetched.version, previous})
    return Followed(fetched.version)


def current_version(model_folder: Path) -> int | None:
    """Return the version that `current` points at; None where it points elsewhere or is missing."""
    with suppress(OSError):
        name = str((model_folder / CURRENT).readlink())
        return int(name) if name.isdecimal() and (model_folder / name).is_dir() else None
    return None


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Make SIGTERM end the block as Ctrl-C does, so that its clean-up runs."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _go_back(model_folder: Path, version: int, previous: int | None, options: Watch) -> None:
    _log.error("%s: version %s is not healthy; back to %s", model_folder.name, version, previous or "none")
    if previous is None:
        (model_folder / CURRENT).unlink(missing_ok=True)
        return
    _point_current(model_folder, previous)
    _run_command(options.hook, model_folder, previous, version, options.command_seconds)


def _point_current(model_folder: Path, version: int) -> None:
    link = model_folder / f".incoming-{uuid4().hex}"
    with locked(model_folder):
        link.symlink_to(str(version))
        link.rename(model_folder / CURRENT)


def _prune_versions(model_folder: Path, keep: int, serving: set[int | None]) -> None:
    with locked(model_folder):
        placed = sorted((int(path.name) for path in model_folder.iterdir() if path.name.isdecimal()), reverse=True)
        for version in placed[keep:]:
            if version not in serving:
                discard(model_folder / str(version))


def _run_command(
    command: tuple[str, ...], model_folder: Path, version: int, previous: int | None, seconds: float
) -> bool:
    if not command:
        return True
    path = model_folder / str(version)
    arguments = {"MODEL": model_folder.name, "VERSION": str(version), "PATH": str(path)}
    variables = {**arguments, "PREVIOUS": str(previous or "")}
    environment = {f"ENGINERY_{name}": value for name, value in variables.items()}
    try:
        result = _wait_for_exit((*command, *arguments.values()), environment, seconds)
    except OSError as error:
        _log.error("%s cannot be run: %s", command[0], error.strerror)  # the operator needs no traceback
        return False
    if result != 0:
        _log.error("%s of version %s ended with %s", command[0], version, result)
    return result == 0


def _wait_for_exit(command: tuple[str, ...], environment: Mapping[str, str], seconds: float) -> int | str:
    # In a session of its own, so that the processes the command starts end with it.
    with subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return f"no answer in {seconds:g} s"
            raise


@contextmanager
def _explain_disk_errors(model_folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineryError(
            f"{model_folder} cannot be written ({error.strerror or error}): fix its permissions, or free space"
        ) from error
