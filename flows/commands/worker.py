"""Taking work for the fleet: `worker`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import FleetFile, err, need_pipeline
from flows.inputs.fleet import FLEET
from registry.host.clock import now
from registry.host.home import writable_home


def worker(
    target: Annotated[str, typer.Option(help="A target of the pool to work for, such as l4.")],
    fleet: FleetFile = FLEET,
) -> None:
    """Take the work of a target's pool, one job at a time, after this machine was checked and reported."""
    need_pipeline("worker")
    from flows.inputs.fleet import load_fleet
    from flows.prefect_server.reachable import prefect_answers
    from flows.prefect_server.settings import be_patient

    machines = load_fleet(fleet)
    machines.target(target)
    # Jobs run in folders of their own, and stages must outlive them.
    os.environ["ENGINERY_HOME"] = str(writable_home())
    # Where prefect.yaml's pull step finds code, recipes and fleet.
    os.environ.setdefault("ENGINERY_CHECKOUT", str(Path.cwd()))
    be_patient()
    with prefect_answers("a worker gets its work from"):
        from flows.workers.machine import QUERY_SECONDS, describe_worker, run_worker, write_report

        report = describe_worker(machines, target, at=now())
        write_report(report)
    gpu = report.gpu_name or "no GPU of its own"
    err.print(
        f"{report.host} works for pool {report.pool} ({', '.join(report.targets)}): {gpu}, "
        f"{report.backend} {report.backend_version}",
        highlight=False,
    )
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(QUERY_SECONDS))
    run_worker(report)
