"""Prefect without a server of one's own: its ephemeral server, with its data in ENGINERY_HOME."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from flows.prefect_server.reachable import check_address, require_prefect_server
from flows.prefect_server.room import check_room, describe_full_disks
from registry.errors import EngineryError, first_line


def configure_prefect(home: Path) -> None:
    """Set Prefect's variables for a release in this process; those of a configured server stay as they are.

    Raises:
        BadInput: PREFECT_API_URL is no URL.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Prefect logs a failure as a traceback; the command line prints it as a sentence.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING" if os.environ.get("ENGINERY_DEBUG") else "CRITICAL")
    if (server := os.environ.get("PREFECT_API_URL")) is not None:
        check_address(server)
    else:
        os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
        # The first start migrates a new database, which takes longer than Prefect's default on a busy machine.
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


def needs_database() -> bool:
    """Return whether the next start creates Prefect's database, which takes 20 s of one core."""
    return "PREFECT_API_URL" not in os.environ and not (Path(os.environ["PREFECT_HOME"]) / "prefect.db").exists()


def start_prefect() -> Callable[[], None]:
    """Start the ephemeral server in the background; return a function that waits for it, to call before the first flow.

    It is the server that Prefect itself would start at the first flow, in a process that ends with this one. A
    configured server is only checked. The function raises as `TemporaryServer.start` or `require_prefect_server`.

    Raises:
        EngineryError: a disk that the server writes to is full.
    """
    if "PREFECT_API_URL" in os.environ:
        return _check_server
    check_room()
    from flows.prefect_server.temporary import TemporaryServer  # two seconds, which a release found finished saves

    failed: list[Exception] = []

    def start() -> None:
        try:
            TemporaryServer().start()
        except Exception as error:  # noqa: BLE001 - raised by the wait
            failed.append(error)

    starting = Thread(target=start, daemon=True)
    starting.start()

    def wait() -> None:
        starting.join()
        if failed:
            raise failed[0]

    return wait


@contextmanager
def explain_failures() -> Iterator[None]:
    """Run a flow, and turn a failure of Prefect's server into one sentence.

    Raises:
        EngineryError: what the flow itself raised, where Prefect could not store that it failed; else that the server
            failed.
    """
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        before: BaseException | None = error
        while before is not None:
            if isinstance(before, EngineryError):
                raise before from error
            before = before.__context__
        answered = f"it answered {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else ""
        reason = describe_full_disks() or answered or first_line(error)
        mend = "look at the server's log" if "PREFECT_API_URL" in os.environ else "see what is wrong there"
        raise EngineryError(
            f"Prefect's server failed in mid-release ({reason}): {mend}; finished work is kept, run the same command "
            "again to resume"
        ) from error


def _check_server() -> None:
    with require_prefect_server("release"):
        return
