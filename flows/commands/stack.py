"""The team's servers: `deployments` on Prefect, and `up` and `down` for a whole stack on one host."""

import shlex
from typing import Annotated

import typer

from flows.commands.console import TeamFleetFile, err, need_pipeline, out
from flows.inputs.default_paths import FLEET
from registry.errors import EngineryError
from registry.host.home import home


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
