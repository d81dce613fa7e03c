"""A server in front of a real one that lies about some of its answers: cut, endless, slow, or of another shape."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import requests

# Writes an answer, given the true one.
Lie = Callable[["LyingHandler", requests.Response], object]
_PASSED = ("Content-Type", "Content-Length", "Content-Range", "ETag")


class LyingServer(ThreadingHTTPServer):
    """Passes requests on to the server `behind`; `lies` says how to answer those whose path contains a text."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), LyingHandler)
        self.behind = behind
        self.lies: dict[str, list[Lie]] = {}
        self.stopped = Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def lie(self, about: str, lie: Lie, times: int = 1000) -> None:
        """Answer the next `times` requests whose path contains `about` by a lie."""
        self.lies[about] = [lie] * times

    def handle_error(self, *_: object) -> None:
        """Keep quiet about clients that hang up."""


class LyingHandler(BaseHTTPRequestHandler):
    """One request to a LyingServer."""

    server: LyingServer

    def do_GET(self) -> None:
        self._answer(requests.get(self.server.behind + self.path, headers=self._headers(), timeout=60))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(requests.post(self.server.behind + self.path, body, headers=self._headers(), timeout=60))

    def send_whole(self, true: requests.Response, content: bytes, length: int | None = None) -> None:
        """Send `content` with the true answer's headers, under a `length` of its own if one is given."""
        self.send_response(true.status_code)
        headers = {name: true.headers[name] for name in _PASSED if name in true.headers}
        headers["Content-Length"] = str(len(content) if length is None else length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_open(self) -> None:
        """Begin an answer of unknown length."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _headers(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.lower() != "host"}

    def _answer(self, true: requests.Response) -> None:
        lies = next((lies for about, lies in self.server.lies.items() if about in self.path and lies), None)
        self.close_connection = True
        # A client that has had enough hangs up.
        with suppress(OSError):
            if lies:
                lies.pop()(self, true)
            else:
                self.send_whole(true, true.content)


@contextmanager
def lying_server(behind: str) -> Iterator[LyingServer]:
    """Run a server that lies in front of the server at `behind`."""
    server = LyingServer(behind)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def status(code: int) -> Lie:
    """Answer with an error."""
    return lambda handler, _: handler.send_error(code)


def cut(kept: int = 20) -> Lie:
    """Send the first `kept` bytes under the true length, and hang up."""
    return lambda handler, true: handler.send_whole(true, true.content[:kept], len(true.content))


def body(content: bytes) -> Lie:
    """Answer with other bytes."""
    return lambda handler, true: handler.send_whole(true, content)


def raw(content: bytes) -> Lie:
    """Send bytes that need not be HTTP."""
    return lambda handler, _: handler.wfile.write(content)


def edited(edit: Callable[[Any], object]) -> Lie:
    """Answer with the true JSON as `edit` returns it."""
    return lambda handler, true: handler.send_whole(true, json.dumps(edit(true.json())).encode())


def endless(handler: LyingHandler, _: requests.Response) -> None:
    """Answer with JSON that does not end."""
    handler.send_open()
    handler.wfile.write(b'{"registered_models": [')
    while not handler.server.stopped.is_set():
        handler.wfile.write(b'{"aliases": []},' * 10_000)


def dripping(handler: LyingHandler, _: requests.Response) -> None:
    """Answer a byte at a time, for ever."""
    handler.send_open()
    _drip(handler, b" ")


def dripping_headers(handler: LyingHandler, _: requests.Response) -> None:
    """Send a header a byte at a time, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler, b"x")


def _drip(handler: LyingHandler, byte: bytes) -> None:
    while not handler.server.stopped.is_set():
        handler.wfile.write(byte)
        time.sleep(0.02)
