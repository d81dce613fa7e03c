"""One night's refresh of more and more models of 25 targets each, on stub workers; what grows, and what breaks first.

Real are `enginery refresh`, the deployment of each recipe and the worker of their pool, each release's process from its
source to 25 published versions, and both servers. What benchmarks/stub_worker.py leaves out is not measured: an
engine's build, evaluation and process. The databases are not emptied between the steps, as a registry's are not.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fleet_stack import ENTRYPOINT, RELEASE_ENTRYPOINT, BenchFleet, deploy, load, wait_for_worker
from benchmarks.fleet_stack import write_recipe as write_tiny
from benchmarks.release import MEGABYTE, PeakMemory
from flows.inputs.fleet import RELEASES_POOL
from tests.support.fleet import ROOT, started

TARGETS_PER_MODEL = 25
SLOTS, BUILD_SECONDS = 25, 5.0
PATIENCE_SECONDS = 3 * 3600.0
POOL = "stub"
TARGETS = {
    f"gpu-{number:02}": {"backend": "tensorrt_rtx", "compute_capability": "8.9", "work_pool": POOL}
    for number in range(TARGETS_PER_MODEL)
}


@dataclass(frozen=True)
class Night:
    """What one refresh took: seconds, and what its releases saw of their fan-outs."""

    seconds: float
    fan_outs: Sequence[Mapping[str, Any]]
    peak_bytes: Mapping[str, int]
    cpu_seconds: Mapping[str, float]
    dry_seconds: float


def scale(fleet: BenchFleet, engines: Sequence[int], at_once: int) -> None:
    """Grow to each number of engines by a refresh that finds the models that are new, and print what it took."""
    deploy(fleet, "build-target", POOL, POOL, ENTRYPOINT, {})
    recipes = fleet.folder / "recipes"
    recipes.mkdir()
    print(
        f"{TARGETS_PER_MODEL} targets per model, {at_once} releases at a time, {SLOTS} stub workers, "
        f"{BUILD_SECONDS:.0f} s per build"
    )
    models = 0
    with ExitStack() as stack:
        stub = (sys.executable, "-m", "benchmarks.stub_worker", POOL, str(SLOTS), str(BUILD_SECONDS))
        stack.enter_context(running(fleet, "stub", *stub))
        wait_for_worker(fleet, POOL)
        for wanted in sorted(engines):
            names = [f"model-{number:02}" for number in range(models, wanted // TARGETS_PER_MODEL)]
            for name in names:
                add_model(fleet, recipes, name)
            if not models:  # its pool is made with the first deployment
                worker = (sys.executable, "-m", "prefect", "worker", "start", "--type", "process")
                limit = ("--pool", RELEASES_POOL, "--limit", str(at_once))
                releases = stack.enter_context(running(fleet, "releases", *worker, *limit))
                wait_for_worker(fleet, RELEASES_POOL)
            models += len(names)
            report(fleet, wanted, len(names), refresh(fleet, recipes, names, releases))


def add_model(fleet: BenchFleet, recipes: Path, name: str) -> None:
    """Write a recipe beside the fleet file, and deploy its release."""
    tiny = write_tiny(fleet, name, TARGETS)
    tiny.recipe.rename(recipes / f"{name}.yaml")
    tiny.fleet.rename(recipes / "fleet.yaml")
    deploy(fleet, "release-engines", name, RELEASES_POOL, RELEASE_ENTRYPOINT, {})


def refresh(fleet: BenchFleet, recipes: Path, models: Sequence[str], releases: psutil.Process) -> Night:
    """Refresh every model there is, with the processes sampled meanwhile; then look once more, and find nothing."""
    processes = {**fleet.servers, "releases": releases}
    before = {name: fleet.cpu_seconds(process) for name, process in processes.items()}
    samplers = {name: PeakMemory(process.pid) for name, process in processes.items()}
    began = time.perf_counter()
    try:
        results = refreshed(fleet, recipes)
    finally:
        for sampler in samplers.values():
            sampler.stop()
    seconds = time.perf_counter() - began
    states = {Path(result["recipe"]).stem: result["state"] for result in results}
    if {name for name, state in states.items() if state == "released"} != set(models):
        raise SystemExit(f"the refresh did not release just {', '.join(models)}: {json.dumps(results)[:2000]}")
    after = {name: fleet.cpu_seconds(process) - before[name] for name, process in processes.items()}
    began = time.perf_counter()
    again = refreshed(fleet, recipes, "--dry-run")
    dry_seconds = time.perf_counter() - began
    if {result["state"] for result in again} != {"fresh"}:
        raise SystemExit(f"a refresh after a refresh found something stale: {json.dumps(again)[:2000]}")
    fan_outs = [json.loads((recipes / f"{name}.clock").read_text(encoding="utf-8")) for name in models]
    return Night(seconds, fan_outs, {name: sampler.peak for name, sampler in samplers.items()}, after, dry_seconds)


def refreshed(fleet: BenchFleet, recipes: Path, *more: str) -> list[dict[str, Any]]:
    """Run `enginery refresh --json`, and return its list."""
    arguments = ("refresh", "--fleet", str(recipes / "fleet.yaml"), "--json", *more)
    with started(fleet, fleet.folder / "homes" / "refresh", ROOT, *arguments) as process:
        code, found = process.wait(PATIENCE_SECONDS)
    if code:
        raise SystemExit(f"the refresh failed with exit status {code}: {json.dumps(found)[:2000]}")
    answer: Any = found
    return list(answer)


def report(fleet: BenchFleet, engines: int, models: int, night: Night) -> None:
    made = models * TARGETS_PER_MODEL
    print(f"\n{engines} engines in the registry, {made} of them by this refresh; {load()} at its end")
    print(f"  wall {night.seconds:.0f} s, {60 * made / night.seconds:.1f} engines a minute")
    for name, peak in night.peak_bytes.items():
        print(f"  {name:8} peak RSS {peak / MEGABYTE:6.0f} MB, CPU {night.cpu_seconds[name] / made:5.2f} s an engine")
    for server in fleet.servers:
        rates = [seen["asked"].get(server, 0) / (seen["ended"] - seen["began"]) for seen in night.fan_outs]
        print(
            f"  {server:8} database {fleet.database_bytes(server) / MEGABYTE:6.1f} MB, "
            f"{statistics.mean(rates):5.1f} requests a second of each waiting release"
        )
    waits = [seen["ended"] - seen["began"] for seen in night.fan_outs]
    print(
        f"  fan-out of {TARGETS_PER_MODEL} targets: median {statistics.median(waits):.0f} s, worst {max(waits):.0f} s"
    )
    print(f"  a refresh that finds all {engines} engines fresh: {night.dry_seconds:.1f} s")
    for what, milliseconds in answers(fleet):
        print(f"  {what:46} {milliseconds:7.0f} ms (median of 5)", flush=True)


def answers(fleet: BenchFleet) -> Iterator[tuple[str, float]]:
    """Time, on idle servers, the requests that a page of their UI makes."""
    store = fleet.store()
    with fleet.client() as client:
        yield "Prefect: the newest 200 flow runs", _timed(lambda: client.read_flow_runs(limit=200))
    yield "MLflow: the versions of a model", _timed(lambda: store.versions("model-00"))


def _timed(call: Callable[[], object]) -> float:
    milliseconds = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        milliseconds.append(1000 * (time.perf_counter() - began))
    return statistics.median(milliseconds)


@contextmanager
def running(fleet: BenchFleet, name: str, *command: str) -> Iterator[psutil.Process]:
    """Run a worker that ends, with all that it started, when the block does; its log is in the fleet's folder."""
    environment = fleet.environment(fleet.folder / "homes" / name)
    with (fleet.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    worker = psutil.Process(process.pid)
    try:
        yield worker
    finally:
        for child in worker.children(recursive=True):  # flow runs have sessions of their own
            with suppress(psutil.NoSuchProcess):
                child.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
