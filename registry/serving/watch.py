"""Follow an alias on a serving host: place each version beside the last, swap `current`, check, and go back by itself.

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
# A registry that is down is asked less and less often, up to this.
MAX_WAIT_SECONDS = 300.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """How to follow. `hook` tells the server of a swap, `health` says whether it serves: commands, run without a shell.

    Both get MODEL VERSION PATH as arguments and ENGINERY_MODEL, ENGINERY_VERSION, ENGINERY_PATH and
    ENGINERY_PREVIOUS (a version or empty) in their environment; an exit code other than 0, or more than
    `command_seconds`, is a failure. `keep` is how many versions stay on the disk.
    """

    interval_seconds: float = 30.0
    keep: int = 3
    hook: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    command_seconds: float = 120.0


@dataclass(frozen=True)
class Followed:
    """What one look came to: what `current` is, and the version refused by its hook or health check, if any."""

    serving: int | None
    refused: int | None = None


def watch(look: Callable[[], Fetched], home: Path, options: Watch, wait: Callable[[float], bool]) -> None:
    """Follow until `wait` says to stop; `look` fetches what the alias points at, `home` is the model's folder.

    An error of the registry is logged and waited out, longer each time. `wait` gets seconds, and returns whether to
    stop. What `look` refuses for good (signature, replay) is logged each time too: somebody has to act.
    """
    refused: int | None = None
    errors = 0
    while True:
        try:
            refused = follow(look(), home, options, refused).refused
            errors = 0
        except EngineryError as error:
            errors += 1
            _log.warning("%s", error)
        if wait(min(options.interval_seconds * 2 ** min(errors, 10), max(MAX_WAIT_SECONDS, options.interval_seconds))):
            return


def follow(fetched: Fetched, home: Path, options: Watch, refused: int | None = None) -> Followed:
    """Make `fetched` current, unless it is, or is the version that was `refused` before.

    Where the hook or the health check fails, the link goes back to the version before, and the hook is told so.

    Raises:
        EngineryError: the folder cannot be written.
    """
    before = current_version(home)
    if fetched.version == before:
        return Followed(before)
    if fetched.version == refused:
        return Followed(before, refused)
    with _plainly(home):
        healthy = False
        try:
            _point(home, fetched.version)
            healthy = _run(options.hook, fetched, before, options) and _run(options.health, fetched, before, options)
        finally:
            # Also when it is interrupted: an engine that nobody has found healthy does not stay.
            if not healthy:
                _go_back(fetched, home, before, options)
        if not healthy:
            return Followed(before, fetched.version)
        _log.info("%s: version %s is current, after %s", fetched.model, fetched.version, before or "none")
        _prune(home, options.keep, {fetched.version, before})
    return Followed(fetched.version)


def current_version(home: Path) -> int | None:
    """The version that `current` points at; None where it points at none."""
    with suppress(OSError):
        name = str((home / CURRENT).readlink())
        return int(name) if name.isdecimal() and (home / name).is_dir() else None
    return None


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what is half-way is undone or kept for the next time."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _go_back(fetched: Fetched, home: Path, before: int | None, options: Watch) -> None:
    _log.error("%s: version %s is not healthy; back to %s", fetched.model, fetched.version, before or "none")
    if before is None:
        (home / CURRENT).unlink(missing_ok=True)
        return
    _point(home, before)
    old = Fetched(home / str(before), before, "", fetched.model, reused=True)
    _run(options.hook, old, fetched.version, options)


def _point(home: Path, version: int) -> None:
    made = home / f".incoming-{uuid4().hex}"
    with locked(home):
        made.symlink_to(str(version))
        made.rename(home / CURRENT)


def _prune(home: Path, keep: int, serving: set[int | None]) -> None:
    with locked(home):
        placed = sorted((int(path.name) for path in home.iterdir() if path.name.isdecimal()), reverse=True)
        for version in placed[keep:]:
            if version not in serving:
                discard(home / str(version))


def _run(command: tuple[str, ...], fetched: Fetched, before: int | None, options: Watch) -> bool:
    if not command:
        return True
    told = {"MODEL": fetched.model, "VERSION": str(fetched.version), "PATH": str(fetched.path)}
    environment = {f"ENGINERY_{name}": value for name, value in (*told.items(), ("PREVIOUS", str(before or "")))}
    try:
        code = _exit_code((*command, *told.values()), environment, options.command_seconds)
    except OSError as error:
        _log.error("%s cannot be run: %s", command[0], error.strerror)  # the sentence says it all
        return False
    if code != 0:
        _log.error("%s of version %s ended with %s", command[0], fetched.version, code)
    return code == 0


def _exit_code(command: tuple[str, ...], environment: Mapping[str, str], seconds: float) -> int | str:
    # A session of its own: what the command started is ended with it.
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
def _plainly(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineryError(f"{home} cannot be written ({error.strerror or error}): fix its rights or space") from error
