"""Check a worker's machine against the targets that it claims, and report it, before it takes work."""

import datetime
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from prefect.client.orchestration import get_client
from prefect.variables import Variable
from pydantic import TypeAdapter, ValidationError

from flows.inputs.fleet import Fleet
from registry.errors import BadInput, Incompatible
from registry.host.compatibility import Host, read_host
from registry.host.tensorrt_releases import is_release_of, minimum_driver
from registry.records import Backend, GpuTarget
from tasks.backends import BACKENDS
from tasks.bundle.toolchain import own_code

VARIABLE = "enginery_worker"
# With Prefect's own 10 s a free worker spends half of its time waiting; a hundred workers make 20 requests a second.
QUERY_SECONDS = 5


@dataclass(frozen=True)
class WorkerReport:
    """One machine that takes the work of a pool; `at` is when it reported (ISO 8601, UTC).

    `code` is the digest of its copy of Enginery (tasks.bundle.toolchain.own_code); the GPU's fields are None on a CPU.
    """

    pool: str
    host: str
    targets: tuple[str, ...]
    backend: Backend
    backend_version: str
    code: str
    at: str
    gpu_name: str | None = None
    compute_capability: str | None = None
    driver: str | None = None


REPORT: TypeAdapter[WorkerReport] = TypeAdapter(WorkerReport)


def list_pool_targets(fleet: Fleet, target: str) -> tuple[GpuTarget, ...]:
    """Return every target in the pool of `target`: a worker takes the work of all of them.

    Raises:
        BadInput: the target does not exist, or the targets of its pool need different backends.
    """
    pool = fleet.target(target).work_pool
    targets = tuple(member for member in map(fleet.target, fleet.targets) if member.work_pool == pool)
    if len({member.backend for member in targets}) > 1:
        raise BadInput(f"work pool {pool!r} mixes backends in the fleet file: give each backend a pool of its own")
    return targets


def check_machine(target: GpuTarget, serving: str | None, host: Host) -> None:
    """Refuse a machine that does not match its target, before it downloads or builds anything.

    `serving` is the backend's version on the target's serving hosts, None where the fleet file names none. For
    TensorRT the GPU's name must match too, since it times its tactics on the GPU: an L40S has an L4's capability.

    Raises:
        Incompatible: another GPU, an older driver, no backend, or another version of it.
    """
    backend = BACKENDS[target.backend]
    if reason := backend.can_build(target):
        raise Incompatible(f"this machine cannot build for {target.name}: {reason}")
    version = backend.version()
    if serving is not None and not is_release_of(version, serving):
        raise Incompatible(
            f"this machine has {target.backend} {version}, and {target.name} serves with {serving}: "
            "install that version here"
        )
    if target.backend is not Backend.TENSORRT:
        return
    if target.gpu_name and not _is_same_gpu(target.gpu_name, host.gpu_name or ""):
        raise Incompatible(
            f"target {target.name} is a {target.gpu_name}, and this machine's GPU is {host.gpu_name or 'unknown'}: "
            f"start the worker of pool {target.work_pool} on a machine with that GPU"
        )
    oldest = minimum_driver(target.backend, version)
    if oldest and (not host.driver or int(host.driver.split(".")[0]) < int(oldest.split(".")[0])):
        raise Incompatible(
            f"{target.backend} {version} needs driver {oldest} or newer, and this machine has "
            f"{host.driver or 'none'}: update it"
        )


def describe_worker(fleet: Fleet, target: str, *, at: datetime.datetime) -> WorkerReport:
    """Report this machine as a worker of the pool of `target`.

    Raises:
        Incompatible: it cannot take the work of one of the pool's targets.
        BadInput: as `list_pool_targets`.
    """
    targets, host = list_pool_targets(fleet, target), read_host()
    for member in targets:
        check_machine(member, fleet.rules(member.name).serving, host)
    backend = targets[0].backend
    on_gpu = backend is not Backend.ONNXRUNTIME
    return WorkerReport(
        pool=targets[0].work_pool,
        host=platform.node() or "unknown",
        targets=tuple(member.name for member in targets),
        backend=backend,
        backend_version=BACKENDS[backend].version(),
        code=own_code(),
        at=at.isoformat(timespec="seconds"),
        gpu_name=host.gpu_name if on_gpu else None,
        compute_capability=host.compute_capability if on_gpu else None,
        driver=host.driver if on_gpu else None,
    )


def write_report(report: WorkerReport) -> None:
    """Write a report as a Prefect variable, in place of the last one of its pool and host."""
    name = "_".join((VARIABLE, *(re.sub(r"[^a-z0-9]+", "-", part.lower()) for part in (report.pool, report.host))))
    Variable.set(name[:255], REPORT.dump_python(report, mode="json"), tags=_pool_tags(report.pool), overwrite=True)


def read_reports(pool: str) -> tuple[WorkerReport, ...]:
    """Read the reports of a pool's workers, newest first: one per host, at most 200."""
    query = {"variables": {"tags": {"all_": _pool_tags(pool)}}, "limit": 200}
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/variables/filter", json=query)
    reports = [report for entry in answer.json() if (report := _parse_report(entry["value"])) and report.pool == pool]
    return tuple(sorted(reports, key=lambda report: report.at, reverse=True))


def list_toolchains(reports: Sequence[WorkerReport]) -> list[tuple[str | None, ...]]:
    """Return the distinct backends, GPUs and drivers of a pool, however many machines it has."""
    return sorted(
        {(report.backend.value, report.backend_version, report.gpu_name, report.driver) for report in reports},
        key=lambda parts: [part or "" for part in parts],
    )


def run_worker(report: WorkerReport) -> NoReturn:
    """Become `prefect worker start` for the report's pool, one job at a time: parallel builds disturb each other.

    This process is replaced, so that stopping or killing it stops the worker, and none is left behind.
    """
    name = make_worker_name(report, os.environ.get("CUDA_VISIBLE_DEVICES"))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", report.pool, "--name", name]
    command += ["--type", "process", "--limit", "1"]
    os.execv(sys.executable, command)  # noqa: S606  # no shell, and the arguments are made here


def make_worker_name(report: WorkerReport, visible_gpus: str | None) -> str:
    """Name a worker by its host, and by its GPUs if CUDA_VISIBLE_DEVICES selects them.

    The name is the same after a restart. Prefect would make up a new one each time, and a pool's page would fill with
    workers that are gone.
    """
    name = f"{report.host}, GPU {visible_gpus}" if report.gpu_name and visible_gpus else report.host
    return re.sub(r"[/%&<>]", "-", name)  # Prefect refuses these; the name of a MIG slice may have them


def _pool_tags(pool: str) -> list[str]:
    return [VARIABLE, f"pool:{pool}"]


def _parse_report(value: Any) -> WorkerReport | None:
    # Anyone may edit a variable in Prefect's UI: other values are ignored.
    try:
        return REPORT.validate_python(value)
    except ValidationError:
        return None


def _is_same_gpu(fleet_name: str, nvml_name: str) -> bool:
    """Tell whether NVML's name ("NVIDIA A100-SXM4-40GB") is of the fleet file's GPU ("NVIDIA A100")."""
    words = re.split(r"[ -]", fleet_name)
    return re.split(r"[ -]", nvml_name)[: len(words)] == words
