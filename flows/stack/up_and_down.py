"""`enginery up` and `enginery down`: start what is not running, or stop what was started; the data stays."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flows.inputs.fleet import load_fleet
from flows.prefect_server.deployment_file import FILE
from flows.stack.postgres import open_cluster
from flows.stack.processes import Processes, Service
from flows.stack.services import (
    HOST,
    Addresses,
    inherit_environment,
    make_client_environment,
    make_mlflow_service,
    make_prefect_service,
    make_worker_services,
)
from registry.errors import BadInput

MLFLOW_PORT, PREFECT_PORT = 5000, 4200
PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class StackOptions:
    """The options of `enginery up`; None stands for the option of the last `up`, or the default."""

    fleet: Path
    mlflow_port: int | None = None
    prefect_port: int | None = None
    artifacts: str | None = None


def start_stack(home: Path, options: StackOptions, print_line: PrintLine) -> Addresses:
    """Start PostgreSQL, MLflow, Prefect, its deployments and workers, apart from those that are running.

    Raises:
        BadInput: this is no checkout, a port is in use, PostgreSQL is missing, or a running service has other options.
        EngineryError: a service did not start; those that run stay, for another `up` or a `down`.
    """
    if not FILE.exists():
        raise BadInput(f"there is no {FILE} here: run this in the checkout")
    load_fleet(options.fleet)  # an invalid one is refused before anything starts
    with _lock_stack(home):
        processes = _open_processes(home)
        values = choose_options(processes, options, home)
        processes.remember_options(values)
        cluster = open_cluster(home / "stack" / "postgres")
        mlflow_port, prefect_port = int(values["mlflow_port"]), int(values["prefect_port"])
        addresses = Addresses(
            f"http://{HOST}:{mlflow_port}", f"http://{HOST}:{prefect_port}/api", cluster.uri("mlflow", "psycopg")
        )
        _start_services(processes, [cluster.make_service(inherit_environment())], print_line)
        cluster.create_databases()
        servers = [
            make_mlflow_service(cluster, mlflow_port, values["artifacts"]),
            make_prefect_service(cluster, prefect_port, home / "stack" / "prefect"),
        ]
        _start_services(processes, servers, print_line)
        _deploy_flows(processes, make_client_environment(addresses, home), options.fleet, print_line)
        workers = make_worker_services(options.fleet, addresses, home, Path.cwd())
        _start_services(processes, workers, print_line)
    return addresses


def stop_stack(home: Path, print_line: PrintLine) -> None:
    """Stop everything that `start_stack` started, in reverse order; data and logs stay.

    Raises:
        BadInput: the state file cannot be read, or an `enginery up` or `enginery down` is running.
    """
    with _lock_stack(home):
        processes = _open_processes(home)
        for name in reversed(list(processes.state.services)):
            began = time.monotonic()
            processes.stop(name)
            print_line(f"{name} is down ({time.monotonic() - began:.1f} s)")
        processes.sweep()


def choose_options(processes: Processes, options: StackOptions, home: Path) -> dict[str, str]:
    """Return the ports and the artifacts' place: as given, or as in the last `up`, or the defaults.

    Raises:
        BadInput: a running service was started with another value.
    """
    last, artifacts = processes.options, options.artifacts
    if artifacts and "://" not in artifacts:
        artifacts = str(Path(artifacts).absolute())
    given = {
        "mlflow_port": str(options.mlflow_port or ""),
        "prefect_port": str(options.prefect_port or ""),
        "artifacts": artifacts,
    }
    defaults = {
        "mlflow_port": str(MLFLOW_PORT),
        "prefect_port": str(PREFECT_PORT),
        "artifacts": str(home / "stack" / "artifacts"),
    }
    values = {name: given[name] or last.get(name) or defaults[name] for name in defaults}
    if changed := [
        name for name in values if values[name] != last.get(name, values[name]) and _in_use(processes, name)
    ]:
        current = ", ".join(f"--{name.replace('_', '-')} {last[name]}" for name in changed)
        raise BadInput(f"the stack runs with {current}: run `enginery down`, then `enginery up` with the new options")
    return values


def _in_use(processes: Processes, option: str) -> bool:
    """Return whether a running service was started with the option; workers know every address."""
    running = [name for name in processes.state.services if processes.is_running(name)]
    server = "prefect" if option == "prefect_port" else "mlflow"
    return any(name == server or name.startswith("worker-") for name in running)


def _start_services(processes: Processes, services: list[Service], print_line: PrintLine) -> None:
    began = time.monotonic()
    new = [service for service in services if not processes.is_running(service.name)]
    for service in new:
        processes.start(service)
    for service in services:
        processes.wait(service)
        state = f"is up ({time.monotonic() - began:.1f} s)" if service in new else "was already up"
        print_line(f"{service.name} {state}")


def _deploy_flows(processes: Processes, environment: dict[str, str], fleet: Path, print_line: PrintLine) -> None:
    began = time.monotonic()
    create_pools = (sys.executable, "-m", "flows.cli", "deployments", "--pools", "--fleet", str(fleet))
    processes.run("pools", create_pools, environment)
    processes.run("deploy", (sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"), environment)
    print_line(f"work pools, automations and deployments are up to date ({time.monotonic() - began:.1f} s)")


def _open_processes(home: Path) -> Processes:
    return Processes(home / "stack.json", home / "logs")


@contextmanager
def _lock_stack(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / "stack.lock", timeout=0):  # a kernel lock: it ends with its process
            yield
    except Timeout:
        raise BadInput(f"another `enginery up` or `enginery down` is running for {home}: wait until it ends") from None
