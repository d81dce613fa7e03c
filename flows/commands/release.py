"""Building engines: `release`, on this machine or on the fleet's workers."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.commands.console import FleetFile, Json, err, need_pipeline, out, print_json
from flows.commands.recipe import describe_plan
from flows.inputs.default_paths import FLEET
from registry.errors import BadInput, EngineryError, shown_address
from registry.host.clock import now
from registry.host.home import home, writable_home
from registry.mlflow.connect import open_store

if TYPE_CHECKING:
    from flows.inputs.fleet import Fleet
    from flows.inputs.recipe import Recipe
    from flows.release.check import RecipeCheck
    from tasks.report.rows import ReleaseReport


# The exit code of a release that worked, and none of whose engines passed.
NOTHING_PASSED = 3


def release(
    recipe: Annotated[
        Path | None, typer.Argument(help="Path of the recipe, such as recipes/quickstart.yaml; omit it with --resume.")
    ] = None,
    fleet: FleetFile = FLEET,
    on_workers: Annotated[
        bool, typer.Option("--on-workers", help="Build on the workers of each target's work pool, not on this machine.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option(help="Id of an earlier release on workers: build only the missing engines.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build, measure, judge and publish every engine of a recipe.

    Without --on-workers this machine does it, for the targets that it can build. Finished stages are reused: releasing
    the same recipe again rebuilds nothing. Exits with 3 where the release worked and no engine passed its gates.

    Example: enginery release recipes/quickstart.yaml
    """
    need_pipeline("release")
    from flows.inputs.fleet import load_fleet
    from flows.inputs.recipe import load_recipe

    if (recipe is None) == (resume is None):
        raise BadInput("pass either a recipe, or --resume with the id of an earlier release on workers")
    if on_workers or resume is not None or recipe is None:
        show_report(_release_on_workers(recipe, fleet, resume, quiet=as_json), as_json=as_json)
    else:
        show_report(release_here(load_recipe(recipe), load_fleet(fleet), quiet=as_json), as_json=as_json)


def release_here(recipe: "Recipe", fleet: "Fleet", *, quiet: bool) -> "ReleaseReport":
    """Release a recipe on this machine, or return the report of the same release if it is complete already.

    Args:
        recipe: as it was read; hub revisions are resolved here.
        fleet: describes the recipe's targets.
        quiet: show no progress.

    Raises:
        EngineryError: the release failed, or a registry, hub or Prefect server does not answer.
    """
    from flows.prefect_server import local as local_prefect
    from flows.release.identity import find_release
    from flows.release.progress import Tally, progress_report
    from tasks.execution.interrupt import remember_stop_signals
    from tasks.execution.step_times import StepTimes
    from tasks.execution.workspace import Workspace

    remember_stop_signals()
    local_prefect.configure_prefect(writable_home())
    store, workspace, tally = open_store(), Workspace(home() / "stages"), Tally()
    workspace.sweep()
    with progress_report(err, tally, quiet=quiet) as reporter:
        reporter("check the recipe", 0)
        try:
            pinned, release, report = find_release(recipe, fleet, store)
        except BadInput:
            _check(recipe, fleet).require()  # all that is wrong, and not only what stopped the search
            raise
        if report is not None:
            return report
        check = _check(pinned, fleet)
        check.require()
        for sentence in (*check.warnings, describe_plan(check)):
            reporter.say(sentence)
        tally.expect(check.step_seconds, StepTimes(workspace.root, pinned.model).record)
        wait_for_prefect = local_prefect.start_prefect()
        reporter("load the libraries", 0)
        # Torch, Prefect and matplotlib: six seconds more, beside the start of Prefect's server.
        from flows.release.release_engines import open_context, release_engines

        context = open_context(pinned, store, workspace, reporter, now)
        reporter("start Prefect", 0)
        wait_for_prefect()
        with local_prefect.explain_failures():
            return release_engines(context, fleet, release)


def _check(recipe: "Recipe", fleet: "Fleet") -> "RecipeCheck":
    # These packages take seconds to import, which a release found finished does not spend.
    from flows.inputs.plan import why_not_here
    from flows.release.check import check_recipe

    return check_recipe(recipe, fleet, why_not_here, home())


def _release_on_workers(recipe: Path | None, fleet: Path, resume: str | None, *, quiet: bool) -> "ReleaseReport":
    from flows.prefect_server import local as local_prefect
    from flows.prefect_server.reachable import require_prefect_server
    from flows.prefect_server.settings import retry_server_errors
    from tasks.execution.interrupt import remember_stop_signals

    remember_stop_signals()
    local_prefect.configure_prefect(writable_home())
    retry_server_errors()
    with require_prefect_server("release --resume" if recipe is None else "release --on-workers"):
        return _run_release_flow(recipe, fleet, resume, quiet=quiet)


def _run_release_flow(recipe: Path | None, fleet: Path, resume: str | None, *, quiet: bool) -> "ReleaseReport":
    from prefect import flow

    from flows.release.progress import Tally, progress_report
    from flows.workers.release_on_workers import ReleaseRequest, release_on_workers
    from tasks.report.rows import ReleaseIncomplete

    # The same flow as the deployment's, with its progress on this terminal.
    run_flow = flow(name="release-on-workers", validate_parameters=False, persist_result=False)(release_on_workers)
    request = ReleaseRequest(recipe, fleet, resume=resume)
    with progress_report(err, Tally(), quiet=quiet) as reporter:
        try:
            report: ReleaseReport = run_flow(request, open_store(), reporter)
        except ReleaseIncomplete as incomplete:
            return incomplete.report
        return report


def show_report(report: "ReleaseReport", *, as_json: bool) -> None:
    """Print a release's report.

    Raises:
        ReleaseIncomplete: it built no engine, or lacks targets.
        typer.Exit: no engine passed.
    """
    from tasks.report.rows import ReleaseIncomplete, report_json
    from tasks.report.table import (
        describe_result,
        describe_undecided,
        has_graph_scores,
        list_notes,
        make_release_table,
    )

    if as_json:
        print_json(report_json(report))
    else:
        out.print(make_release_table(report))
        for note in list_notes(report):
            out.print(f"[dim]- {escape(note)}[/]", highlight=False, soft_wrap=True)
        if report.found:
            out.print(f"Release {report.release} was already complete; nothing was rebuilt.")
        if has_graph_scores(report):
            out.print(
                "* scored by the exact ONNX graph on this machine's CPU; the engine itself has not run.", soft_wrap=True
            )
        out.print(escape(describe_result(report)), highlight=False, soft_wrap=True)
        _print_ui_address(report)
        if undecided := describe_undecided(report):
            out.print(escape(undecided), highlight=False, soft_wrap=True)
    if report.state != "complete":
        raise ReleaseIncomplete(report)
    if not (report.passed or report.found):
        raise typer.Exit(NOTHING_PASSED)


def _print_ui_address(report: "ReleaseReport") -> None:
    from registry.mlflow.runs.addresses import LOCAL_UI, compare_address, model_address, report_address

    store = open_store()
    compare = compare_address(store, report.model, report.run_id)
    if compare.startswith(LOCAL_UI):
        out.print("To see the engines in MLflow, run the next line:", highlight=False)
        out.print(
            f"  mlflow ui --backend-store-uri {shown_address(store.client.tracking_uri)}",
            highlight=False,
            soft_wrap=True,
        )
    addresses = {"compare them": compare, "all versions": model_address(store, report.model)}
    with suppress(EngineryError):  # an address is not worth a release that worked
        addresses["report"] = report_address(store, report.run_id)
    for what, address in addresses.items():
        out.print(f"{what}: {address}", highlight=False, markup=False, soft_wrap=True)
