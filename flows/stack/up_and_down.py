"""A whole team stack on one host: `up` starts what does not run, `down` stops what `up` started; the data stays."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flows.inputs.fleet import load_fleet
from flows.prefect_server.deployment_file import FILE
from flows.stack import postgres as stack_postgres
from flows.stack.processes import Processes, Service
from flows.stack.services import HOST, Addresses, client, inherited, mlflow_server, prefect_server, workers
from registry.errors import BadInput

MLFLOW_PORT, PREFECT_PORT = 5000, 4200
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What a stack is started with; None is what it was started with last, or the default."""

    fleet: Path
    mlflow_port: int | None = None
    prefect_port: int | None = None
    artifacts: str | None = None


def up(home: Path, wanted: Wanted, say: Say) -> Addresses:
    """Start PostgreSQL, MLflow, Prefect, the deployments and the workers, as far as they do not run.

    Raises:
        BadInput: no checkout here, a port that is taken, no PostgreSQL, or other options than what runs has.
        EngineryError: a service did not start; what runs stays, for another `up` or a `down`.
    """
    if not FILE.exists():
        raise BadInput(f"there is no {FILE} here: run this in the checkout")
    load_fleet(wanted.fleet)  # a bad one is said before anything starts
    with _alone(home):
        processes = _processes(home)
        options = _options(processes, wanted, home)
        processes.remember(options)
        cluster = stack_postgres.make_cluster(home / "stack" / "postgres")
        mlflow_port, prefect_port = int(options["mlflow_port"]), int(options["prefect_port"])
        addresses = Addresses(
            f"http://{HOST}:{mlflow_port}", f"http://{HOST}:{prefect_port}/api", cluster.uri("mlflow", "psycopg")
        )
        _start(processes, [cluster.service(inherited())], say)
        cluster.make_databases()
        servers = [
            mlflow_server(cluster, mlflow_port, options["artifacts"]),
            prefect_server(cluster, prefect_port, home / "stack" / "prefect"),
        ]
        _start(processes, servers, say)
        _deploy(processes, client(addresses, home), wanted.fleet, say)
        _start(processes, workers(wanted.fleet, addresses, home, Path.cwd()), say)
    return addresses


def down(home: Path, say: Say) -> None:
    """Stop everything that `up` started, the last first; data and logs stay.

    Raises:
        BadInput: the state file cannot be read, or an `up` is at work.
    """
    with _alone(home):
        processes = _processes(home)
        for name in reversed(list(processes.state.services)):
            began = time.monotonic()
            processes.stop(name)
            say(f"{name} is down ({time.monotonic() - began:.1f} s)")
        processes.sweep()


def _start(processes: Processes, services: list[Service], say: Say) -> None:
    began = time.monotonic()
    new = [service for service in services if not processes.is_running(service.name)]
    for service in new:
        processes.start(service)
    for service in services:
        processes.wait(service)
        state = f"is up ({time.monotonic() - began:.1f} s)" if service in new else "was up"
        say(f"{service.name} {state}")


def _deploy(processes: Processes, environment: dict[str, str], fleet: Path, say: Say) -> None:
    began = time.monotonic()
    ours = (sys.executable, "-m", "flows.cli", "deployments", "--pools", "--fleet", str(fleet))
    processes.run("pools", ours, environment)
    processes.run("deploy", (sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"), environment)
    say(f"work pools, automations and deployments are made ({time.monotonic() - began:.1f} s)")


def _options(processes: Processes, wanted: Wanted, home: Path) -> dict[str, str]:
    last, artifacts = processes.options, wanted.artifacts
    if artifacts and "://" not in artifacts:
        artifacts = str(Path(artifacts).absolute())
    asked = {
        "mlflow_port": str(wanted.mlflow_port or ""),
        "prefect_port": str(wanted.prefect_port or ""),
        "artifacts": artifacts,
    }
    defaults = {"mlflow_port": str(MLFLOW_PORT), "prefect_port": str(PREFECT_PORT)}
    defaults["artifacts"] = str(home / "stack" / "artifacts")
    options = {name: given or last.get(name) or defaults[name] for name, given in asked.items()}
    if changed := [
        name for name in options if options[name] != last.get(name, options[name]) and _held(processes, name)
    ]:
        runs_with = ", ".join(f"--{name.replace('_', '-')} {last[name]}" for name in changed)
        raise BadInput(f"the stack runs with {runs_with}: `enginery down` first, then start it with the new options")
    return options


def _held(processes: Processes, option: str) -> bool:
    """Whether something runs that was started with the option; workers know every address."""
    names = [name for name in processes.state.services if processes.is_running(name)]
    server = "prefect" if option == "prefect_port" else "mlflow"
    return any(name == server or name.startswith("worker-") for name in names)


def _processes(home: Path) -> Processes:
    return Processes(home / "stack.json", home / "logs")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / "stack.lock", timeout=0):  # a kernel lock: it falls with its process
            yield
    except Timeout:
        raise BadInput(f"another `enginery up` or `down` is at work on {home}: wait for it") from None
