"""A registry that does not answer is said at once, in one sentence without a password."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Timer

import pytest

from flows.commands.shared import open_store
from registry.errors import BadInput, EngineryError
from registry.reachable import check_reachable
from tests.servers import free_port


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("http://me:secret@127.0.0.1:{port}", "127.0.0.1:{port}"),
        ("http://no-such-host.invalid:5000/", "no-such-host.invalid:5000"),
        ("postgresql+psycopg://me:secret@127.0.0.1:{port}/mlflow", "Connection refused"),
    ],
)
def test_nobody_there_is_said_at_once_and_without_a_password(
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


@pytest.mark.parametrize("uri", ["htp://x", "http://", "mssql+nosuchdriver://db/x"])
def test_an_address_that_is_none_is_one_sentence(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path))
    with pytest.raises(EngineryError) as caught:
        open_store()
    assert "\n" not in str(caught.value)


def test_a_driver_that_is_missing_is_named() -> None:
    with pytest.raises(BadInput, match="pymssql"):
        check_reachable("mssql+pymssql://db/x")


def test_who_answers_is_reachable_whatever_they_say(server_uri: str, postgres_uri: str) -> None:
    check_reachable(server_uri)
    check_reachable(f"{server_uri}/nowhere")
    check_reachable(postgres_uri)
    check_reachable("sqlite:////not/looked/at")


def test_a_registry_that_is_being_restarted_is_waited_for_by_who_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.reachable._PAUSE_SECONDS", 0.05)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler, bind_and_activate=False) as server:
        server.server_bind()  # nobody listens yet: who connects is refused

        def listen() -> None:
            server.server_activate()
            server.handle_request()

        restart = Timer(0.3, listen)
        restart.start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(EngineryError, match="no MLflow server answers"):
            check_reachable(address)
        check_reachable(address, wait_seconds=30.0)
        restart.join()
