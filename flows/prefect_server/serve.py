"""Serve Prefect's API until the parent ends: a program of its own, `python serve.py SOCKET`, without our packages.

Its standard input is a pipe that only the parent holds open, so the kernel closes it whatever ends the parent. The
kernel's own signal for that (man 2 prctl, PR_SET_PDEATHSIG) comes with the end of the parent's *thread*.
"""

import os
import socket
import sys
from threading import Thread

STARTUP_FAILED = 3


def serve(listening: socket.socket) -> bool:
    """Serve on a bound socket until a signal; return whether the server ever started."""
    Thread(target=_end_with_parent, daemon=True).start()
    import uvicorn  # the parent may end while this is imported

    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    return server.started


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)  # SQLite's transactions survive it


if __name__ == "__main__":
    sys.exit(0 if serve(socket.socket(fileno=int(sys.argv[1]))) else STARTUP_FAILED)
