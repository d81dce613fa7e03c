"""What a worker's machine is: checked against the targets that it claims, and reported, before it takes work."""

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
# Prefect's own 10 s were half of what a free worker waits for its next job; a hundred workers ask 20 times a second so.
QUERY_SECONDS = 5


@dataclass(frozen=True)
class WorkerReport:
    """One machine that takes the work of a pool; `at` is when it said so (ISO 8601, UTC).

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


def pool_targets(fleet: Fleet, target: str) -> tuple[GpuTarget, ...]:
    """Every target of the work pool that `target` belongs to: a worker of a pool takes the work of all of them.

    Raises:
        BadInput: no such target, or a pool whose targets need different backends.
    """
    pool = fleet.target(target).work_pool
    found = tuple(each for each in map(fleet.target, fleet.targets) if each.work_pool == pool)
    if len({each.backend for each in found}) > 1:
        raise BadInput(f"work pool {pool!r} mixes backends in the fleet file: give each backend a pool of its own")
    return found


def check_machine(target: GpuTarget, serving: str | None, host: Host) -> None:
    """Refuse a machine that is not what the target says, before it downloads or builds anything.

    `serving` is the backend's version on the target's serving hosts, None where the fleet file names none. The GPU's
    name counts for TensorRT, which times its tactics on it: an L40S in the pool of an L4 has the L4's capability.

    Raises:
        Incompatible: another GPU, an older driver, no backend, or another version of it.
    """
    backend = BACKENDS[target.backend]
    if reason := backend.can_build(target):
        raise Incompatible(f"this machine cannot build for {target.name}: {reason}")
    version = backend.version()
    if serving is not None and not is_release_of(version, serving):
        raise Incompatible(
            f"this machine has {target.backend} {version}, and {target.name} serves {serving}: install that one here"
        )
    if target.backend is not Backend.TENSORRT:
        return
    if target.gpu_name and not _same_gpu(target.gpu_name, host.gpu_name or ""):
        raise Incompatible(
            f"target {target.name} is a {target.gpu_name}, and this machine's GPU is {host.gpu_name or 'not known'}: "
            f"start a worker of pool {target.work_pool} on a machine that has one"
        )
    oldest = minimum_driver(target.backend, version)
    if oldest and (not host.driver or int(host.driver.split(".")[0]) < int(oldest.split(".")[0])):
        raise Incompatible(f"{target.backend} {version} needs driver {oldest}, and this machine has {host.driver}")


def describe_worker(fleet: Fleet, target: str, *, at: datetime.datetime) -> WorkerReport:
    """The report of this machine as a worker of the pool of `target`.

    Raises:
        Incompatible: it cannot take the work of one of the pool's targets.
        BadInput: as `pool_targets`.
    """
    targets, host = pool_targets(fleet, target), read_host()
    for each in targets:
        check_machine(each, fleet.rules(each.name).serving, host)
    backend = targets[0].backend
    on_gpu = backend is not Backend.ONNXRUNTIME
    return WorkerReport(
        pool=targets[0].work_pool,
        host=platform.node() or "unknown",
        targets=tuple(each.name for each in targets),
        backend=backend,
        backend_version=BACKENDS[backend].version(),
        code=own_code(),
        at=at.isoformat(timespec="seconds"),
        gpu_name=host.gpu_name if on_gpu else None,
        compute_capability=host.compute_capability if on_gpu else None,
        driver=host.driver if on_gpu else None,
    )


def write_report(report: WorkerReport) -> None:
    """Keep a report as a Prefect variable, one a pool and host, in place of the host's last one."""
    name = "_".join((VARIABLE, *(re.sub(r"[^a-z0-9]+", "-", part.lower()) for part in (report.pool, report.host))))
    Variable.set(name[:255], REPORT.dump_python(report, mode="json"), tags=_tags(report.pool), overwrite=True)


def read_reports(pool: str) -> tuple[WorkerReport, ...]:
    """What the workers of a pool said of themselves, newest first; at most one a host, and at most 200."""
    wanted = {"variables": {"tags": {"all_": _tags(pool)}}, "limit": 200}
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/variables/filter", json=wanted)
    found = [report for entry in answer.json() if (report := _parsed(entry["value"])) and report.pool == pool]
    return tuple(sorted(found, key=lambda report: report.at, reverse=True))


def toolchains(reports: Sequence[WorkerReport]) -> list[tuple[str | None, ...]]:
    """What builds and measures in a pool, whatever the number of its machines: backends, GPUs and drivers."""
    return sorted(
        {(each.backend.value, each.backend_version, each.gpu_name, each.driver) for each in reports},
        key=lambda parts: [part or "" for part in parts],
    )


def run_worker(report: WorkerReport) -> NoReturn:
    """Become `prefect worker start` for the report's pool, one job at a time: builds side by side disturb each other.

    This process is replaced, so that whoever stops or kills it does that to the worker, and none is left behind.
    """
    name = worker_name(report, os.environ.get("CUDA_VISIBLE_DEVICES"))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", report.pool, "--name", name]
    command += ["--type", "process", "--limit", "1"]
    os.execv(sys.executable, command)  # noqa: S606  # no shell, and the arguments are made here


def worker_name(report: WorkerReport, visible_gpus: str | None) -> str:
    """How Prefect lists a worker: by its host, and its GPUs where it is shown only these; the same after a restart.

    Prefect's own names are new ones at each start, and a pool's page fills with workers that are gone.
    """
    name = f"{report.host}, GPU {visible_gpus}" if report.gpu_name and visible_gpus else report.host
    return re.sub(r"[/%&<>]", "-", name)  # which Prefect refuses, and a part of a GPU (MIG) may be called by


def _tags(pool: str) -> list[str]:
    return [VARIABLE, f"pool:{pool}"]


def _parsed(value: Any) -> WorkerReport | None:
    # Anyone may edit a variable in Prefect's UI: what is no report is none.
    try:
        return REPORT.validate_python(value)
    except ValidationError:
        return None


def _same_gpu(wanted: str, found: str) -> bool:
    """Whether NVML's name ("NVIDIA A100-SXM4-40GB") is of the GPU that the fleet file names ("NVIDIA A100")."""
    words = re.split(r"[ -]", wanted)
    return re.split(r"[ -]", found)[: len(words)] == words
