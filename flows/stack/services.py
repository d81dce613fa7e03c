"""The stack's servers and workers: their commands, their environments, and the checks that they are ready."""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests

from flows.inputs.fleet import RELEASES_POOL, Fleet, list_work_pools, load_fleet
from flows.prefect_server.settings import RUN_ENVIRONMENT
from flows.stack.postgres import Cluster
from flows.stack.processes import Service
from tasks.backends import BACKENDS

HOST = "127.0.0.1"
# Two refreshes may each wait for a release in this pool, and a promotion must not have to wait for them.
RELEASES_AT_ONCE = 4
_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Addresses:
    """The addresses that clients of the stack export."""

    mlflow: str
    prefect: str
    leases: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables, by name."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow,
            "PREFECT_API_URL": self.prefect,
            "ENGINERY_LEASE_DATABASE": self.leases,
        }


def inherit_environment() -> dict[str, str]:
    """Return this process' environment without the settings of another Prefect or MLflow server; S3 keys stay."""
    left_out = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") and name not in left_out
    }


def make_client_environment(addresses: Addresses, home: Path) -> dict[str, str]:
    """Return the environment of the servers' clients, with Prefect's files apart from the user's."""
    return inherit_environment() | addresses.environment() | {"PREFECT_HOME": str(home / "stack" / "client")}


def make_mlflow_service(cluster: Cluster, port: int, artifacts: str) -> Service:
    """Describe MLflow on PostgreSQL, which stores artifacts in `artifacts`, a folder or a bucket's URI."""
    command = (sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "2")
    stores = ("--backend-store-uri", cluster.uri("mlflow", "psycopg"), "--artifacts-destination", artifacts)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    is_ready = partial(_is_ok, f"http://{HOST}:{port}/health")
    return Service("mlflow", command + stores, inherit_environment() | quiet, is_ready, port=port)


def make_prefect_service(cluster: Cluster, port: int, folder: Path) -> Service:
    """Describe Prefect on PostgreSQL, which keeps its files in `folder`."""
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": cluster.uri("prefect", "asyncpg"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Where the pages look for the API: on the server they came from, by whatever port and name that was reached.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # In memory, the default, they are lost at a restart, and running flows are stopped when they renew theirs.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    is_ready = partial(_is_ok, f"http://{HOST}:{port}/api/health")
    return Service("prefect", command, inherit_environment() | settings, is_ready, port=port)


def make_worker_services(fleet_file: Path, addresses: Addresses, home: Path, checkout: Path) -> list[Service]:
    """Describe a worker for releases, and one for each pool of which this host can build every target."""
    fleet = load_fleet(fleet_file)
    environment = (
        make_client_environment(addresses, home)
        | RUN_ENVIRONMENT
        | {
            "ENGINERY_HOME": str(home),
            "ENGINERY_CHECKOUT": str(checkout),
            "PREFECT_WORKER_QUERY_SECONDS": "3",  # a few workers may poll more often than a fleet
        }
    )
    base = (sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", RELEASES_POOL)
    releases = (*base, "--limit", str(RELEASES_AT_ONCE), "--name", f"releases on {socket.gethostname()}")
    commands: dict[str, tuple[str, ...]] = {RELEASES_POOL: releases}
    for pool in list_work_pools(fleet):
        if can_build_pool(fleet, pool):
            commands[pool] = make_worker_command(fleet, pool, fleet_file)
    return [
        Service(f"worker-{pool}", command, environment, WorkerCheck(addresses.prefect, pool))
        for pool, command in commands.items()
    ]


def can_build_pool(fleet: Fleet, pool: str) -> bool:
    """Return whether this host can build every target of a pool."""
    targets = [target for target in map(fleet.target, fleet.targets) if target.work_pool == pool]
    return all(BACKENDS[target.backend].can_build(target) is None for target in targets)


def make_worker_command(fleet: Fleet, pool: str, fleet_file: Path) -> tuple[str, ...]:
    """Return the command of a pool's worker, which checks and reports this machine and then takes one job at a time."""
    target = next(name for name in fleet.targets if fleet.target(name).work_pool == pool)
    command = (sys.executable, "-m", "flows.cli", "worker")
    return (*command, "--target", target, "--fleet", str(fleet_file.absolute()))


@dataclass(frozen=True)
class WorkerCheck:
    """A check that the Prefect server sees a pool's worker online."""

    api: str
    pool: str

    def __call__(self) -> bool:
        """Ask the server; False while it does not answer."""
        try:
            answer = requests.post(
                f"{self.api}/work_pools/{self.pool}/workers/filter", json={}, timeout=_TIMEOUT_SECONDS
            )
            workers: list[Mapping[str, Any]] = answer.json() if answer.ok else []
        except (requests.RequestException, ValueError):
            return False
        return any(worker.get("status") == "ONLINE" for worker in workers)


def _is_ok(address: str) -> bool:
    try:
        return requests.get(address, timeout=_TIMEOUT_SECONDS).ok
    except requests.RequestException:
        return False
