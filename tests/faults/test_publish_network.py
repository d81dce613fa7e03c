"""A real MLflow server behind a connection that fails: lost answers, and a registry that becomes unreachable."""

import http.client
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from registry.bundle.manifest import verify_bundle
from registry.errors import EngineryError
from registry.mlflow.store import MlflowStore
from registry.records import EngineVersion
from tests.faults.test_publish_faults import assert_only_whole_versions, publish_as_a_release_does
from tests.support.servers import mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Proxy:
    """Between client and server. `fate(n, method, path)` of the n-th request: "", "down" or "lost" (after it)."""

    def __init__(self, port: int) -> None:
        self.fate: Callable[[int, str, str], str] = lambda *_: ""
        self.seen: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.split("?")[0]
                proxy.seen.append(f"{self.command} {path}")
                fate = proxy.fate(len(proxy.seen), self.command, path)
                if fate == "down":
                    self.close_connection = True
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                upstream.close()
                self.send_response(502 if fate == "lost" else answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type") or "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                """Not on the test's output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self, fate: Callable[[int, str, str], str] = lambda *_: "") -> None:
        self.seen, self.fate = [], fate


@pytest.fixture(scope="module")
def server_port(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated_database, folder / "mlflow.db")
    with mlflow_server(folder / "mlflow.db", str(folder / "artifacts")) as address:
        yield int(address.rpartition(":")[2])


@pytest.fixture
def proxy(server_port: int) -> Iterator[Proxy]:
    with Proxy(server_port) as proxy:
        yield proxy


class Publisher:
    """Publishes a model of this test through the proxy, and reads it without the proxy."""

    def __init__(self, folder: Path, model: str, proxy: Proxy, port: int) -> None:
        self.folder, self.model = folder, model
        self.through = MlflowStore(proxy.uri, folder / "through")
        self.past = MlflowStore(f"http://127.0.0.1:{port}", folder / "past")
        self.looks = 0

    def publish(self) -> EngineVersion:
        return publish_as_a_release_does(self.through, self.folder, self.folder / "bundle", self.model)

    def whole(self) -> list[int]:
        self.looks += 1
        scratch = self.folder / f"look {self.looks}"
        return [v.version for v in assert_only_whole_versions(self.past, self.folder, scratch, self.model)]

    def states(self) -> list[str]:
        versions = self.past.client.search_model_versions(f"name = '{self.model}'")
        return [v.tags["version.publish_state"] for v in sorted(versions, key=lambda v: int(v.version))]


@pytest.fixture
def publisher(tmp_path: Path, proxy: Proxy, server_port: int, request: pytest.FixtureRequest) -> Publisher:
    model = "m" + "".join(filter(str.isalnum, request.node.name.lower()))[-40:]
    return Publisher(tmp_path, model, proxy, server_port)


def lose_first_answers(lost: set[str]) -> Callable[[int, str, str], str]:
    """Carry out every writing request, and lose its first answer."""

    def fate(_: int, method: str, path: str) -> str:
        request = f"{method} {path}"
        if method == "GET" or "search" in path or request in lost:
            return ""
        lost.add(request)
        return "lost"

    return fate


def test_answers_lost_after_a_write_create_no_second_version(
    proxy: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow's client repeats a request after a 502, even one that creates a version.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    lost: set[str] = set()
    proxy.reset(lose_first_answers(lost))
    published = publisher.publish()
    assert any("model-versions/create" in request for request in lost)
    assert publisher.whole() == [published.version]
    assert sorted(publisher.states()) == ["complete", "torn"]
    assert publisher.publish() == published
    # The run was created twice as well; the empty one is ended once its process has ended.
    (empty,) = publisher.through.repairs.unfinished(publisher.model)
    assert empty.version is None
    monkeypatch.setattr("registry.repair.has_ended", lambda _: True)
    assert publisher.publish() == published
    assert publisher.through.repairs.unfinished(publisher.model) == ()


@pytest.mark.parametrize("request_path", ["model-versions/create", "model-versions/set-tag"])
def test_publish_without_an_answer_is_the_same_version_the_next_time(
    request_path: str, proxy: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    proxy.reset(lambda _, __, path: "lost" if path.endswith(request_path) else "")
    with pytest.raises(EngineryError, match="publish"):
        publisher.publish()
    assert publisher.whole() in ([], [1])
    proxy.reset()
    # This process still runs, so its publish is not repaired: publishing the same manifest continues it.
    folder = publisher.folder / "bundle"
    assert publisher.through.publish(verify_bundle(folder), folder).version == 1
    assert publisher.whole() == [1]
    assert publisher.states() == ["complete"]


@pytest.mark.long
def test_registry_unreachable_at_any_request_leaves_nothing_visible(
    proxy: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("registry.repair.has_ended", lambda _: True)  # as if each ran in its own process
    at = 0
    while True:
        at += 1
        proxy.reset(lambda number, _, __, at=at: "down" if number >= at else "")  # type: ignore[misc]
        try:
            published: Any = publisher.publish()
            break
        except EngineryError:
            assert publisher.whole() in ([], [1])
    proxy.reset()
    assert at > 15
    assert publisher.whole() == [published.version]
    assert publisher.states().count("complete") == 1
    assert publisher.through.repairs.unfinished(publisher.model) == ()
