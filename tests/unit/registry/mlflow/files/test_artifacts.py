"""Uploads to an MLflow server whose artifact store fails; the server's answers are given in advance."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from registry.mlflow.files.artifacts import StoreFailed, upload


class Store(BaseHTTPRequestHandler):
    """Answers with the next status of `answers`, and stores what came with a 200."""

    answers: ClassVar[list[int]] = []
    files: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.answers.pop(0)
        if status == 200:
            self.files[self.path] = content
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def repository() -> Iterator[HttpArtifactRepository]:
    Store.answers.clear()
    Store.files.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/artifacts"
        yield HttpArtifactRepository(address)  # type: ignore[no-untyped-call]
        server.shutdown()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "engine.plan").write_bytes(b"engine" * 50_000)
    return tmp_path / "engine.plan"


def test_upload_is_repeated_after_one_failure(repository: HttpArtifactRepository, file: Path) -> None:
    Store.answers += [500, 200]
    upload(repository, file, "bundle", pauses_seconds=(0.0, 0.0))
    assert Store.files == {"/artifacts/bundle/engine.plan": file.read_bytes()}


def test_store_that_keeps_failing_is_one_sentence_with_advice(repository: HttpArtifactRepository, file: Path) -> None:
    Store.answers += [500, 500, 500]
    with pytest.raises(StoreFailed, match=r"^upload of engine\.plan \(300000 bytes\) failed: .* disk full") as caught:
        upload(repository, file, pauses_seconds=(0.0, 0.0))
    assert "\n" not in str(caught.value)
    assert (Store.answers, Store.files) == ([], {})
