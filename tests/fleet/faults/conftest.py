"""Releases in whose middle something is killed, restarted or full: how they end, what is kept, what comes next."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.disks import Disk, mounted
from tests.support.fleet import Fleet, Process, RestartableFleet, deploy, serving, working
from tests.support.fleet_faults import ROOMY
from tests.support.postgres import NoPostgres, Postgres, running_postgres


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres | None]:
    """Run a PostgreSQL for both servers; None where there is none: they use SQLite then."""
    with ExitStack() as stack:
        postgres = None
        with suppress(NoPostgres):
            postgres = stack.enter_context(running_postgres(durable=True, system=True))
        yield postgres if postgres and postgres.offers("pg_trgm") else None


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk | None]:
    """Mount the disk for MLflow's artifacts; None where nothing can be mounted."""
    with mounted(tmp_path_factory.mktemp("disk"), ROOMY) as disk:
        yield disk


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path, database: Postgres | None, disk: Disk | None
) -> Iterator[RestartableFleet]:
    """Start a fleet on PostgreSQL, whose builds pass through doors."""
    folder = tmp_path_factory.mktemp("faults")
    artifacts = disk.folder if disk else folder / "artifacts"
    registry: Path | str = folder / "mlflow.db"
    settings: dict[str, str] = {}
    if database:
        registry, settings = database.uri(database.create()), database.for_prefect(database.create())
    else:
        shutil.copy(migrated_database, folder / "mlflow.db")
    with serving(folder, registry, artifacts, settings) as fleet:
        deploy(fleet, "tests.support.held_builds.build_target", doors=str(folder / "doors"))
        yield fleet


@pytest.fixture(scope="module")
def cpu_worker(fleet: Fleet) -> Iterator[Process]:
    with working(fleet, "cpu", "cpu-worker") as worker:
        yield worker
