"""Releases in whose middle something is killed, restarted or full: how they end, what is kept, what comes next."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil
import pytest

from tests.fleet.conftest import Fleet, Process, RestartableFleet, deploy, serving, until, working
from tests.flows.conftest import TinyRecipe
from tests.support.fleet_runs import job_of
from tests.support.held_builds import BEGUN, Door
from tests.support.postgres import NoPostgres, Postgres, running_postgres

BOTH = ["fp32", "int8-dynamic"]
TWO_MINUTES = 120
ROOMY = 256 * 2**20
# In the key of a build: no test finds what another one built of the same tiny model.
WORKSPACE_MB = count(64)
# See `hold`. The parent asks a store that failed once more, and not for as long as the job before it did.
HELD = """
import time
from pathlib import Path
from flows.workers import release_on_workers
from flows.release import publish
from registry.mlflow import artifacts
artifacts.STORE_PAUSES_SECONDS = (1.0,)
call, calls = {module}.{function}, []
def held(*arguments):
    calls.append(arguments)
    if len(calls) == {call}:
        Path({held!r}).touch()
        while Path({held!r}).exists():
            time.sleep(0.05)
    return call(*arguments)
{module}.{function} = held
"""


@dataclass(frozen=True)
class Disk:
    """A file system of its own, whose size changes while it is in use."""

    folder: Path

    def leave(self, room: int) -> None:
        """Fill the disk, but for so many bytes."""
        self.resize(shutil.disk_usage(self.folder).used + room)

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


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
    folder = tmp_path_factory.mktemp("disk")
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)]
    is_able = sys.platform.startswith("linux") and os.geteuid() == 0
    if not is_able or subprocess.run(mounting, check=False, capture_output=True).returncode:
        yield None
        return
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


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


def ordinary(fleet: Fleet, model: str, target: str = "cpu") -> tuple[TinyRecipe, Door]:
    """Write a recipe of two engines that were never built, and the door at which the second one waits."""
    builds = Door(fleet.folder / "doors" / model)
    builds.hold("int8-dynamic")
    return fleet.recipe(model, (target,), {"workspace_mb": next(WORKSPACE_MB)}), builds


def hold(function: str, call: int, held: Path) -> str:
    """Return code that makes a parent wait at the nth call of a function (module.name) until `held` is gone."""
    module, name = function.split(".")
    return HELD.format(module=module, function=name, call=call, held=str(held))


def until_held(builds: Door) -> None:
    """Wait until the first engine is built and the second one has begun."""
    until(lambda: builds.builds(BEGUN) == BOTH)


@contextmanager
def job(worker: Process) -> Iterator[psutil.Process]:
    """Return a worker's job process; it ends with the block, whatever happened to its worker."""
    process = until(lambda: job_of(worker))
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for member in (process, *process.children(recursive=True)):
                member.kill()
