"""`enginery doctor`: what this machine has, what it lacks, and what to do about it."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from registry.bundle.signing import local_trust
from registry.errors import EngineryError
from registry.host.gpu import read_gpu
from registry.mlflow.store import MlflowStore
from registry.repair import RepairOutcome, abandoned, reconcile

Clock = Callable[[], datetime]

# A release of a model of a few hundred MB keeps about ten copies of it: stages, bundles and artifacts.
LEAST_FREE_GB = 5
EXTRAS = {
    "pipeline": ("torch", "transformers", "optimum", "onnxruntime", "datasets", "prefect", "nvidia-modelopt"),
    "trt-rtx": ("tensorrt-rtx-cu13",),
    "trt": ("tensorrt",),
}


@dataclass(frozen=True)
class Finding:
    """One check: `ok` or not, `needed` by every command or only by some, and advice where it is not ok."""

    what: str
    found: str
    ok: bool
    needed: bool = False
    advice: str = ""


def examine(home: Path, open_store: Callable[[], MlflowStore], clock: Clock) -> list[Finding]:
    """All checks; none of them changes anything but creating `home`."""
    return [_python(), *_extras(), _gpu(), _disk(home), *_registry(open_store, clock)]


def mend(store: MlflowStore, home: Path, clock: Clock) -> list[Finding]:
    """Settle what a crash left half published, one finding each.

    Raises:
        EngineryError: the registry could not be asked.
    """
    return [
        Finding(
            f"repair of {settled.model} {_name(settled.version, settled.run_id)}",
            f"{settled.outcome}: {settled.reason}",
            settled.outcome is not RepairOutcome.LEFT,
            advice="it is looked at again by the next repair" if settled.outcome is RepairOutcome.LEFT else "",
        )
        for settled in reconcile(store.repairs, lambda: local_trust(home), clock=clock)
    ]


def _name(version: int | None, run_id: str) -> str:
    return f"version {version}" if version else f"run {run_id}"


def _python() -> Finding:
    version = platform.python_version()
    ok = tuple(map(int, version.split(".")[:2])) >= (3, 11)
    return Finding("python", version, ok, needed=True, advice="" if ok else "install Python 3.11 or later")


def _extras() -> list[Finding]:
    findings = []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if not _installed(package)]
        have = ", ".join(f"{package} {_installed(package)}" for package in packages if _installed(package))
        advice = f"for what needs {', '.join(missing)}: pip install 'enginery[{extra}]'" if missing else ""
        findings.append(Finding(f"extra {extra}", have or "not installed", not missing, advice=advice))
    return findings


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> Finding:
    gpu = read_gpu()
    advice = "engines for GPUs are built for TensorRT-RTX targets here, and measured on workers that have the GPU"
    found = f"compute capability {gpu.compute_capability}" if gpu else "none"
    return Finding("GPU", found, gpu is not None, advice="" if gpu else advice)


def _disk(home: Path) -> Finding:
    try:
        home.mkdir(parents=True, exist_ok=True)
        free_gb = shutil.disk_usage(home).free / 1e9
    except OSError as error:
        return Finding(
            "ENGINERY_HOME", f"{home}: {error.strerror}", False, True, "set ENGINERY_HOME to a folder of yours"
        )
    ok = free_gb >= LEAST_FREE_GB
    advice = "" if ok else f"a release wants {LEAST_FREE_GB} GB: free some, or set ENGINERY_HOME to another disk"
    return Finding("ENGINERY_HOME", f"{home}, {free_gb:.0f} GB free", ok, needed=True, advice=advice)


def _registry(open_store: Callable[[], MlflowStore], clock: Clock) -> list[Finding]:
    try:
        store = open_store()
        engines, unfinished = len(store.versions()), store.repairs.unfinished()
        lock = _promotion(shared=store.leases.shared)
    except (EngineryError, OSError) as error:
        return [Finding("registry", str(error), False, True, "check MLFLOW_TRACKING_URI and that its server runs")]
    at_work = [left for left in unfinished if not abandoned(left, clock().timestamp())]
    left = len(unfinished) - len(at_work)
    advice = "finish or set aside what a crash left: enginery doctor --repair" if left else ""
    return [
        Finding("registry", f"{engines} published engines", True, needed=True),
        Finding("publishing", f"{len(at_work)} at work, {left} left by a crash", not left, advice=advice),
        lock,
    ]


def _promotion(*, shared: bool) -> Finding:
    found = "one promoter at a time, on all hosts" if shared else "one promoter at a time on this host only"
    advice = "set ENGINERY_LEASE_DATABASE to a PostgreSQL address, the same on every host that promotes"
    return Finding("promotion", found, shared, advice="" if shared else advice)
