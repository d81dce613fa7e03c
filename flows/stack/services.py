"""The stack's servers and workers: their commands, environments, and how one knows that they are well."""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests

from flows.inputs.fleet import RELEASES_POOL, Fleet, load_fleet, work_pools
from flows.prefect_server.settings import RUN_ENVIRONMENT
from flows.stack.postgres import Cluster
from flows.stack.processes import Service
from tasks.backends import BACKENDS

HOST = "127.0.0.1"
# Two refreshes may each wait for a release in this pool, and a promotion waits for nobody.
RELEASES_AT_ONCE = 4
_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Addresses:
    """What clients of the stack export."""

    mlflow: str
    prefect: str
    leases: str

    def environment(self) -> dict[str, str]:
        """The variables, by name."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow,
            "PREFECT_API_URL": self.prefect,
            "ENGINERY_LEASE_DATABASE": self.leases,
        }


def inherited() -> dict[str, str]:
    """This process' environment without the settings of another Prefect or MLflow server; keys for S3 stay."""
    ours = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") and name not in ours}


def client(addresses: Addresses, home: Path) -> dict[str, str]:
    """The environment of whoever talks to the servers, with Prefect's files apart from the user's."""
    return inherited() | addresses.environment() | {"PREFECT_HOME": str(home / "stack" / "client")}


def mlflow_server(cluster: Cluster, port: int, artifacts: str) -> Service:
    """MLflow on PostgreSQL; it passes artifacts on to `artifacts`, a folder or a bucket's URI."""
    command = (sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "2")
    stores = ("--backend-store-uri", cluster.uri("mlflow", "psycopg"), "--artifacts-destination", artifacts)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    well = partial(_answers, f"http://{HOST}:{port}/health")
    return Service("mlflow", command + stores, inherited() | quiet, well, port=port)


def prefect_server(cluster: Cluster, port: int, folder: Path) -> Service:
    """Prefect on PostgreSQL; what it keeps in files is in `folder`."""
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": cluster.uri("prefect", "asyncpg"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, the default, a restart forgets who holds which slot: running flows are stopped at the next renewal.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    well = partial(_answers, f"http://{HOST}:{port}/api/health")
    return Service("prefect", command, inherited() | settings, well, port=port)


def workers(fleet_file: Path, addresses: Addresses, home: Path, checkout: Path) -> list[Service]:
    """A worker for the releases, and one for each pool of which this host can build every target."""
    fleet = load_fleet(fleet_file)
    environment = (
        client(addresses, home)
        | RUN_ENVIRONMENT
        | {
            "ENGINERY_HOME": str(home),
            "ENGINERY_CHECKOUT": str(checkout),
            "PREFECT_WORKER_QUERY_SECONDS": "3",  # a few workers may ask more often than a fleet
        }
    )
    base = (sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", RELEASES_POOL)
    releases = (*base, "--limit", str(RELEASES_AT_ONCE), "--name", f"releases on {socket.gethostname()}")
    commands: dict[str, tuple[str, ...]] = {RELEASES_POOL: releases}
    for pool in work_pools(fleet):
        if builds_here(fleet, pool):
            commands[pool] = build_command(fleet, pool, fleet_file)
    return [
        Service(f"worker-{pool}", command, environment, Listening(addresses.prefect, pool))
        for pool, command in commands.items()
    ]


def builds_here(fleet: Fleet, pool: str) -> bool:
    """Whether this host can build for every target of a pool."""
    targets = [target for target in map(fleet.target, fleet.targets) if target.work_pool == pool]
    return all(BACKENDS[target.backend].can_build(target) is None for target in targets)


def build_command(fleet: Fleet, pool: str, fleet_file: Path) -> tuple[str, ...]:
    """What starts a worker of a pool that builds: it checks and reports this machine first, one job at a time."""
    target = next(name for name in fleet.targets if fleet.target(name).work_pool == pool)
    command = (sys.executable, "-m", "flows.cli", "worker")
    return (*command, "--target", target, "--fleet", str(fleet_file.absolute()))


@dataclass(frozen=True)
class Listening:
    """Whether a worker of a pool is heard of by the server."""

    api: str
    pool: str

    def __call__(self) -> bool:
        """Ask the server."""
        try:
            answer = requests.post(
                f"{self.api}/work_pools/{self.pool}/workers/filter", json={}, timeout=_PATIENCE_SECONDS
            )
            workers: list[Mapping[str, Any]] = answer.json() if answer.ok else []
        except (requests.RequestException, ValueError):
            return False
        return any(worker.get("status") == "ONLINE" for worker in workers)


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=_PATIENCE_SECONDS).ok
    except requests.RequestException:
        return False
