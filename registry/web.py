"""Ask an HTTP server for an answer that is bounded in size and time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from socket import SHUT_RDWR
from threading import Timer
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

from registry.errors import Interrupted, shown_address

# A page of a thousand events, each as long as it may be, has half of this.
MAX_ANSWER_BYTES = 16 * 2**20
# For a whole answer, however slowly its bytes come.
ANSWER_SECONDS = 60.0
# Without a byte.
_SILENCE_SECONDS = 10.0


def read_answer(request: Request) -> bytes:
    """Send a request and return its whole answer.

    Raises:
        Interrupted: the answer is no HTTP, too large, or takes too long.
        OSError, ValueError: the server is away, answers with an error, or the address is not valid.
    """
    where = shown_address(request.full_url)
    deadline, connections = time.monotonic() + ANSWER_SECONDS, list[HTTPConnection]()
    content = bytearray()
    try:
        with _stopped_at(deadline, connections), _open(request, connections) as answer:
            while chunk := answer.read1(2**16):
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise Interrupted(f"{where} answered with more than {MAX_ANSWER_BYTES} bytes: check the server")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except HTTPError as error:
        error.close()
        raise
    except InvalidURL as error:
        raise ValueError("not an address") from error
    except (OSError, HTTPException) as error:
        if time.monotonic() > deadline:
            raise Interrupted(f"{where} took more than {ANSWER_SECONDS:g} s to answer: check the server") from error
        if isinstance(error, OSError) and not isinstance(error, HTTPException):
            raise
        raise Interrupted(
            f"{where} broke its answer off, or does not speak HTTP ({type(error).__name__}): check the server"
        ) from error
    return bytes(content)


class _Http(HTTPHandler):
    def __init__(self, connections: list[HTTPConnection]) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_kept(HTTPConnection, self._connections), req)


class _Https(HTTPSHandler):
    def __init__(self, connections: list[HTTPConnection]) -> None:
        super().__init__()
        self._connections = connections

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_kept(HTTPSConnection, self._connections), req)


def _open(request: Request, connections: list[HTTPConnection]) -> HTTPResponse:
    opener = build_opener(_Http(connections), _Https(connections))
    answer: HTTPResponse = opener.open(request, timeout=_SILENCE_SECONDS)
    return answer


def _kept(kind: type[HTTPConnection], connections: list[HTTPConnection]) -> Any:
    def connect(host: str, **options: Any) -> HTTPConnection:
        connection = kind(host, **options)
        connections.append(connection)
        return connection

    return connect


@contextmanager
def _stopped_at(deadline: float, connections: list[HTTPConnection]) -> Iterator[None]:
    # http.client reads the headers in one call, and its time limit is for each byte.
    def stop() -> None:
        for connection in connections:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(SHUT_RDWR)

    timer = Timer(deadline - time.monotonic(), stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for connection in connections:
            connection.close()
