"""Making engines: `release`, and what this machine is able to do: `targets`, `doctor`."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.commands.console import FleetFile, Json, err, need_pipeline, out, print_json
from flows.inputs.fleet import FLEET
from registry.errors import BadInput
from registry.host.clock import now
from registry.host.home import home
from registry.mlflow.connect import open_store


def release(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, such as recipes/quickstart.yaml.")] = None,
    fleet: FleetFile = FLEET,
    on_workers: Annotated[bool, typer.Option("--on-workers", help="Have the targets' work pools build.")] = False,
    resume: Annotated[str | None, typer.Option(help="Id of a release on workers: make only what it lacks.")] = None,
    as_json: Json = False,
) -> None:
    """Make, measure, judge and publish every engine of a recipe that this machine, or the fleet's workers, can build.

    What is already made is found by its key: a second release of the same recipe builds nothing.
    """
    need_pipeline("release")
    from flows.inputs.fleet import load_fleet
    from flows.inputs.recipe import load_recipe

    if (recipe is None) == (resume is None):
        raise BadInput("name a recipe, or with --resume a release that was made on workers: one of the two")
    if on_workers or resume is not None or recipe is None:
        _show(_release_on_workers(recipe, fleet, resume, quiet=as_json), as_json=as_json)
    else:
        _show(_release(load_recipe(recipe), load_fleet(fleet), quiet=as_json), as_json=as_json)


def _show(result: Any, *, as_json: bool) -> None:
    from tasks.report.rows import ReleaseIncomplete, report_json
    from tasks.report.table import list_notes, make_release_table

    if as_json:
        print_json(report_json(result))
    else:
        out.print(make_release_table(result))
        for line in list_notes(result):
            out.print(f"[dim]- {escape(line)}[/]", highlight=False, soft_wrap=True)
        if result.found:
            out.print(
                f"Release {result.release} was complete already: everything was found by its key, nothing rebuilt."
            )
        out.print(
            "* scored by the exact ONNX graph on this machine's CPU; the engine itself has not run.", soft_wrap=True
        )
        _say_where_the_ui_is()
    if result.state != "complete":
        raise ReleaseIncomplete(result)


def _release_on_workers(recipe: Path | None, fleet: Path, resume: str | None, *, quiet: bool) -> Any:
    from flows.prefect_server import local as local_prefect
    from flows.prefect_server.reachable import prefect_answers
    from flows.prefect_server.settings import be_patient
    from tasks.execution.interrupt import remember_ctrl_c

    remember_ctrl_c()
    local_prefect.configure(home())
    be_patient()
    with prefect_answers("workers are reached through"):
        return _through_workers(recipe, fleet, resume, quiet=quiet)


def _through_workers(recipe: Path | None, fleet: Path, resume: str | None, *, quiet: bool) -> Any:
    from prefect import flow

    from flows.release.progress import progress_report
    from flows.workers.release_on_workers import ReleaseRequest, release_on_workers
    from tasks.report.rows import ReleaseIncomplete

    # The same job as the deployment's, with its progress on this terminal.
    job = flow(name="release-on-workers", validate_parameters=False, persist_result=False)(release_on_workers)
    with progress_report(err, quiet=quiet) as report:
        try:
            return job(ReleaseRequest(recipe, fleet, resume=resume), open_store(), report, _said(quiet))
        except ReleaseIncomplete as incomplete:
            return incomplete.report


def _release(recipe: Any, fleet: Any, *, quiet: bool) -> Any:
    from flows.prefect_server import local as local_prefect
    from flows.release.identity import find_release
    from tasks.execution.interrupt import remember_ctrl_c
    from tasks.execution.workspace import Workspace

    remember_ctrl_c()
    local_prefect.configure(home())
    # A new home has no finished release to be found: Prefect may start at once.
    prefect_is_up = local_prefect.start() if local_prefect.is_new() else None
    store, workspace = open_store(), Workspace(home() / "stages")
    workspace.sweep()
    pinned, release, found = find_release(recipe, fleet, store)
    if found is not None:
        return found
    prefect_is_up = prefect_is_up or local_prefect.start()
    # Torch, Prefect and matplotlib: six seconds that a release found finished does not wait for.
    from flows.release.progress import progress_report
    from flows.release.release_engines import open_context, release_engines

    with progress_report(err, quiet=quiet) as report:
        context = open_context(pinned, store, workspace, report, _said(quiet), now)
        report("start Prefect", 0)
        prefect_is_up()
        return release_engines(context, fleet, release)


def _said(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else partial(err.print, markup=False, highlight=False)


def _say_where_the_ui_is() -> None:
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        out.print(f"Compare the engines in the MLflow UI at {uri}", highlight=False, soft_wrap=True)
        return
    out.print(
        "Compare the engines in the MLflow UI: run the next line, then open http://127.0.0.1:5000", highlight=False
    )
    out.print(f"  mlflow ui --backend-store-uri sqlite:///{home()}/mlflow.db", highlight=False, soft_wrap=True)
