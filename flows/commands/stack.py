"""The team's servers: `deployments`, and one host that has them all to try it, `up` and `down`."""

import shlex
from typing import Annotated

import typer

from flows.commands.console import FleetFile, err, need_pipeline, out
from flows.inputs.fleet import FLEET
from registry.errors import EngineryError
from registry.host.home import home


def deployments(
    write: Annotated[
        bool, typer.Option("--write/--check", help="Make prefect.yaml follow, or say how it differs.")
    ] = False,
    pools: Annotated[bool, typer.Option("--pools", help="Make the work pools and automations on the server.")] = False,
    fleet: FleetFile = FLEET,
) -> None:
    """Check that prefect.yaml has a deployment for each recipe and each work pool of the fleet."""
    need_pipeline("deployments")
    from flows.inputs.choices import shipped
    from flows.inputs.fleet import load_fleet
    from flows.prefect_server import deployment_file as prefect_yaml

    machines, recipes = load_fleet(fleet), shipped(fleet)
    if write:
        prefect_yaml.write(recipes, machines)
    if differs := prefect_yaml.difference(recipes, machines):
        raise EngineryError(f"prefect.yaml does not follow {fleet}: it {differs}; run `enginery deployments --write`")
    out.print(f"{prefect_yaml.FILE} follows {fleet} and the {len(recipes)} recipes beside it", highlight=False)
    if pools:
        from flows.prefect_server.setup import set_up

        for made in set_up(machines):
            out.print(made, highlight=False)


MlflowPort = Annotated[int | None, typer.Option("--mlflow-port", min=1024, max=65535, help="5000 by default.")]
PrefectPort = Annotated[int | None, typer.Option("--prefect-port", min=1024, max=65535, help="4200 by default.")]
Artifacts = Annotated[
    str | None,
    typer.Option(
        "--artifacts", help="Where MLflow keeps bundles: a folder, or s3://bucket/path with AWS's variables set."
    ),
]


def up(
    fleet: FleetFile = FLEET,
    mlflow_port: MlflowPort = None,
    prefect_port: PrefectPort = None,
    artifacts: Artifacts = None,
) -> None:
    """Start a team's stack on this host, to try it: PostgreSQL, MLflow, Prefect, deployments, workers."""
    need_pipeline("up")
    from flows.stack import up_and_down as stack

    addresses = stack.up(home(), stack.Wanted(fleet, mlflow_port, prefect_port, artifacts), _say)
    out.print(f"MLflow   {addresses.mlflow}\nPrefect  {addresses.prefect.removesuffix('/api')}", highlight=False)
    for name, value in addresses.environment().items():
        out.print(f"export {name}={shlex.quote(value)}", highlight=False, markup=False, soft_wrap=True)


def down() -> None:
    """Stop what `up` started on this host; the data stays."""
    from flows.stack import up_and_down as stack

    stack.down(home(), _say)


def _say(line: str) -> None:
    err.print(line, highlight=False, markup=False)
