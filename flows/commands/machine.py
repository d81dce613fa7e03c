"""TODO: flows/commands/machine.py."""

import os
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import FleetFile, Json, need_pipeline, out, plain, print_json
from flows.inputs.fleet import FLEET
from registry.host.clock import now
from registry.host.home import home
from registry.mlflow.connect import open_store


def targets(fleet: FleetFile = FLEET, as_json: Json = False) -> None:
    """Show the fleet's targets, and which of them this machine can build and measure.

    With PREFECT_API_URL also the workers of each target's pool: is one online, and what they said of themselves.
    """
    need_pipeline("targets")
    from flows.inputs.fleet import load_fleet
    from tasks.backends import BACKENDS

    machines = load_fleet(fleet)
    rows: list[dict[str, Any]] = []
    for name in machines.targets:
        target = machines.target(name)
        backend = BACKENDS[target.backend]
        builds, runs = backend.can_build(target), backend.can_run(target)
        rows.append(
            {
                "target": name,
                "backend": target.backend.value,
                "compute_capability": target.compute_capability,
                "gpu_name": target.gpu_name,
                "work_pool": target.work_pool,
                "builds": builds is None,
                "measures": runs is None,
                "why_not_build": builds,
                "why_not_measure": runs,
            }
        )
    on_fleet = "PREFECT_API_URL" in os.environ
    if on_fleet:
        _add_workers(rows)
    if as_json:
        print_json(rows)
        return
    table = Table("target", "backend", "compute capability", "builds here", "measures here")
    if on_fleet:
        table.add_column("workers")
    for row in rows:
        table.add_row(
            str(row["target"]),
            str(row["backend"]),
            str(row["compute_capability"] or ""),
            "yes" if row["builds"] else escape(f"no: {row['why_not_build']}"),
            "yes" if row["measures"] else escape(f"no: {row['why_not_measure'] if row['builds'] else 'same'}"),
            *([_workers_in_words(row)] if on_fleet else []),
        )
    out.print(table)


def _add_workers(rows: list[dict[str, Any]]) -> None:
    from flows.prefect_server.reachable import prefect_answers

    with prefect_answers("workers are known to"):
        from prefect.client.orchestration import get_client

        from flows.workers.flow_runs import is_online
        from flows.workers.machine import read_reports

        with get_client(sync_client=True) as client:
            for row in rows:
                row["online"] = is_online(client, row["work_pool"])
                row["workers"] = [plain(report) for report in read_reports(row["work_pool"])]


def _workers_in_words(row: dict[str, Any]) -> str:
    said = [
        ", ".join(filter(None, [each["host"], each["backend_version"], each["gpu_name"], each["driver"]]))
        for each in row["workers"]
    ]
    state = "online" if row["online"] else f"none online: enginery worker --target {row['target']}"
    return escape("\n".join([state, *said]))


def doctor(
    repair: Annotated[bool, typer.Option(help="Finish or set aside what a crash left half published.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine: packages, backends, GPU, registry, disk; say what to install or mend."""
    from flows.doctor import examine, mend

    mended = mend(open_store(), home(), now) if repair else []
    findings = [*mended, *examine(home(), open_store, now)]
    if as_json:
        print_json([plain(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "[green]ok  [/]" if finding.ok else "[yellow]mend[/]"
            out.print(f"{mark} {finding.what}: {escape(finding.found)}", highlight=False, soft_wrap=True)
            if finding.advice:
                out.print(f"     {escape(finding.advice)}", highlight=False, soft_wrap=True)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)
