"""Releasing stale engines again: `refresh`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import Json, TeamFleetFile, need_pipeline, out, print_json
from flows.inputs.default_paths import FLEET
from registry.errors import EngineryError
from registry.host.home import writable_home
from registry.mlflow.connect import open_store

if TYPE_CHECKING:
    from flows.refresh.refresh_engines import ReleasePlans
    from flows.refresh.results import Plan, Refreshed


def refresh(
    recipe: Annotated[
        list[Path] | None, typer.Argument(help="Recipes to refresh (default: all beside the fleet file).")
    ] = None,
    fleet: TeamFleetFile = FLEET,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what is stale, and why.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Release every recipe, stale or not.")] = False,
    as_json: Json = False,
) -> None:
    """Release again the recipes with stale engines, and promote what is allowed and proven no worse.

    With PREFECT_API_URL set the recipes' deployments do it on the fleet; otherwise this machine does, for the targets
    that it can build.

    Example: enginery refresh --dry-run
    """
    need_pipeline("refresh")
    from flows.prefect_server import local as local_prefect

    local_prefect.configure_prefect(writable_home())
    from flows.prefect_server.reachable import require_prefect_server
    from flows.refresh.lineage import local_toolchains
    from flows.refresh.refresh_engines import pool_toolchains, refresh_recipes, release_deployed
    from flows.refresh.results import RefreshRequest, refresh_json

    request = RefreshRequest(tuple(recipe) if recipe else None, fleet, dry_run, full)
    if "PREFECT_API_URL" in os.environ:
        with require_prefect_server("refresh"):
            store = open_store()
            results = refresh_recipes(
                request, store, pool_toolchains(), lambda plans: release_deployed(plans, str(fleet))
            )
    else:
        results = refresh_recipes(request, open_store(), local_toolchains, _make_local_release(fleet, quiet=as_json))
    if as_json:
        print_json(refresh_json(results))
    else:
        _show_results(results)
    if failures := [f"{result.recipe}: {result.reason}" for result in results if result.state == "failed"]:
        raise EngineryError("; ".join(failures))


def _make_local_release(fleet: Path, *, quiet: bool) -> "ReleasePlans":
    from flows.commands.release import release_here
    from flows.inputs.fleet import load_fleet

    def release_plans(plans: "Sequence[Plan]") -> Mapping[Path, str]:
        failures = {}
        for plan in plans:
            narrowed = plan.pinned.model_copy(update={"targets": plan.targets})
            try:
                report = release_here(narrowed, load_fleet(fleet), quiet=quiet)
            except EngineryError as error:
                failures[plan.recipe] = str(error)
            else:
                failures[plan.recipe] = f"release {report.release} built no engine" if report.failed else ""
        return failures

    return release_plans


def _show_results(results: "Sequence[Refreshed]") -> None:
    from flows.refresh.results import describe_refresh

    table = Table("model", "target", "precision", "version", "why it is stale")
    for result in results:
        for engine in result.plan.stale if result.plan else ():
            version = "" if engine.version is None else str(engine.version)
            table.add_row(engine.model, engine.target, engine.precision.value, version, escape(engine.reason))
    if table.row_count:
        out.print(table)
    for result in results:
        out.print(f"{result.recipe}: {escape(describe_refresh(result))}", highlight=False, soft_wrap=True)
