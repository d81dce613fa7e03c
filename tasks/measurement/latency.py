"""Measure latency: all engines of a target, interleaved with their fp32 baseline, in one fresh process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from registry.digest import record_tree
from registry.records import PLACE, EngineBuild, FileRecord, Machine, Tensor, axis_name
from tasks.backends import open_engine
from tasks.execution.progress import OnProgress
from tasks.measurement.evaluate import Runs
from tasks.model_tasks.contract import Feed


@dataclass(frozen=True)
class LatencyPlan:
    """The plan of a measurement: `windows` interleaved windows of `iterations` calls each, after `warmup` calls.

    `sizes` are (axis, size) of what is fed.
    """

    windows: int
    iterations: int
    warmup: int
    sizes: tuple[tuple[str, int], ...]

    @property
    def batch(self) -> int:
        """Rows per call."""
        return dict(self.sizes).get("batch", 1)


@dataclass(frozen=True)
class Benchmark:
    """Raw call times: float64 seconds [windows, iterations] per engine digest, in `<digest>.npy`."""

    engine_digests: tuple[str, ...]
    baseline_digest: str
    plan: LatencyPlan
    measured_on: Machine
    boundary: str
    files: tuple[FileRecord, ...]
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    def seconds(self, engine_digest: str) -> NDArray[np.float64]:
        """Return an engine's call times in seconds [windows, iterations]."""
        times: NDArray[np.float64] = np.load(self.directory / f"{engine_digest}.npy", allow_pickle=False)
        return times

    def raw_digest(self, engine_digest: str) -> str:
        """Return the sha256 of an engine's raw call times."""
        return next(file.sha256 for file in self.files if file.path == f"{engine_digest}.npy")


def interleave(
    sessions: Mapping[str, Runs],
    feed: Feed,
    plan: LatencyPlan,
    on_progress: Callable[[float], object] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Time every session's calls, in windows whose order reverses each time (ABC, CBA, ABC, …).

    Reversing cancels a drift of the machine that is linear in time (the ABBA design), so that a ratio compares two
    sessions at neighbouring times and not a cool machine with a warm one.
    """
    for session in sessions.values():
        for _ in range(plan.warmup):
            session.run(feed)
    times = {name: np.empty((plan.windows, plan.iterations)) for name in sessions}
    order = list(sessions)
    for window in range(plan.windows):
        for name in order:
            run = sessions[name].run
            for call in range(plan.iterations):
                start = clock()
                run(feed)
                times[name][window, call] = clock() - start
        order.reverse()
        on_progress((window + 1) / plan.windows)
    return times


def save_benchmark(
    times: Mapping[str, NDArray[np.float64]],
    *,
    baseline_digest: str,
    plan: LatencyPlan,
    measured_on: Machine,
    boundary: str,
    into: Path,
) -> Benchmark:
    """Save the raw times under `into`: no figure is stored without the data it is derived from."""
    for digest, seconds in times.items():
        np.save(into / f"{digest}.npy", seconds)
    digests = tuple(sorted(times))
    return Benchmark(digests, baseline_digest, plan, measured_on, boundary, record_tree(into), into)


def latency_feed(rows: Sequence[Feed], inputs: Sequence[Tensor], plan: LatencyPlan) -> Feed:
    """Return a feed of real values in the plan's sizes: rows are joined, cut and repeated, never padded."""
    sizes = dict(plan.sizes)
    return {
        tensor.name: np.resize(
            np.concatenate([row[tensor.name].ravel() for row in rows]),
            [sizes.get(axis_name(size), 1) if isinstance(size, str) else size for size in tensor.shape],
        )
        for tensor in inputs
    }


def measure_latency(
    builds: tuple[EngineBuild, ...],
    baseline_digest: str,
    feed: Feed,
    plan: LatencyPlan,
    machine: Machine,
    into: Path,
    on_progress: OnProgress,
) -> Benchmark:
    """Load all engines of a target in this process, interleave them and save the raw times; run it isolated."""
    sessions = {build.digest: open_engine(build) for build in builds}
    times = interleave(sessions, feed, plan, lambda done: on_progress("latency", done))
    boundary = "host arrays in, host arrays out: copies to and from the device are inside"
    return save_benchmark(
        times, baseline_digest=baseline_digest, plan=plan, measured_on=machine, boundary=boundary, into=into
    )
