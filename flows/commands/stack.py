"""The team's servers: `deployments`, and one host that has them all to try it, `up` and `down`."""

from typing import Annotated

import typer

from flows.commands.shared import FLEET, FleetFile, need_pipeline, out
from registry.errors import EngineryError


def deployments(
    write: Annotated[
        bool, typer.Option("--write/--check", help="Make prefect.yaml follow, or say how it differs.")
    ] = False,
    pools: Annotated[bool, typer.Option("--pools", help="Make the work pools and automations on the server.")] = False,
    fleet: FleetFile = FLEET,
) -> None:
    """Check that prefect.yaml has a deployment for each recipe and each work pool of the fleet."""
    need_pipeline("deployments")
    from flows import prefect_yaml
    from flows.recipe import load_fleet

    machines, recipes = load_fleet(fleet), prefect_yaml.shipped(fleet)
    if write:
        prefect_yaml.write(recipes, machines)
    if differs := prefect_yaml.difference(recipes, machines):
        raise EngineryError(f"prefect.yaml does not follow {fleet}: it {differs}; run `enginery deployments --write`")
    out.print(f"{prefect_yaml.FILE} follows {fleet} and the {len(recipes)} recipes beside it", highlight=False)
    if pools:
        from flows.prefect_setup import make_pools, watch_runs

        for name in make_pools(machines):
            out.print(f"work pool {name}", highlight=False)
        for name in watch_runs():
            out.print(f"automation {name}", highlight=False)
