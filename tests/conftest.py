"""Fixtures shared by every suite: a manifest with its bundle, and each registry behind the Store seam."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from tests.support.manifests import ManifestFactory, make_manifest

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that `tests.support.memory_store` is found under plain `pytest`

from registry.digest import record_tree
from registry.records import (
    EngineManifest,
)
from registry.store import Store
from tests.support.memory_store import MemoryStore
from tests.support.postgres import NoPostgres, Postgres, running_postgres
from tests.support.publisher import Publisher, make_publisher
from tests.support.servers import BUCKET, mlflow_server, s3_server

# On a busy machine an example takes as long as it takes.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")
# A shell that starts us with `&` has Ctrl-C ignored, by us and by all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # After the shuffle: a file that takes minutes, begun last, would keep one worker waiting for the other.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def manifest_factory(tmp_path: Path) -> ManifestFactory:
    """`manifest_factory(content=b"…", **fields)` writes a bundle's files, gives manifest and folder."""
    made: list[Path] = []

    def make(content: bytes = b"plan", **fields: object) -> tuple[EngineManifest, Path]:
        directory = tmp_path / f"bundle{len(made)}"
        made.append(directory)
        (directory / "tokenizer").mkdir(parents=True)
        (directory / "engine.plan").write_bytes(content)
        (directory / "tokenizer" / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
        return make_manifest(record_tree(directory), **fields), directory  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """A key of this run's own."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("SIGNING_KEY", "SIGNING_CERTIFICATE", "SIGNING_CHAIN", "VERIFY_KEY", "VERIFY_ROOTS"):
            environment.delenv(f"ENGINERY_{name}", raising=False)
        return make_publisher(tmp_path_factory.mktemp("publisher"))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the run's workers fills, for all of them to copy from."""
    base = factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = run / name, run / f"{name}.made"
    with FileLock(run / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed half-way
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables: a migration takes seconds."""
    pytest.importorskip("mlflow")
    from registry.mlflow.store import MlflowStore

    def migrate(home: Path) -> None:
        MlflowStore(f"sqlite:///{home}/mlflow.db", home, home / "artifacts").versions()

    return made_once(tmp_path_factory, "mlflow-template", migrate) / "mlflow.db"


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's tables: a migration takes 8 s of a core."""

    def migrate(home: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(upgrade, env=inherited | {"PREFECT_HOME": str(home)}, check=True, capture_output=True)

    return made_once(tmp_path_factory, "prefect-template", migrate) / "prefect.db"


@pytest.fixture(scope="session")
def server_uri(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[str]:
    """An MLflow server that passes artifacts on from a folder of its own: one for all tests, it starts in seconds."""
    home = tmp_path_factory.mktemp("server")
    shutil.copy(migrated_database, home / "mlflow.db")
    with mlflow_server(home / "mlflow.db", str(home / "artifacts")) as uri:
        yield uri


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """The environment that leads clients to an S3 of this run's own."""
    with s3_server() as environment:
        yield environment


@pytest.fixture
def in_bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def bucket_server_uri(
    s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Iterator[str]:
    """An MLflow server that passes artifacts on from the bucket."""
    home = tmp_path_factory.mktemp("bucket-server")
    shutil.copy(migrated_database, home / "mlflow.db")
    with mlflow_server(home / "mlflow.db", f"s3://{BUCKET}/proxied", s3) as uri:
        yield uri


@pytest.fixture
def mlflow_store(tmp_path: Path, migrated_database: Path) -> Store:
    from registry.mlflow.store import embedded_store

    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    return embedded_store(home)


@pytest.fixture
def quick_store(tmp_path: Path, migrated_database: Path) -> Store:
    from tests.support.quick_reads import QuickReads

    home = tmp_path / "quick home"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    return QuickReads(home)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server with MLflow's tables in the database `migrated`."""
    pytest.importorskip("mlflow")
    from registry.mlflow.store import MlflowStore

    try:
        with running_postgres() as server:
            server.sql("CREATE DATABASE migrated")
            MlflowStore(server.uri("migrated"), server.folder, server.folder / "artifacts").versions()
            server.sql("ALTER DATABASE migrated ALLOW_CONNECTIONS false")  # a template has no other session
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'migrated'")
            yield server
    except NoPostgres as missing:
        pytest.skip(str(missing))


@pytest.fixture
def postgres_uri(postgres: Postgres) -> str:
    """A registry's database of the test's own."""
    return postgres.uri(postgres.create("migrated"))


@pytest.fixture
def postgres_store(postgres_uri: str, tmp_path: Path) -> Store:
    from registry.mlflow.store import MlflowStore

    return MlflowStore(postgres_uri, tmp_path / "home", tmp_path / "artifacts")


@pytest.fixture
def memory_store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(params=["memory", "mlflow", "quick", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each registry in turn: a test that uses it is a clause of the contract."""
    chosen: Store = request.getfixturevalue(f"{request.param}_store")
    return chosen
