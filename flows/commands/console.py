"""What the subcommands share: consoles, common options, the registry they talk to, and JSON."""

import datetime
import gc
import getpass
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from registry.errors import BadInput
from registry.host.home import home

# A log has no width of its own: 80 columns would fold the tables into noise.
out = Console(width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
FleetFile = Annotated[Path, typer.Option("--fleet", help="The fleet file that names the targets.")]
FLEET = Path("recipes/fleet.yaml")


# A server that is restarted is back by then. Who sits at a terminal wants to know at once; a job of the fleet can wait.
JOB_PATIENCE_SECONDS = 90.0


def open_store(*, patience_seconds: float = 0.0) -> Any:
    """The registry: MLFLOW_TRACKING_URI's, or the embedded one under ENGINERY_HOME.

    ENGINERY_LEASE_DATABASE names the database that serialises promotion where MLflow is behind a server. One that does
    not answer is asked again for `patience_seconds`.

    Raises:
        BadInput: MLFLOW_TRACKING_URI is no address of a registry.
        EngineryError: nothing answers there, or it is not trusted.
    """
    uri, leases = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("ENGINERY_LEASE_DATABASE")
    if uri:
        from registry.mlflow.connect import check_reachable

        check_reachable(uri, patience_seconds)
    from registry.mlflow.store import MlflowStore, embedded_store

    store = MlflowStore(uri, home(), lease_database=leases) if uri else embedded_store(home())
    # What was imported stays: each full collection of garbage would go over all of it, and take a quarter of a second.
    gc.freeze()
    return store


def need_pipeline(what: str) -> None:
    """Refuse `enginery <what>` where only the base install is there."""
    need("prefect", "onnxruntime", "datasets", what=what)


def need(*packages: str, what: str) -> None:
    """Refuse `enginery <what>` where one of its packages is missing.

    Raises:
        BadInput: says what to install.
    """
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise BadInput(
            f"`enginery {what}` needs {', '.join(missing)}, which the base install leaves out: "
            "pip install 'enginery[pipeline]'"
        )


def who_decides(given: str) -> str:
    """The name given, or the user's."""
    return given or getpass.getuser()


def now() -> datetime.datetime:
    """The clock of the command line, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON values."""
    from pydantic import TypeAdapter

    plain: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return plain


def print_json(value: object) -> None:
    """Print for programs."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
