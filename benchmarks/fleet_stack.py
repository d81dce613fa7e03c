"""Prefect and MLflow servers, and recipes of the tiny model, for the fleet's benchmarks.

Both are on one PostgreSQL with fsync on, the system's where there is one. Prefect needs its extension pg_trgm, which
the wheel does not have: where there is only that, Prefect is on SQLite, and the output says so.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import yaml

from tests.support.fleet import ROOT, Fleet, until
from tests.support.postgres import SOCKET_PORT, Postgres, running_postgres
from tests.support.servers import free_port, mlflow_server, prefect_server
from tests.support.tiny_recipe import RECIPE, TinyRecipe, write_tiny_recipe

# By its module: a script's own folder is put first on the path, and this one has a registry.py.
ENTRYPOINT = "benchmarks.slow_target.build_target"
RELEASE_ENTRYPOINT = "benchmarks.slow_target.release_engines"


@dataclass(frozen=True)
class BenchFleet(Fleet):
    """The tests' fleet, on PostgreSQL, and with workers that ask for work as seldom as they do for a user."""

    postgres: Postgres
    databases: Mapping[str, str]
    servers: Mapping[str, psutil.Process]

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of one host's processes, whose ENGINERY_HOME is `home`."""
        tests = super().environment(home)
        return {name: value for name, value in tests.items() if name != "PREFECT_WORKER_QUERY_SECONDS"}

    def database_bytes(self, server: str) -> int:
        """Return the size of a server's database in PostgreSQL, or of SQLite's files with their log."""
        if server not in self.databases:
            return sum(file.stat().st_size for file in (self.folder / "prefect").glob("prefect.db*"))
        where = f"host={self.postgres.folder} port={SOCKET_PORT} user=postgres dbname={self.databases[server]}"
        with psycopg.connect(where) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0

    def cpu_seconds(self, root: psutil.Process) -> float:
        """Return the processor time so far of a process, those below it, and the ended children that it waited for."""
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


@contextmanager
def bench_fleet(folder: Path) -> Iterator[BenchFleet]:
    """Start fresh servers, which end with the block."""
    template = write_tiny_recipe(folder / "template")
    (folder / "prefect").mkdir()
    with ExitStack() as stack:
        postgres = stack.enter_context(running_postgres(durable=True, system=True))
        databases = {server: postgres.create() for server in _on(postgres)}
        before = _children()
        prefect = stack.enter_context(prefect_server(folder / "prefect", _connection(postgres, databases)))
        (prefect_process,) = _children() - before
        before, backend = _children(), postgres.uri(databases["MLflow"])
        mlflow = stack.enter_context(mlflow_server(backend, str(folder / "artifacts"), port=free_port()))
        (mlflow_process,) = _children() - before
        servers = {"Prefect": prefect_process, "MLflow": mlflow_process}
        yield BenchFleet(prefect, mlflow, folder, template, postgres, databases, servers)


def deploy(fleet: BenchFleet, flow: str, name: str, pool: str, entrypoint: str, parameters: dict[str, Any]) -> None:
    """Make the deployment `flow`/`name` that runs `entrypoint` with further `parameters`, and its process pool."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with fleet.client() as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        client.create_deployment(
            flow_id=client.create_flow_from_name(flow),
            name=name,
            work_pool_name=pool,
            path=str(ROOT),
            entrypoint=entrypoint,
            parameters=parameters,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        )


def write_recipe(fleet: BenchFleet, model: str, targets: Mapping[str, dict[str, Any]]) -> TinyRecipe:
    """Write a recipe of the tiny model for `targets` in fp32: one engine per target."""
    tiny = TinyRecipe(fleet.folder / model)
    tiny.folder.mkdir()
    data: Any = RECIPE["data"]
    places = {
        # Absolute: a worker runs in a folder of its own.
        "source": {"path": str(fleet.template.folder / "checkpoint")},
        "data": data | {"path": str(fleet.template.folder / "rows")},
    }
    own = {"model": model, "targets": list(targets), "precisions": ["fp32"]}
    tiny.recipe.write_text(yaml.safe_dump(RECIPE | places | own), encoding="utf-8")
    write_fleet(tiny, targets)
    return tiny


def write_fleet(tiny: TinyRecipe, targets: Mapping[str, dict[str, Any]]) -> None:
    tiny.fleet.write_text(yaml.safe_dump({"targets": dict(targets)}), encoding="utf-8")


def wait_for_worker(fleet: BenchFleet, pool: str) -> None:
    """Wait until a worker of a pool is online."""
    with fleet.client() as client:
        until(lambda: client.read_workers_for_work_pool(pool))


def load() -> str:
    """Return the load average of the last minute and the number of cores, to print beside a figure."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def middle_and_worst(seconds: Sequence[float]) -> str:
    """Format the median (the upper one of two) and the largest."""
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:6.1f} s p50 {ordered[-1]:7.1f} s worst"


def _on(postgres: Postgres) -> tuple[str, ...]:
    """Return the servers that this PostgreSQL can serve."""
    if postgres.offers("pg_trgm"):
        return ("MLflow", "Prefect")
    print("no pg_trgm in this PostgreSQL: Prefect is on SQLite")
    return ("MLflow",)


def _connection(postgres: Postgres, databases: Mapping[str, str]) -> dict[str, str]:
    return postgres.for_prefect(databases["Prefect"]) if "Prefect" in databases else {}


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children())
