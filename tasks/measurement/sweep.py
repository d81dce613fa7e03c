"""Time engines over the sizes of their profile, and a GPU's copies and work apart. No gate judges by it."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.digest import record_tree
from registry.errors import BadInput, Incompatible
from registry.records import PLACE, EngineBuild, FileRecord, Machine, Measurement, ShapeProfile, Tensor
from tasks.backends import open_cuda_graph, open_engine
from tasks.backends.contract import TimesPhases
from tasks.execution.progress import OnProgress
from tasks.measurement.evaluate import Runs
from tasks.measurement.latency import make_feed
from tasks.model_tasks.contract import Feed

Sizes = tuple[tuple[str, int], ...]
"""The size of each dynamic axis, by its name in the profile."""

FEWEST_CALLS, MOST_CALLS = 3, 10
# What is kept of each call, in seconds: the call, its phases on a GPU, and a call that replays a CUDA graph.
_COLUMNS = ("p50_ms", "upload_ms", "compute_ms", "download_ms", "cuda_graph_p50_ms")
_CALL, _PHASES, _CUDA_GRAPH = 0, slice(1, 4), 4


@dataclass(frozen=True)
class SizeTimes:
    """The median call of an engine at one size; None: this was not timed.

    The phases are those of a GPU by its own clock; `cuda_graph_p50_ms` is the whole call where it replays a CUDA graph.
    """

    sizes: Sizes
    calls: int
    p50_ms: float | None = None
    upload_ms: float | None = None
    compute_ms: float | None = None
    download_ms: float | None = None
    cuda_graph_p50_ms: float | None = None


@dataclass(frozen=True)
class Sweep:
    """Raw times in `<digest>.npy`, float64 seconds [sizes, calls, 5], NaN where nothing was timed."""

    engine_digests: tuple[str, ...]
    sizes: tuple[Sizes, ...]
    measured_on: Machine
    files: tuple[FileRecord, ...]
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    def times(self, engine_digest: str) -> tuple[SizeTimes, ...]:
        """Return the medians of one engine at each size."""
        raw: NDArray[np.float64] = np.load(self.directory / f"{engine_digest}.npy", allow_pickle=False)
        return tuple(_summarize(sizes, calls) for sizes, calls in zip(self.sizes, raw, strict=True))

    def measurements(self, engine_digest: str) -> tuple[Measurement, ...]:
        """Return the phases on a GPU, and the call with a CUDA graph, at the size that engines are judged at."""
        at_opt = self.times(engine_digest)[0]
        raw = next(file.sha256 for file in self.files if file.path == f"{engine_digest}.npy")
        names = {f"gpu_{phase}_ms": f"{phase}_ms" for phase in ("upload", "compute", "download")}
        names["latency_cuda_graph_p50_ms"] = "cuda_graph_p50_ms"
        return tuple(
            Measurement(metric, value, "ms", at_opt.calls, "engine", engine_digest, self.measured_on, None, None, raw)
            for metric, name in names.items()
            if (value := getattr(at_opt, name)) is not None
        )


def _summarize(sizes: Sizes, calls: NDArray[np.float64]) -> SizeTimes:
    timed = calls[np.isfinite(calls[:, _CALL])]
    medians = {
        name: 1000 * float(np.median(column))
        for name, column in zip(_COLUMNS, timed.T, strict=True)
        if len(column) and np.isfinite(column).all()
    }
    return SizeTimes(sizes, len(timed), **medians)


def list_sizes(profile: ShapeProfile) -> tuple[Sizes, ...]:
    """Return the opt size, and after it every other combination of min, opt and max of the first two axes."""
    choices = [
        dict.fromkeys((span.opt,) if place > 1 else (span.min, span.opt, span.max))
        for place, (_, span) in enumerate(profile.axes)
    ]
    names = [name for name, _ in profile.axes]
    best = tuple((name, span.opt) for name, span in profile.axes)
    others = (tuple(zip(names, sizes, strict=True)) for sizes in itertools.product(*choices))
    return tuple(dict.fromkeys((best, *sorted(others, key=lambda sizes: math.prod(size for _, size in sizes)))))


def sweep(
    sessions: Mapping[str, Runs],
    feeds: Sequence[Feed],
    seconds_max: float,
    *,
    open_graph: Callable[[str, int], Runs | None] = lambda _digest, _place: None,
    on_progress: Callable[[float], object] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Time every session with each feed, interleaved, until `seconds_max` is spent; the first feed is always timed.

    `open_graph` opens what replays a CUDA graph of the feed at a place.

    Returns:
        By session, float64 seconds [feeds, MOST_CALLS, 5], NaN where nothing was timed.
    """
    shape = len(feeds), MOST_CALLS, len(_COLUMNS)
    times = {name: np.full(shape, np.nan) for name in sessions}
    started = clock()
    for place, feed in enumerate(feeds):
        if place and clock() - started >= seconds_max:
            break
        graphs = {name: open_graph(name, place) for name in sessions}
        until = clock() + seconds_max / len(feeds)
        for session in (*sessions.values(), *filter(None, graphs.values())):
            session.run(feed)
        order = list(sessions)
        for call in range(MOST_CALLS):
            if call >= FEWEST_CALLS and clock() >= until:
                break
            for name in order:
                times[name][place, call] = _time_call(sessions[name], graphs[name], feed, clock)
            order.reverse()
        on_progress((place + 1) / len(feeds))
    return times


def _time_call(session: Runs, graph: Runs | None, feed: Feed, clock: Callable[[], float]) -> NDArray[np.float64]:
    row = np.full(len(_COLUMNS), np.nan)
    started = clock()
    session.run(feed)
    row[_CALL] = clock() - started
    if isinstance(session, TimesPhases):
        phases = session.phase_times()
        row[_PHASES] = phases.upload_seconds, phases.compute_seconds, phases.download_seconds
    if graph is not None:
        started = clock()
        graph.run(feed)
        row[_CUDA_GRAPH] = clock() - started
    return row


def sweep_engines(
    builds: tuple[EngineBuild, ...],
    rows: Sequence[Feed],
    inputs: tuple[Tensor, ...],
    sizes: tuple[Sizes, ...],
    seconds_max: float,
    machine: Machine,
    into: Path,
    on_progress: OnProgress,
) -> Sweep:
    """Load a target's engines in this process, time them over `sizes` and save the raw times; run it isolated.

    `rows` are feeds of real values, `inputs` the graph's.
    """
    by_digest = {build.digest: build for build in builds}
    feeds: list[Any] = [make_feed(rows, inputs, dict(each)) for each in sizes]

    def open_graph(digest: str, place: int) -> Runs | None:
        try:
            session = open_cuda_graph(by_digest[digest], dict(sizes[place]))
            if session is not None:
                for _ in range(2):  # learn the shapes of the outputs, and capture
                    session.run(feeds[place])
        except (Incompatible, BadInput):  # a part of the graph runs on the CPU: it has no CUDA graph
            return None
        return session

    times = sweep(
        {digest: open_engine(build) for digest, build in by_digest.items()},
        feeds,
        seconds_max,
        open_graph=open_graph,
        on_progress=lambda done: on_progress("sweep", done),
    )
    for digest, raw in times.items():
        np.save(into / f"{digest}.npy", raw)
    return Sweep(tuple(sorted(times)), sizes, machine, record_tree(into), into)
