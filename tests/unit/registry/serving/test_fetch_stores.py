"""The same fetch from a folder, from an MLflow server that passes artifacts on, and from S3."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from registry.errors import DigestMismatch, EngineryError, Interrupted, NotFound, SignatureInvalid
from registry.mlflow.files.artifacts import CopiedFiles, open_files
from registry.mlflow.files.folder import FolderFiles
from registry.mlflow.files.http import HttpFiles
from registry.mlflow.store import MlflowStore
from registry.promotion.promote import promote
from registry.serving.download import DownloadPlan
from registry.serving.fetch import fetch, verify_placed
from tests.support.deciding import ANA
from tests.support.publisher import Publisher
from tests.support.servers import BUCKET, free_port

ENGINE = os.urandom(300_000)


@pytest.fixture
def publisher(publisher: Publisher) -> Publisher:
    """A publisher whose bundles are fetched in small segments."""
    return replace(publisher, plan=DownloadPlan(segment_bytes=64 * 1024))


@pytest.fixture(autouse=True)
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


@dataclass(frozen=True)
class Place:
    """A registry, and whether it serves ranges of its files."""

    store: MlflowStore
    ranged: bool


@pytest.fixture
def folder(mlflow_store: MlflowStore) -> Place:
    return Place(mlflow_store, ranged=True)


@pytest.fixture
def server(server_uri: str, tmp_path: Path) -> Place:
    return Place(MlflowStore(server_uri, tmp_path / "state"), ranged=True)


@pytest.fixture
def bucket(mlflow_store: MlflowStore, in_bucket: None, model: str) -> Place:
    mlflow_store.client.create_experiment(model, artifact_location=f"s3://{BUCKET}/{uuid4().hex}")
    return Place(mlflow_store, ranged=True)


@pytest.fixture
def server_before_bucket(bucket_server_uri: str, tmp_path: Path) -> Place:
    """It hands out presigned URLs of the bucket."""
    return Place(MlflowStore(bucket_server_uri, tmp_path / "state"), ranged=True)


@pytest.fixture
def server_hiding_bucket(bucket_server_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """It copies a whole file from the bucket for each request: a range there would cost the whole file."""
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    return Place(MlflowStore(bucket_server_uri, tmp_path / "state"), ranged=False)


@pytest.fixture
def model() -> str:
    # One server serves every test.
    return f"sst2-{uuid4().hex[:8]}"


@pytest.fixture(params=["folder", "server", "bucket", "server_before_bucket", "server_hiding_bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    place: Place = request.getfixturevalue(request.param)
    return place


def test_bundle_is_fetched_verified_and_reused(
    place: Place, model: str, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    manifest, directory = manifest_factory(ENGINE, model=model)
    publisher.publish(place.store, (manifest, directory))
    promote(place.store, model, {"l4": 1}, ANA, {})
    fetched = fetch(place.store, model, alias="production-l4", into=tmp_path / "models", policy=publisher.policy)
    assert verify_placed(fetched.path, publisher.trust) == manifest
    assert (fetched.path / "engine.plan").read_bytes() == ENGINE
    again = fetch(place.store, model, version=1, into=tmp_path / "models", policy=publisher.policy)
    assert again == replace(fetched, reused=True)


def test_ranges_are_used_only_where_the_store_supports_them(
    place: Place, model: str, manifest_factory: Any, publisher: Publisher
) -> None:
    publisher.publish(place.store, manifest_factory(ENGINE, model=model))
    files = place.store.open_bundle(model, 1).files
    assert files.ranged is place.ranged
    part = b"".join(files.read("engine.plan", 100_000, 100_003))
    assert part == (ENGINE[100_000:100_003] if place.ranged else ENGINE)
    assert b"".join(files.read("tokenizer/vocab.txt")) == b"a\nb\n"


@pytest.mark.parametrize("place", ["folder", "server", "bucket", "server_before_bucket"], indirect=True)
def test_missing_files_are_not_found(
    place: Place, model: str, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    place.store.publish(*manifest_factory(model=model))
    bundle = place.store.open_bundle(model, 1)
    assert bundle.signature is None
    with pytest.raises(NotFound):
        b"".join(bundle.files.read("none"))
    with pytest.raises(SignatureInvalid, match="is unsigned"):
        fetch(place.store, model, version=1, into=tmp_path / "models", policy=publisher.policy)


def test_server_before_a_bucket_fails_on_missing_files(
    server_hiding_bucket: Place, model: str, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    """MLflow answers 500 there, so an unsigned bundle is a server's failure; it is refused all the same."""
    server_hiding_bucket.store.publish(*manifest_factory(model=model))
    with pytest.raises(Interrupted):
        fetch(server_hiding_bucket.store, model, version=1, into=tmp_path / "models", policy=publisher.policy)


@pytest.mark.parametrize("spoiled", ["engine.plan", MANIFEST_FILE, SIGNATURE_FILE])
def test_an_artifact_overwritten_after_publishing_is_refused(
    spoiled: str, place: Place, model: str, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    manifest, directory = manifest_factory(ENGINE, model=model)
    publisher.publish(place.store, (manifest, directory))
    (directory / spoiled).write_bytes((directory / spoiled).read_bytes()[:-2] + b"??")
    run = place.store.client.get_model_version(model, "1").run_id
    place.store.client.log_artifact(run, str(directory / spoiled), "bundle")
    with pytest.raises((DigestMismatch, SignatureInvalid)):
        fetch(place.store, model, version=1, into=tmp_path / "models", policy=publisher.policy)
    assert list((tmp_path / "models" / model).iterdir()) == []


def test_expired_presigned_url_is_requested_again(
    bucket: Place, model: str, manifest_factory: Any, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry.mlflow.files import artifacts as module

    publisher.publish(bucket.store, manifest_factory(ENGINE, model=model))
    files = bucket.store.open_bundle(model, 1).files
    requested: list[str] = []
    real = module._presign_in_bucket

    def locate(repository: Any, path: str) -> tuple[str, dict[str, str]]:
        requested.append(path)
        url, headers = real(repository, path)
        return (url.replace("engine.plan", "expired") if len(requested) == 1 else url), headers

    monkeypatch.setattr(module, "_presign_in_bucket", locate)
    with pytest.raises(EngineryError):
        b"".join(files.read("engine.plan", 0, 10))
    assert b"".join(files.read("engine.plan", 0, 10)) == ENGINE[:10]
    assert b"".join(files.read("engine.plan", 10, 20)) == ENGINE[10:20]
    assert requested == ["engine.plan"] * 2


def test_each_store_has_its_reader(tmp_path: Path, server_uri: str, in_bucket: None) -> None:
    assert isinstance(open_files(tmp_path.as_uri(), "sqlite:///none", "x"), FolderFiles)
    assert isinstance(open_files("mlflow-artifacts:/1", server_uri, "x"), HttpFiles)
    assert isinstance(open_files(f"s3://{BUCKET}/x", "sqlite:///none", "x"), HttpFiles)
    with pytest.raises(EngineryError, match="cannot be read"):
        open_files("gopher://x/y", "sqlite:///none", "x")


def test_unreachable_server_is_an_interruption() -> None:
    with pytest.raises(Interrupted, match="could not be read"):
        open_files("mlflow-artifacts:/1", f"http://127.0.0.1:{free_port()}", "x")


def test_store_that_only_copies_whole_files_is_readable(tmp_path: Path) -> None:
    (tmp_path / "engine.plan").write_bytes(ENGINE)

    class Copies:
        def download_artifacts(self, path: str, into: str) -> str:
            return shutil.copy(tmp_path / path, into)

    files = CopiedFiles(Copies())
    assert b"".join(files.read("engine.plan")) == ENGINE
    with pytest.raises(NotFound):
        b"".join(files.read("none"))
