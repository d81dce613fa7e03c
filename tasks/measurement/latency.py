"""Measure latency: all engines of a target, interleaved with their fp32 baseline, in one fresh process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from registry.records import NEW_TOKENS, Backend, EngineBuild, Tensor, axis_name
from tasks.backends import open_engine
from tasks.execution.progress import OnProgress
from tasks.measurement.evaluate import Runs
from tasks.measurement.foreign_load import SPAN_SECONDS, LoadCounters, find_foreign_load, read_load
from tasks.measurement.gpu_load import GpuState, open_gpu_probe
from tasks.measurement.latency_figures import LatencyRule
from tasks.measurement.windows import (
    LEAST_SECONDS,
    Benchmark,
    LatencyPlan,
    Windows,
    load_windows,
    save_benchmark,
    save_windows,
)
from tasks.model_tasks.contract import Feed
from tasks.verdicts.sequential import list_looks

BOUNDARY = "host arrays in, host arrays out: copies to and from the device are inside"
# A group is each session's window twice, in both orders.
GROUP = 2
# Of the kept windows of a measurement, the engines that they leave undecided.
FindUndecided = Callable[[Windows], tuple[str, ...]]


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


@dataclass(frozen=True)
class Probes:
    """What a measurement reads of the machine: the time, other work on it, and its GPU. Tests give their own."""

    clock: Callable[[], float] = time.perf_counter
    load: Callable[[], LoadCounters] = read_load
    gpu: Callable[[], GpuState | None] = lambda: None


def measure_until_decided(
    sessions: Mapping[str, Runs],
    feed: Feed,
    windows: Windows,
    find_undecided: FindUndecided,
    on_progress: Callable[[float], object] = lambda _: None,
    probes: Probes | None = None,
) -> Windows:
    """Append windows to those kept until no engine is undecided or `seconds_max` is used up.

    Undecided engines are timed on, with the baseline and the engine in production between them. Whether an engine is
    decided is looked at only at the looks of `Windows.reached`. The windows of the first look are measured however long
    they take.
    """
    plan, probes = windows.plan, probes or Probes()
    first = list_looks(plan.windows)[0]
    undecided = find_undecided(windows) if windows.count >= first else tuple(sessions)
    for name in {*windows.compared_with, *undecided}:
        interleave({name: sessions[name]}, feed, replace(plan, windows=0))
    started = probes.clock()
    while undecided:
        spent = probes.clock() - started
        if spent >= plan.seconds_max and windows.count >= first:
            break
        names = [name for name in sessions if name in {*windows.compared_with, *undecided}]
        reached = windows.reached
        windows = _append_span({name: sessions[name] for name in names}, feed, windows, probes)
        if windows.reached != reached:
            undecided = find_undecided(windows)
        on_progress(min(1.0, spent / plan.seconds_max))
    return windows


def _append_span(sessions: Mapping[str, Runs], feed: Feed, windows: Windows, probes: Probes) -> Windows:
    """Append groups until other work on the machine can be told for them, or a look is reached."""
    groups: list[Mapping[str, NDArray[np.float64]]] = []
    looks = list_looks(windows.plan.windows)
    before = after = probes.load()
    while not groups or (after.at - before.at < SPAN_SECONDS and windows.count + len(groups) * GROUP not in looks):
        plan, started = replace(windows.plan, windows=GROUP, warmup=0), probes.clock()
        groups.append(interleave(sessions, feed, plan, clock=probes.clock))
        # Calls and not a pause, in which a CPU would slow down.
        while probes.clock() - started < GROUP * LEAST_SECONDS:
            for session in sessions.values():
                session.run(feed)
        after = probes.load()
    gpu = probes.gpu()
    seen = (*find_foreign_load(before, after), *(gpu.disturbances if gpu else ()))
    for times in groups:
        windows = windows.append(times, seen, gpu)
    return windows


def make_feed(rows: Sequence[Feed], inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> Feed:
    """Return a feed of real values in these sizes of named axes: rows are joined, cut and repeated, never padded."""
    return {
        tensor.name: np.resize(
            np.concatenate([row[tensor.name].ravel() for row in rows]),
            [sizes.get(axis_name(size), 1) if isinstance(size, str) else size for size in tensor.shape],
        )
        for tensor in inputs
    }


def measure_latency(
    builds: tuple[EngineBuild, ...],
    feed: Feed,
    empty: Windows,
    rule: LatencyRule,
    places: tuple[Path, Path],
    on_progress: OnProgress,
) -> Benchmark:
    """Load a target's undecided engines in this process, time them on and save the raw times; run it isolated.

    `places` are the file that keeps the windows for the next run, and the folder of the benchmark. An engine that
    writes text writes as many new tokens as the plan has, in each call.
    """
    kept, into = places
    windows = load_windows(kept, empty)
    new_tokens = dict(windows.plan.sizes).get(NEW_TOKENS)
    undecided = rule(windows) if windows.reached[0] else windows.digests
    timed = {*windows.compared_with, *undecided} if undecided else set()
    sessions = {build.digest: open_engine(build, new_tokens=new_tokens) for build in builds if build.digest in timed}
    if sessions:
        is_on_cpu = builds[0].backend is Backend.ONNXRUNTIME
        probes = Probes() if is_on_cpu else Probes(gpu=open_gpu_probe() or Probes.gpu)
        windows = measure_until_decided(
            sessions, feed, windows, rule, lambda done: on_progress("latency", done), probes
        )
        save_windows(windows, kept)
    undecided = rule(windows)
    boundary = BOUNDARY
    if new_tokens is not None:
        boundary += f"; a call is a whole greedy generation of {new_tokens} tokens for each row, whatever they are"
    return save_benchmark(windows, undecided=undecided, measured_on=rule.machine, boundary=boundary, into=into)
