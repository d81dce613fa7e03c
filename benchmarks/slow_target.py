"""The deployed build-target with a fixed time added, and a clock in the parent that waits for it.

The tiny model's engine is built in a second, a real one in a minute or more: a fan-out of seconds says nothing.
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import requests
from prefect import flow
from prefect.client.schemas.objects import State

from flows import deployments
from flows.workers import fan_out, release_on_workers
from flows.workers.build_requests import BuildRequest
from registry.mlflow.runs.run_files import OutcomeLog
from tasks.report.rows import ReleaseReport


@flow(name="build-target", flow_run_name="{request.name} of {request.release}", persist_result=False)
def build_target(request: BuildRequest, build_seconds: float) -> State:
    """Run the deployed flow, after `build_seconds` more."""
    time.sleep(build_seconds)
    state: State = deployments.build_target.fn(request)
    return state


@flow(name="release-engines", flow_run_name="{recipe}", persist_result=False)
def release_engines(recipe: str, fleet: str, targets: list[str]) -> ReleaseReport:
    """Run the deployed flow, and write what `record_fan_out` saw beside the recipe as a `.clock` file."""
    record_fan_out(str(Path(recipe).with_suffix(".clock")))
    report: ReleaseReport = deployments.release_engines.fn(recipe, tuple(targets), fleet=fleet)
    return report


def record_fan_out(into: str) -> None:
    """Have this process write to the file `into` when its fan-out began and ended, and how often it called the servers.

    Times are seconds since the epoch, `accepted` one per target.
    """
    accepted: dict[str, float] = {}
    requests_sent: Counter[str] = Counter()
    accept, build_on_workers = OutcomeLog.accept, fan_out.build_on_workers

    def timed_accept(log: OutcomeLog, run_id: str, target: str, key: str, outcome: str) -> None:
        accept(log, run_id, target, key, outcome)
        accepted[target] = time.time()

    def timed_fan_out(*arguments: Any) -> Any:
        before, began = Counter(requests_sent), time.time()
        result = build_on_workers(*arguments)
        seen = {"began": began, "ended": time.time(), "accepted": accepted, "asked": requests_sent - before}
        Path(into).write_text(json.dumps(seen), encoding="utf-8")
        return result

    _count(httpx.Client, "Prefect", requests_sent)
    _count(requests.Session, "MLflow", requests_sent)
    patch.object(OutcomeLog, "accept", timed_accept).start()
    patch.object(release_on_workers, "build_on_workers", timed_fan_out).start()


def _count(client: Any, server: str, requests_sent: Counter[str]) -> None:
    """Count each request that goes out: Prefect's client uses httpx, MLflow's uses requests."""
    send = client.send

    def counted(*arguments: Any, **more: Any) -> Any:
        requests_sent[server] += 1
        return send(*arguments, **more)

    client.send = counted
