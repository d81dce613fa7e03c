"""Building for the fleet: `worker`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import TeamFleetFile, err, need_pipeline
from flows.inputs.default_paths import FLEET
from registry.host.clock import now
from registry.host.home import writable_home


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
