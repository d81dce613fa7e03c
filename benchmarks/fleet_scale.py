"""Releases of models of 25 targets each, on stub workers, until a number of engines is published; what grows.

The parents are real (`enginery release --on-workers`, two at a time, each publishes what it accepted), and so are both
servers. What benchmarks/stub_worker.py leaves out is not measured: an engine's build, evaluation and
process. The databases are not emptied between the steps, as a registry's are not.
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
from typing import Any

from benchmarks.fleet_stack import ENTRYPOINT, BenchFleet, deploy, load, wait_for_workers, write_fleet, write_recipe
from benchmarks.release import MEGABYTE, PeakMemory
from tests.fleet.conftest import ROOT, releasing

TARGETS_A_MODEL, PARENTS = 25, 2
SLOTS, BUILD_SECONDS = 25, 5.0
PATIENCE_SECONDS = 1800.0
POOL = "stub"
TARGETS = {
    f"gpu-{number:02}": {"backend": "tensorrt_rtx", "compute_capability": "8.9", "work_pool": POOL}
    for number in range(TARGETS_A_MODEL)
}


@dataclass(frozen=True)
class Step:
    """What one step of the growth took: seconds, and what its parents saw of their fan-outs."""

    seconds: float
    fan_outs: Sequence[Mapping[str, Any]]
    peak_bytes: Mapping[str, int]
    cpu_seconds: Mapping[str, float]


def scale(fleet: BenchFleet, engines: Sequence[int]) -> None:
    """Grow to each number of engines in turn, and print what it took."""
    deploy(fleet, POOL, ENTRYPOINT, {})
    write_fleet(fleet.template, TARGETS)
    print(
        f"{TARGETS_A_MODEL} targets a model, {PARENTS} parents at a time, {SLOTS} stub workers, "
        f"{BUILD_SECONDS:.0f} s a build"
    )
    models = 0
    with stub_workers(fleet):
        wait_for_workers(fleet, POOL, 1)
        for wanted in sorted(engines):
            names = [f"model-{number}" for number in range(models, wanted // TARGETS_A_MODEL)]
            report(fleet, wanted, len(names), grow(fleet, names))
            models += len(names)


def grow(fleet: BenchFleet, models: Sequence[str]) -> Step:
    """Release every model, and sample the servers meanwhile."""
    before = {server: fleet.cpu_seconds(server) for server in fleet.servers}
    samplers = {server: PeakMemory(process.pid) for server, process in fleet.servers.items()}
    started = time.perf_counter()
    fan_outs: list[Mapping[str, Any]] = []
    try:
        for first in range(0, len(models), PARENTS):
            fan_outs += release_side_by_side(fleet, models[first : first + PARENTS])
    finally:
        for sampler in samplers.values():
            sampler.stop()
    return Step(
        time.perf_counter() - started,
        fan_outs,
        {server: sampler.peak for server, sampler in samplers.items()},
        {server: fleet.cpu_seconds(server) - before[server] for server in fleet.servers},
    )


def release_side_by_side(fleet: BenchFleet, models: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """One parent a model, at the same time; what each saw of its fan-out."""
    with ExitStack() as stack:
        parents = []
        for model in models:
            tiny, clock = write_recipe(fleet, model, TARGETS), fleet.folder / f"{model}.clock"
            note = f"from benchmarks.slow_target import record_fan_out; record_fan_out({str(clock)!r})"
            parents.append((clock, stack.enter_context(releasing(fleet, tiny, before=note))))
        for clock, parent in parents:
            code, printed = parent.wait(PATIENCE_SECONDS)
            if code:
                raise SystemExit(f"a release failed with exit status {code}: {printed}")
            yield json.loads(clock.read_text(encoding="utf-8"))


def report(fleet: BenchFleet, engines: int, models: int, step: Step) -> None:
    made = models * TARGETS_A_MODEL
    print(f"\n{engines} engines in the registry, {made} of them in this step; {load()} at its end")
    print(f"  wall {step.seconds:.0f} s, {60 * made / step.seconds:.1f} engines a minute")
    for server in fleet.servers:
        rates = [seen["asked"].get(server, 0) / (seen["ended"] - seen["began"]) for seen in step.fan_outs]
        print(
            f"  {server:8} peak RSS {step.peak_bytes[server] / MEGABYTE:6.0f} MB, "
            f"CPU {step.cpu_seconds[server] / made:5.2f} s an engine, "
            f"database {fleet.database_bytes(server) / MEGABYTE:6.1f} MB, "
            f"{statistics.mean(rates):5.1f} requests a second of each waiting parent"
        )
    waits = [seen["ended"] - seen["began"] for seen in step.fan_outs]
    print(f"  fan-out of {TARGETS_A_MODEL} targets: {', '.join(f'{each:.0f}' for each in waits)} s")
    for what, milliseconds in answers(fleet):
        print(f"  {what:46} {milliseconds:7.0f} ms (median of 5)")


def answers(fleet: BenchFleet) -> Iterator[tuple[str, float]]:
    """How long the servers take, with nobody else asking, for what a page of their UI asks."""
    store = fleet.store()
    with fleet.client() as client:
        yield "Prefect: the newest 200 flow runs", _timed(lambda: client.read_flow_runs(limit=200))
    yield "MLflow: the versions of a model", _timed(lambda: store.versions("model-0"))


def _timed(call: Callable[[], object]) -> float:
    found = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


@contextmanager
def stub_workers(fleet: BenchFleet) -> Iterator[None]:
    """benchmarks/stub_worker.py in a process group of its own; its log is in the fleet's folder."""
    command = [sys.executable, "-m", "benchmarks.stub_worker", POOL, str(SLOTS), str(BUILD_SECONDS)]
    environment = fleet.environment(fleet.folder / "homes" / "stub")
    with (fleet.folder / "stub.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
