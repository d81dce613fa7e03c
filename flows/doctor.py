"""`enginery doctor`: what this machine has, what it lacks, and what to do about it."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from registry.bundle.signing import local_trust
from registry.errors import BadInput, EngineryError
from registry.host.gpu import read_gpu
from registry.mlflow.store import MlflowStore
from registry.promotion.unrecorded import find_moved_past
from registry.records import EngineVersion
from registry.repair import RepairOutcome, publisher_is_gone, repair_unfinished
from tasks.execution.tools.catalog import list_tools
from tasks.execution.tools.install import is_installed, size_of

Clock = Callable[[], datetime]

# A release of a model of a few hundred MB keeps about ten copies of it: stages, bundles and artifacts.
LEAST_FREE_GB = 5
EXTRAS = {
    "pipeline": ("torch", "transformers", "optimum", "datasets", "prefect", "nvidia-modelopt"),
    "cpu": ("onnxruntime",),
    "cuda": ("onnxruntime-gpu", "cuda-bindings"),
    "trt-rtx": ("tensorrt-rtx-cu13",),
    "trt": ("tensorrt", "cuda-bindings"),
}


@dataclass(frozen=True)
class Finding:
    """One check of this machine, with advice where it is not ok.

    `needed` says whether every command needs it; what is not needed only limits what this machine can do.
    """

    what: str
    found: str
    ok: bool
    needed: bool = False
    advice: str = ""
    _mark_not_needed: ClassVar[str] = "missing (optional)"

    @property
    def mark(self) -> str:
        """The finding in a word or two: ok, fix, or missing (optional)."""
        if self.ok:
            return "ok"
        return "fix" if self.needed else self._mark_not_needed


@dataclass(frozen=True)
class RegistryFinding(Finding):
    """A check of what stands in the registry: nothing is missing here, and not every command is stopped by it."""

    _mark_not_needed: ClassVar[str] = "fix"


def examine(home: Path, open_store: Callable[[], MlflowStore], clock: Clock) -> list[Finding]:
    """Run all checks; they change nothing, but create `home` where it is missing."""
    return [
        _check_python(),
        *_check_extras(),
        _check_gpu(),
        _check_disk(home),
        *_check_tools(home),
        *_check_registry(open_store, clock),
    ]


def repair_registry(store: MlflowStore, home: Path, clock: Clock) -> list[Finding]:
    """Repair what a crash left half published, and return one finding per repair.

    Raises:
        EngineryError: the registry does not answer.
    """
    return [
        RegistryFinding(
            f"repair of {repair.model} {_name_publication(repair.version, repair.run_id)}",
            f"{repair.outcome}: {repair.reason}",
            repair.outcome is not RepairOutcome.LEFT,
            advice="the next repair tries again" if repair.outcome is RepairOutcome.LEFT else "",
        )
        for repair in repair_unfinished(store.repairs, lambda: local_trust(home), clock=clock)
    ]


def _name_publication(version: int | None, run_id: str) -> str:
    return f"version {version}" if version else f"run {run_id}"


def _check_python() -> Finding:
    version = platform.python_version()
    ok = tuple(map(int, version.split(".")[:2])) >= (3, 11)
    return Finding("python", version, ok, needed=True, advice="" if ok else "install Python 3.11 or later")


def _check_extras() -> list[Finding]:
    findings = []
    for extra, packages in EXTRAS.items():
        versions = {package: _read_version(package) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        installed = ", ".join(f"{package} {version}" for package, version in versions.items() if version is not None)
        advice = f"to add {', '.join(missing)}: pip install 'enginery[{extra}]'" if missing else ""
        findings.append(Finding(f"extra {extra}", installed or "not installed", not missing, advice=advice))
    return findings


def _read_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_gpu() -> Finding:
    gpu = read_gpu()
    if gpu is None:
        advice = "engines for TensorRT-RTX targets can be built here; other GPU work needs a worker that has the GPU"
        return Finding("GPU", "none found", False, advice=advice)
    return Finding("GPU", f"compute capability {gpu.compute_capability}", True)


def _check_disk(home: Path) -> Finding:
    try:
        home.mkdir(parents=True, exist_ok=True)
        free_gb = shutil.disk_usage(home).free / 1e9
    except OSError as error:
        advice = "set ENGINERY_HOME to a folder that you may write to"
        return Finding("ENGINERY_HOME", f"{home}: {error.strerror}", False, needed=True, advice=advice)
    ok = free_gb >= LEAST_FREE_GB
    advice = "" if ok else f"a release needs {LEAST_FREE_GB} GB: free some, or set ENGINERY_HOME to another disk"
    return Finding("ENGINERY_HOME", f"{home}, {free_gb:.0f} GB free", ok, needed=True, advice=advice)


def _check_tools(home: Path) -> list[Finding]:
    findings = []
    for tool in list_tools():
        there = is_installed(tool, home)
        found = f"{tool.version}, {size_of(tool, home) / 1e6:.0f} MB" if there else "not installed"
        advice = (
            "" if there else f"a release that needs it installs it; to do so now: enginery tools install {tool.name}"
        )
        findings.append(Finding(f"tool {tool.name}", found, there, advice=advice))
    return findings


def _check_registry(open_store: Callable[[], MlflowStore], clock: Clock) -> list[Finding]:
    try:
        store = open_store()
        engines, unreadable, unfinished = store.versions(), store.unreadable(), store.repairs.unfinished()
        promotion = [_check_promotion(shared=store.leases.shared), *_check_aliases(store, engines)]
    except (EngineryError, OSError) as error:
        advice = "" if isinstance(error, BadInput) else "check MLFLOW_TRACKING_URI, and that its server runs"
        return [Finding("registry", str(error), False, needed=True, advice=advice)]
    now = clock().timestamp()
    interrupted = sum(publisher_is_gone(publication, now) for publication in unfinished)
    found = f"{len(unfinished) - interrupted} in progress, {interrupted} interrupted by a crash"
    advice = "finish or set aside what was interrupted: enginery doctor --repair" if interrupted else ""
    return [
        Finding("registry", f"{len(engines)} published engines", True, needed=True),
        RegistryFinding("publishing", found, not interrupted, advice=advice),
        *(RegistryFinding("row", problem, False, advice="it is left out of every list") for problem in unreadable),
        *promotion,
    ]


def _check_aliases(store: MlflowStore, engines: Sequence[EngineVersion]) -> list[Finding]:
    advice = "find out who moved it; then roll it back, or promote what it points at: enginery rollback, promote"
    return [
        RegistryFinding(f"alias of {model}", problem, False, advice=advice)
        for model in dict.fromkeys(engine.model for engine in engines if engine.aliases)
        for problem in find_moved_past(store, model)
    ]


def _check_promotion(*, shared: bool) -> Finding:
    found = "locked across all hosts" if shared else "locked on this host only"
    advice = "set ENGINERY_LEASE_DATABASE to the same PostgreSQL address on every host that promotes"
    return Finding("promotion", found, shared, advice="" if shared else advice)
