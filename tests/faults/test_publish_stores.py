"""A publish to a server or a bucket that is killed: a whole bundle is finished, any other is torn."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow.tracking import MlflowClient

from registry.bundle.signing import local_trust
from registry.mlflow import publish as mlflow_publish
from registry.mlflow.store import MlflowStore
from registry.repair import RepairOutcome, repair_unfinished
from tests.faults.test_publish_faults import (
    assert_only_whole_versions,
    children,
    die,
    now,
    publish_as_a_release_does,
)
from tests.support.servers import BUCKET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# The engine of `publish_as_a_release_does`, in a request's body.
ENGINE = b"plan" * 10


@dataclass(frozen=True)
class Registry:
    """A registry whose artifacts are on a server or in a bucket, and a model in it."""

    uri: str
    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    model: str = field(default_factory=lambda: f"sst2-{uuid4().hex[:8]}")

    def store(self) -> MlflowStore:
        return MlflowStore(self.uri, self.home)


@pytest.fixture
def server(server_uri: str, tmp_path: Path) -> Registry:
    return Registry(server_uri, tmp_path / "home")


@pytest.fixture
def bucket(migrated_database: Path, s3: dict[str, str], in_bucket: None, tmp_path: Path) -> Registry:
    (tmp_path / "mlflow.db").write_bytes(migrated_database.read_bytes())
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "home", s3)
    registry.store().client.create_experiment(registry.model, artifact_location=f"s3://{BUCKET}/{registry.model}")
    return registry


@pytest.fixture
def server_before_bucket(bucket_server_uri: str, s3: dict[str, str], in_bucket: None, tmp_path: Path) -> Registry:
    return Registry(bucket_server_uri, tmp_path / "home", s3)


@pytest.fixture(params=["server", "bucket", "server_before_bucket"])
def registry(request: pytest.FixtureRequest) -> Registry:
    chosen: Registry = request.getfixturevalue(request.param)
    return chosen


def amid_the_engine() -> None:
    send: Any = HTTPConnection.send

    def half(connection: Any, data: Any) -> None:
        if isinstance(data, bytes) and ENGINE in data:
            send(connection, data[: len(data) // 2])
            die()
        send(connection, data)

    HTTPConnection.send = half  # type: ignore[method-assign, assignment]


def before_the_signature() -> None:
    publishing: Any = mlflow_publish
    upload = publishing.upload

    def dying(repository: Any, file: Path, folder: str | None = None) -> None:
        if file.name == "model.sig":
            die()
        upload(repository, file, folder)

    publishing.upload = dying


def before_the_version() -> None:
    MlflowClient.create_model_version = die  # type: ignore[method-assign, assignment]


def before_it_is_complete() -> None:
    make: Any = MlflowClient.create_model_version

    def make_and_die(*arguments: Any, **named: Any) -> None:
        make(*arguments, **named)
        die()

    MlflowClient.create_model_version = make_and_die  # type: ignore[method-assign, assignment]


def publish_and_die(registry: Registry, scratch: Path, strike: Callable[[], None]) -> None:
    os.environ.update(registry.environment)
    strike()
    publish_as_a_release_does(registry.store(), registry.home, scratch, registry.model)


@pytest.mark.parametrize(
    ("strike", "outcome"),
    [
        (amid_the_engine, RepairOutcome.TORN),
        (before_the_signature, RepairOutcome.TORN),
        (before_the_version, RepairOutcome.FINISHED),
        (before_it_is_complete, RepairOutcome.FINISHED),
    ],
)
def test_publish_killed_half_way_is_finished_or_torn(
    strike: Callable[[], None], outcome: RepairOutcome, registry: Registry, tmp_path: Path
) -> None:
    process = children.Process(target=publish_and_die, args=(registry, tmp_path / "bundle", strike))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store, model = registry.store(), registry.model
    assert store.versions(model) == ()
    (repaired,) = repair_unfinished(store.repairs, lambda: local_trust(registry.home), clock=now, model=model)
    assert repaired.outcome is outcome, repaired.reason
    assert len(store.versions(model)) == (outcome is RepairOutcome.FINISHED)
    published = publish_as_a_release_does(store, registry.home, tmp_path / "bundle", model)
    assert assert_only_whole_versions(store, registry.home, tmp_path / "seen", model) == (published,)
    assert store.repairs.unfinished(model) == ()
