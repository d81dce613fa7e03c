"""Making stale engines again: `refresh`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import FleetFile, Json, need_pipeline, out, print_json
from flows.inputs.fleet import FLEET
from registry.errors import EngineryError
from registry.host.home import home
from registry.mlflow.connect import open_store


def refresh(
    recipe: Annotated[
        list[Path] | None, typer.Argument(help="Recipes to look at (default: all beside the fleet file).")
    ] = None,
    fleet: FleetFile = FLEET,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is stale, and why.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Release everything, stale or not.")] = False,
    as_json: Json = False,
) -> None:
    """Find the engines that have gone stale, release those again, and promote what is allowed and proven no worse.

    With PREFECT_API_URL the recipes' deployments do it on the fleet; without it this machine does what it can build.
    """
    need_pipeline("refresh")
    from flows.prefect_server import local as local_prefect

    local_prefect.configure(home())
    from flows.prefect_server.reachable import prefect_answers
    from flows.refresh.lineage import local_toolchains
    from flows.refresh.refresh_engines import pool_toolchains, refresh_recipes, release_deployed
    from flows.refresh.results import RefreshRequest, refresh_json

    asked = RefreshRequest(tuple(recipe) if recipe else None, fleet, dry_run, full)
    if "PREFECT_API_URL" in os.environ:
        with prefect_answers("the recipes' deployments are run by"):
            store = open_store()
            results = refresh_recipes(
                asked, store, pool_toolchains(), lambda plans: release_deployed(plans, str(fleet))
            )
    else:
        release = _release_here(fleet, quiet=as_json)
        results = refresh_recipes(asked, open_store(), local_toolchains, release)
    if as_json:
        print_json(refresh_json(results))
    else:
        _show(results)
    if failed := [f"{each.recipe}: {each.reason}" for each in results if each.state == "failed"]:
        raise EngineryError("; ".join(failed))


def _release_here(fleet: Path, *, quiet: bool) -> Any:
    from flows.commands.release import _release
    from flows.inputs.fleet import load_fleet

    def release(plans: Sequence[Any]) -> Mapping[Path, str]:
        failures = {}
        for plan in plans:
            narrowed = plan.pinned.model_copy(update={"targets": plan.targets})
            try:
                report = _release(narrowed, load_fleet(fleet), quiet=quiet)
            except EngineryError as error:
                failures[plan.recipe] = str(error)
            else:
                failures[plan.recipe] = f"release {report.release} published no engine" if report.failed else ""
        return failures

    return release


def _show(results: Sequence[Any]) -> None:
    from flows.refresh.results import describe_refresh

    table = Table("model", "target", "precision", "version", "why it is stale")
    for each in results:
        for found in each.plan.stale if each.plan else ():
            version = "" if found.version is None else str(found.version)
            table.add_row(found.model, found.target, found.precision.value, version, escape(found.reason))
    if table.row_count:
        out.print(table)
    for each in results:
        out.print(f"{each.recipe}: {escape(describe_refresh(each))}", highlight=False, soft_wrap=True)
