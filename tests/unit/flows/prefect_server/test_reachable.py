"""A Prefect server that does not answer, or refuses access, is one sentence."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from flows.prefect_server.reachable import require_prefect_server
from registry.errors import BadInput, EngineryError


class _Server(HTTPServer):
    status = 200


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def set_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that sets PREFECT_API_URL, also for a Prefect that was imported before."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with ExitStack() as stack:

        def set_to(address: str) -> None:
            monkeypatch.setenv("PREFECT_API_URL", address)
            stack.enter_context(temporary_settings({PREFECT_API_URL: address}))

        yield set_to


@pytest.mark.parametrize(("status", "advice"), [(401, "PREFECT_API_AUTH_STRING"), (404, "ends in /api")])
def test_a_server_that_refuses_is_named_with_what_to_set(
    server: _Server, set_address: Callable[[str], None], status: int, advice: str
) -> None:
    server.status = status
    set_address(f"http://127.0.0.1:{server.server_port}/api")
    with pytest.raises(EngineryError, match=advice) as refused, require_prefect_server("worker"):
        pytest.fail("it was let in")
    assert f"127.0.0.1:{server.server_port}/api" in str(refused.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "http://nobody:secret@127.0.0.1:9/api"])
def test_a_server_that_does_not_answer_is_named_without_its_password(
    set_address: Callable[[str], None], address: str
) -> None:
    set_address(address)
    with (
        pytest.raises(EngineryError, match="no Prefect server answers at 127") as refused,
        require_prefect_server("worker"),
    ):
        pytest.fail("it was let in")
    assert "secret" not in str(refused.value)


def test_a_server_that_stops_answering_within_the_block_is_named(
    server: _Server, set_address: Callable[[str], None]
) -> None:
    set_address(f"http://127.0.0.1:{server.server_port}/api")
    with pytest.raises(EngineryError, match="run the same command again to resume"), require_prefect_server("worker"):
        raise httpx.ConnectError("refused")


def test_without_an_address_it_is_said_who_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with (
        pytest.raises(BadInput, match="`enginery worker` needs a Prefect server: set PREFECT_API_URL"),
        require_prefect_server("worker"),
    ):
        pytest.fail("it was let in")


@pytest.mark.parametrize("name", ["PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"])
def test_certificates_that_are_not_there_are_named(
    set_address: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    set_address("https://127.0.0.1:9/api")
    for variable in ("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "/no/such/file.pem")
    with pytest.raises(BadInput, match=rf"{name} is /no/such/file\.pem"), require_prefect_server("worker"):
        pytest.fail("it was let in")
