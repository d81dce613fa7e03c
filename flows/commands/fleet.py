"""A team's machines: `worker`, `deployments` on Prefect, and `up` and `down` for a whole stack on one host."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import TeamFleetFile, err, need_pipeline, out
from flows.inputs.default_paths import FLEET
from registry.errors import EngineryError
from registry.host.clock import now
from registry.host.home import home, writable_home


def worker(
    target: Annotated[str, typer.Option(help="Any target of the work pool to build for, such as l4.")],
    fleet: TeamFleetFile = FLEET,
) -> None:
    """Run the build jobs of a target's work pool on this machine, one at a time.

    First it checks that this machine fits the pool's targets, and reports its GPU and versions to the Prefect server of
    PREFECT_API_URL. Run it in the checkout.

    Example: enginery worker --target l4
    """
    need_pipeline("worker")
    from flows.inputs.fleet import load_fleet
    from flows.prefect_server.reachable import require_prefect_server
    from flows.prefect_server.settings import retry_server_errors

    loaded_fleet = load_fleet(fleet)
    loaded_fleet.target(target)  # an unknown target is refused before anything is written
    # Jobs run in folders of their own, and stages must outlive them.
    os.environ["ENGINERY_HOME"] = str(writable_home())
    # Where prefect.yaml's pull step finds code, recipes and fleet.
    os.environ.setdefault("ENGINERY_CHECKOUT", str(Path.cwd()))
    retry_server_errors()
    with require_prefect_server("worker"):
        from flows.workers.machine import QUERY_SECONDS, describe_worker, run_worker, write_report

        report = describe_worker(loaded_fleet, target, at=now())
        write_report(report)
    err.print(
        f"{report.host} works for pool {report.pool} ({', '.join(report.targets)}): {report.gpu_name or 'no GPU'}, "
        f"{report.backend} {report.backend_version}",
        highlight=False,
    )
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(QUERY_SECONDS))
    run_worker(report)


def deployments(
    write: Annotated[
        bool,
        typer.Option(
            "--write/--check", help="Rewrite the generated part of prefect.yaml; by default only report differences."
        ),
    ] = False,
    pools: Annotated[
        bool, typer.Option("--pools", help="Also create the work pools and automations on the Prefect server.")
    ] = False,
    fleet: TeamFleetFile = FLEET,
) -> None:
    """Check that prefect.yaml has a deployment for each recipe and each work pool of the fleet.

    Run it in the checkout, after a recipe or the fleet file changed; then run: prefect --no-prompt deploy --all

    Example: enginery deployments --write --pools
    """
    need_pipeline("deployments")
    from flows.inputs.choices import require_recipes
    from flows.inputs.fleet import load_fleet
    from flows.prefect_server.deployment_file import FILE, describe_difference, write_deployments

    loaded_fleet, recipes = load_fleet(fleet), require_recipes(fleet)
    if write:
        write_deployments(recipes, loaded_fleet)
    if difference := describe_difference(recipes, loaded_fleet):
        raise EngineryError(
            f"{FILE} does not match {fleet} and the recipes beside it: {difference}; run `enginery deployments --write`"
        )
    out.print(f"{FILE} matches {fleet} and the {len(recipes)} recipes beside it", highlight=False)
    if pools:
        from flows.prefect_server.setup import set_up_server

        for name in set_up_server(loaded_fleet):
            out.print(name, highlight=False)


MlflowPort = Annotated[
    int | None, typer.Option("--mlflow-port", min=1024, max=65535, help="MLflow's port (default: the last, or 5000).")
]
PrefectPort = Annotated[
    int | None, typer.Option("--prefect-port", min=1024, max=65535, help="Prefect's port (default: the last, or 4200).")
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        help="Where MLflow stores bundles: a folder, or s3://BUCKET/PATH with AWS credentials in the environment.",
    ),
]


def up(
    fleet: TeamFleetFile = FLEET,
    mlflow_port: MlflowPort = None,
    prefect_port: PrefectPort = None,
    artifacts: Artifacts = None,
) -> None:
    """Start a team's stack on this host: PostgreSQL, MLflow, Prefect, its deployments, and workers.

    Run it in the checkout. It prints the variables to export; `enginery down` stops everything.

    Example: enginery up --mlflow-port 5001
    """
    need_pipeline("up")
    from flows.stack.up_and_down import StackOptions, start_stack

    options = StackOptions(fleet, mlflow_port, prefect_port, artifacts)
    addresses = start_stack(home(), options, _print_progress)
    out.print(f"MLflow   {addresses.mlflow}\nPrefect  {addresses.prefect.removesuffix('/api')}", highlight=False)
    for name, value in addresses.environment().items():
        out.print(f"export {name}={shlex.quote(value)}", highlight=False, markup=False, soft_wrap=True)


def down() -> None:
    """Stop everything that `enginery up` started on this host; data and logs stay.

    Example: enginery down
    """
    from flows.stack.up_and_down import stop_stack

    stop_stack(home(), _print_progress)


def _print_progress(line: str) -> None:
    err.print(line, highlight=False, markup=False)
