"""Registries with two releases of one engine, and a folder to fetch them to."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.mlflow.store import MlflowStore
from registry.serving.download import DownloadPlan
from tests.support.fetching import ENGINE
from tests.support.memory_store import MemoryStore
from tests.support.publisher import Publisher


@pytest.fixture
def in_memory(memory_store: MemoryStore, manifest_factory: Any, publisher: Publisher) -> MemoryStore:
    """Two releases without a database, which a fork would share with its parent."""
    for number in (1, 2):
        publisher.publish(memory_store, manifest_factory(ENGINE + bytes([number]), sequence=number))
    return memory_store


@pytest.fixture
def in_segments(publisher: Publisher) -> Publisher:
    """A publisher whose bundles are fetched in several segments, without a pause after an error."""
    return replace(publisher, plan=DownloadPlan(segment_bytes=64 * 1024, pause_seconds=0.0))


@pytest.fixture
def registry(mlflow_store: MlflowStore, manifest_factory: Any, publisher: Publisher) -> MlflowStore:
    """Two releases on SQLite and a folder."""
    for number in (1, 2):
        publisher.publish(mlflow_store, manifest_factory(ENGINE + bytes([number]), sequence=number))
    return mlflow_store


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    # In memory where the machine has such a place: hundreds of fetches wait for each of their writes to be durable.
    memory = Path("/dev/shm")  # noqa: S108  # a folder of its own is made there
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "models"


@pytest.fixture
def home(tmp_path: Path, migrated_database: Path, prefect_database: Path) -> Path:
    """An ENGINERY_HOME with MLflow's and Prefect's tables: making them takes longer than a tiny release."""
    folder = tmp_path / "home"
    (folder / "prefect").mkdir(parents=True)
    shutil.copy(migrated_database, folder / "mlflow.db")
    shutil.copy(prefect_database, folder / "prefect" / "prefect.db")
    return folder
