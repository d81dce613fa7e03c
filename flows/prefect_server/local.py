"""Prefect without a server: its own ephemeral one, kept in ENGINERY_HOME and started before it is needed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

from flows.prefect_server.reachable import prefect_answers
from tasks.execution.interrupt import hold_ctrl_c


def configure(home: Path) -> None:
    """Prefect's settings for a release in this process; a configured server is left alone."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Its log of a failure is a traceback; ours is the sentence.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING" if os.environ.get("ENGINERY_DEBUG") else "CRITICAL")
    if "PREFECT_API_URL" not in os.environ:
        home.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only
        os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
        # The first start migrates a new database, which takes longer than Prefect's default on a busy machine.
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


def is_new() -> bool:
    """Whether the next start makes Prefect's database, which takes 20 s of one core."""
    return "PREFECT_API_URL" not in os.environ and not (Path(os.environ["PREFECT_HOME"]) / "prefect.db").exists()


def start() -> Callable[[], None]:
    """Start the ephemeral server beside what this process does next; call the result before the first flow.

    It is the server that Prefect starts itself at the first flow, in its own process: one a process, ended with it.
    A configured server is only asked whether it answers; the result raises as `prefect_answers`.
    """
    if "PREFECT_API_URL" in os.environ:
        return _ask
    from prefect.server.api.server import SubprocessASGIServer  # two seconds that a release found finished does not pay

    def serve() -> None:
        # A terminal sends Ctrl-C to it too: it would be gone, and our flow would try for minutes to tell it of its end.
        with suppress(KeyboardInterrupt), hold_ctrl_c():
            SubprocessASGIServer().start()

    # What goes wrong in it is said by the flow, which starts it again.
    starting = Thread(target=serve, daemon=True)
    starting.start()
    return starting.join


def _ask() -> None:
    with prefect_answers("a release is told to"):
        return
