"""A registry that does not answer is reported at once, in one sentence without a password."""

import os
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from registry.errors import BadInput, EngineryError
from registry.mlflow import connect
from registry.mlflow.connect import NotReachable, check_reachable, name_driver, open_store
from tests.support.authority import make_authority
from tests.support.servers import free_port


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("http://me:secret@127.0.0.1:{port}", "127.0.0.1:{port}"),
        ("http://no-such-host.invalid:5000/", "no-such-host.invalid:5000"),
        ("postgresql+psycopg://me:secret@127.0.0.1:{port}/mlflow", "Connection refused"),
    ],
)
def test_unreachable_registry_is_reported_at_once_and_without_a_password(
    uri: str, named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, started = free_port(), time.monotonic()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=port))
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path))
    with pytest.raises(EngineryError) as caught:
        open_store()
    assert time.monotonic() - started < 10
    assert named.format(port=port) in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        *("htp://x", "http://", "http://me:secret@", "http://[::1", "http://h:word", "http://h:99999", "http://a b"),
        *("mssql+nosuchdriver://db/x", "postgresql+nosuchdriver://me:secret@h/d", "postgresql://me:secret@h:word/d"),
        *("databricks", "databricks://profile", "uc:oss", "foo://me:secret@x", "s3://bucket/x", "hello", "   ", ":"),
        *("file:relative", "file:///srv/x", "/srv/x", "sqlite://", "sqlite:///", "sqlite+nosuchdriver:///x.db"),
    ],
)
def test_invalid_address_is_one_sentence(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path))
    with pytest.raises(EngineryError) as caught:
        open_store()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", [".", "pipe", "none/x.db", "loop/x.db", "text", "x" * 300])
def test_an_sqlite_registry_that_cannot_be_opened_is_refused_at_once(name: str, tmp_path: Path) -> None:
    # mlflow would try for two minutes, and wait for ever at the pipe.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "text").write_text("no database\n" * 100, encoding="utf-8")
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_URI"):
        check_reachable(f"sqlite:///{tmp_path / name}")


@pytest.mark.parametrize(
    ("installed", "named"),
    [
        (("psycopg",), "postgresql+psycopg://me@h/d"),
        (("psycopg", "psycopg2"), "postgresql://me@h/d"),
        (("psycopg2",), "postgresql://me@h/d"),
        ((), "postgresql://me@h/d"),
    ],
)
def test_the_driver_of_postgresql_is_the_one_that_is_installed(
    installed: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "find_spec", lambda module: module if module in installed else None)
    assert name_driver("postgresql://me@h/d") == named
    for other in ("postgresql+asyncpg://h/d", "mysql://h/d", "http://h", ""):
        assert name_driver(other) == other


@pytest.mark.parametrize("place", ["/proc/enginery", "{}/file/home"])
def test_a_registry_that_cannot_be_made_is_refused_at_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENGINERY_HOME", place.format(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BadInput, match=r"ENGINERY_HOME is .* may not write"):
        open_store()


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""


class _Quiet(HTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that does not trust it is no news."""


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A server's address, and the file of the private authority that vouches for it."""
    for name in ("REQUESTS_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"):
        monkeypatch.delenv(name, raising=False)
    authority = make_authority(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with _Quiet(("127.0.0.1", 0), _Healthy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"https://me:secret@localhost:{server.server_port}", str(authority)
        server.shutdown()
        thread.join()


def test_server_of_an_unknown_authority_is_reported_at_once(private: tuple[str, str]) -> None:
    # mlflow would try again for four minutes.
    with pytest.raises(EngineryError, match=r"not trusted .certificate verify failed: .* REQUESTS_CA_BUNDLE") as caught:
        check_reachable(private[0])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH"])
def test_authority_is_read_from_either_variable(
    private: tuple[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, private[1])
    check_reachable(private[0])
    monkeypatch.setenv(name, "/no/such/file.pem")
    with pytest.raises(BadInput, match=rf"/no/such/file\.pem: correct .*{name}"):
        check_reachable(private[0])


def test_a_driver_that_is_missing_is_named() -> None:
    with pytest.raises(BadInput, match="pymssql"):
        check_reachable("mssql+pymssql://db/x")


def test_registry_that_answers_anything_is_reachable(server_uri: str, postgres_uri: str, tmp_path: Path) -> None:
    check_reachable(server_uri)
    check_reachable(f"{server_uri}/nowhere")
    check_reachable(postgres_uri)
    check_reachable(f"sqlite:///{tmp_path}/new.db")


def test_job_waits_for_a_registry_that_restarts() -> None:
    port, started = free_port(), threading.Event()

    def answer_one() -> None:
        started.wait(10)
        with HTTPServer(("127.0.0.1", port), _Healthy) as server:
            server.handle_request()

    thread = threading.Thread(target=answer_one)
    thread.start()
    threading.Timer(0.3, started.set).start()
    check_reachable(f"http://127.0.0.1:{port}", patience_seconds=10, pause_seconds=0.05)
    thread.join()
    assert started.is_set()
    with pytest.raises(NotReachable):
        check_reachable(f"http://127.0.0.1:{port}", patience_seconds=0.1, pause_seconds=0.05)


@pytest.mark.parametrize("uri", ["htp://ana:s3cret@h:5000", "htps://h/?token=s3cret"])
def test_a_password_in_an_address_of_a_wrong_kind_is_not_shown(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="is not the address of a registry") as caught:
        open_store()
    assert "s3cret" not in str(caught.value)
