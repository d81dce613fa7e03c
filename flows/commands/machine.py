"""This machine: `targets` shows what it can build and measure, `doctor` what to install or fix."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import FleetFile, Json, need_pipeline, out, plain, print_json
from flows.inputs.default_paths import BUILT_IN_FLEET, FLEET
from registry.host.clock import now
from registry.host.home import home
from registry.mlflow.connect import open_store

if TYPE_CHECKING:
    from flows.inputs.fleet import Fleet
    from flows.workers.machine import WorkerReport
    from registry.records import GpuTarget


@dataclass(frozen=True)
class PoolState:
    """A work pool on the Prefect server: whether a worker is online, and what its workers reported, newest first."""

    online: bool
    workers: "tuple[WorkerReport, ...]"


@dataclass(frozen=True)
class TargetRow:
    """One target of the fleet as this machine sees it; a reason is None where there is no obstacle.

    `pool` is None where no Prefect server is configured.
    """

    target: "GpuTarget"
    why_not_build: str | None
    why_not_measure: str | None
    pool: PoolState | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `targets --json` prints for this target."""
        values: dict[str, Any] = {
            "target": self.target.name,
            "backend": self.target.backend.value,
            "compute_capability": self.target.compute_capability,
            "gpu_name": self.target.gpu_name,
            "work_pool": self.target.work_pool,
            "builds": self.why_not_build is None,
            "measures": self.why_not_measure is None,
            "why_not_build": self.why_not_build,
            "why_not_measure": self.why_not_measure,
        }
        if self.pool is not None:
            values |= {"online": self.pool.online, "workers": [plain(report) for report in self.pool.workers]}
        return values


def targets(fleet: FleetFile = FLEET, as_json: Json = False) -> None:
    """Show the fleet's targets, and which of them this machine can build and measure.

    The fleet is that of recipes/fleet.yaml, or the built-in one where there is no such file.

    With PREFECT_API_URL set it also shows whether a worker of each target's pool is online, and what it reported.

    Example: enginery targets --fleet recipes/fleet.yaml
    """
    need_pipeline("targets")
    from flows.inputs.fleet import load_fleet

    rows = _examine_targets(load_fleet(fleet))
    if "PREFECT_API_URL" in os.environ:
        rows = _add_pools(rows)
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        out.print(_make_table(rows))
        if fleet == BUILT_IN_FLEET:
            out.print(
                f"This is the built-in fleet: there is no {FLEET} here. To have other targets, write one as "
                "docs/recipes.md says, or pass --fleet.",
                highlight=False,
                soft_wrap=True,
            )


def _examine_targets(fleet: "Fleet") -> list[TargetRow]:
    from tasks.backends import BACKENDS

    rows = []
    for target in map(fleet.target, fleet.targets):
        backend = BACKENDS[target.backend]
        rows.append(TargetRow(target, backend.can_build(target), backend.can_run(target)))
    return rows


def _add_pools(rows: list[TargetRow]) -> list[TargetRow]:
    from flows.prefect_server.reachable import require_prefect_server

    with require_prefect_server("targets"):
        from prefect.client.orchestration import get_client

        from flows.workers.flow_runs import is_online
        from flows.workers.machine import read_reports

        with get_client(sync_client=True) as client:
            return [
                replace(
                    row, pool=PoolState(is_online(client, row.target.work_pool), read_reports(row.target.work_pool))
                )
                for row in rows
            ]


def _make_table(rows: list[TargetRow]) -> Table:
    table = Table("target", "backend", "compute capability", "builds here", "measures here")
    if any(row.pool for row in rows):
        table.add_column("workers")
    for row in rows:
        # The same obstacle twice in a line would only widen the table.
        why_not_measure = "same" if row.why_not_build else row.why_not_measure
        table.add_row(
            row.target.name,
            row.target.backend.value,
            row.target.compute_capability or "",
            escape(f"no: {row.why_not_build}") if row.why_not_build else "yes",
            escape(f"no: {why_not_measure}") if row.why_not_measure else "yes",
            *([_describe_pool(row.target.name, row.pool)] if row.pool else []),
        )
    return table


def _describe_pool(target: str, pool: PoolState) -> str:
    state = "online" if pool.online else f"none online: enginery worker --target {target}"
    workers = [
        ", ".join(filter(None, [report.host, report.backend_version, report.gpu_name, report.driver]))
        for report in pool.workers
    ]
    return escape("\n".join([state, *workers]))


def doctor(
    repair: Annotated[
        bool, typer.Option(help="Also finish or set aside publications that a crash interrupted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine (packages, GPU, disk, registry) and say what to install or fix.

    Exits with 1 if something is missing that every command needs.

    Example: enginery doctor --repair
    """
    from flows.doctor import examine, repair_registry

    repairs = repair_registry(open_store(), home(), now) if repair else []
    findings = [*repairs, *examine(home(), open_store, now)]
    if as_json:
        print_json([plain(finding) for finding in findings])
    else:
        for finding in findings:
            color = "green" if finding.ok else "red" if finding.needed else "yellow"
            line = f"{finding.what}: {finding.found}"
            out.print(f"[{color}]{finding.mark}[/] {escape(line)}", highlight=False, soft_wrap=True)
            if finding.advice:
                out.print(f"     {escape(finding.advice)}", highlight=False, soft_wrap=True)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)
