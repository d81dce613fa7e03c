"""The windows of call times: what is planned, what was measured and kept, and where it is stored."""

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from registry.digest import record_tree
from registry.records import PLACE, FileRecord, Machine
from tasks.measurement.gpu_load import GpuState
from tasks.verdicts.sequential import find_look, find_ratio_looks, list_looks

_DISTURBED, _GPU, _REASONS = "disturbed", "gpu", "reasons"
# What is kept of a GPU for each window: MHz, watts, degrees Celsius, and 1 where the limit of power held it back.
_GPU_VALUES = 4
# A window of quick engines takes as long, with calls that are not timed: looks wait for seconds, not for many calls.
LEAST_SECONDS = 0.02


@dataclass(frozen=True)
class LatencyPlan:
    """The plan of a measurement: interleaved windows of `iterations` calls each, after `warmup` calls.

    It is first looked at after `windows` windows, and goes on for `seconds_max` seconds where that decides nothing.
    `sizes` are (axis, size) of what is fed.
    """

    windows: int
    iterations: int
    warmup: int
    sizes: tuple[tuple[str, int], ...]
    seconds_max: float = 60.0

    @property
    def batch(self) -> int:
        """Rows per call."""
        return dict(self.sizes).get("batch", 1)


@dataclass(frozen=True)
class Windows:
    """The call times so far, float64 seconds [windows, iterations] per engine digest; the baseline has all windows.

    An engine that was decided has fewer, those of the same time as the baseline's first. `disturbed` is bool [windows]:
    other work was seen meanwhile, `reasons` counts it by kind. `gpu` is float64 [windows, 4]: the GPU's clock in MHz,
    its power in watts, its temperature in degrees Celsius, and whether its limit of power held it back; NaN on a CPU.
    The engine in production, where it runs here and takes the same calls, is timed as long as the baseline.
    """

    baseline: str
    plan: LatencyPlan
    times: Mapping[str, NDArray[np.float64]]
    disturbed: NDArray[np.bool_]
    reasons: Mapping[str, int]
    gpu: NDArray[np.float64]
    production: str | None = None

    @classmethod
    def empty(
        cls, digests: Iterable[str], baseline: str, plan: LatencyPlan, production: str | None = None
    ) -> "Windows":
        """Return no windows of these engines."""
        times = {digest: np.empty((0, plan.iterations)) for digest in digests}
        return cls(baseline, plan, times, np.empty(0, dtype=bool), {}, np.empty((0, _GPU_VALUES)), production)

    @property
    def compared_with(self) -> frozenset[str]:
        """The engines that others are compared with, which are timed as long as any: the baseline and production."""
        return frozenset({self.baseline, self.production or self.baseline})

    @property
    def digests(self) -> tuple[str, ...]:
        """The engines, each once."""
        return tuple(self.times)

    @property
    def count(self) -> int:
        """How many windows were measured."""
        return len(self.disturbed)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """What each window took, float64 seconds [windows]: the calls of all engines, or `LEAST_SECONDS`."""
        seconds = np.zeros(self.count)
        for times in self.times.values():
            seconds[: len(times)] += times.sum(axis=1)
        return np.maximum(seconds, LEAST_SECONDS)

    @property
    def reached(self) -> tuple[int, int]:
        """The looks that were reached, by their counts: at the speed-up, and at p99, of windows without other work."""
        looks = (0, *list_looks(self.plan.windows))
        quiet = self.count - int(self.disturbed.sum())
        return looks[len(find_ratio_looks(self.seconds, self.plan.windows))], find_look(quiet, self.plan.windows)

    def append(
        self, times: Mapping[str, NDArray[np.float64]], load: Iterable[str], gpu: GpuState | None = None
    ) -> "Windows":
        """Return these windows and a group of new ones; `load` says what other work was seen, `gpu` how the GPU ran."""
        seen, added = tuple(load), len(times[self.baseline])
        return replace(
            self,
            times={name: np.concatenate([old, times.get(name, old[:0])]) for name, old in self.times.items()},
            disturbed=np.concatenate([self.disturbed, np.full(added, bool(seen))]),
            reasons=Counter(self.reasons) + Counter(dict.fromkeys(seen, added)),
            gpu=np.concatenate([self.gpu, np.full((added, _GPU_VALUES), _list_values(gpu))]),
        )

    def describe_dropped(self) -> str:
        """Say how many windows p50 and p99 leave out, and why; empty where there are none."""
        if not self.disturbed.any():
            return ""
        reasons = ", ".join(f"{name} in {count}" for name, count in sorted(self.reasons.items()))
        return f"{int(self.disturbed.sum())} of {self.count} windows were disturbed ({reasons})"


def _list_values(gpu: GpuState | None) -> tuple[float, ...]:
    if gpu is None:
        return (np.nan,) * _GPU_VALUES
    return gpu.sm_clock_mhz, gpu.power_watts, gpu.temperature_celsius, float(gpu.power_capped)


@dataclass(frozen=True)
class Benchmark:
    """The windows of a target's engines in `<digest>.npy`, which of them were disturbed, and how the GPU ran.

    `undecided` are the engines that more windows may decide.
    """

    engine_digests: tuple[str, ...]
    baseline_digest: str
    plan: LatencyPlan
    measured_on: Machine
    boundary: str
    reasons: dict[str, int]
    undecided: tuple[str, ...]
    files: tuple[FileRecord, ...]
    production_digest: str | None = None
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    def seconds(self, engine_digest: str) -> NDArray[np.float64]:
        """Return an engine's call times in seconds [windows, iterations]."""
        times: NDArray[np.float64] = np.load(self.directory / f"{engine_digest}.npy", allow_pickle=False)
        return times

    def raw_digest(self, engine_digest: str) -> str:
        """Return the sha256 of an engine's raw call times."""
        return next(file.sha256 for file in self.files if file.path == f"{engine_digest}.npy")

    def windows(self) -> Windows:
        """Return the raw times of all engines."""
        times = {digest: self.seconds(digest) for digest in self.engine_digests}
        disturbed, gpu = (np.load(self.directory / f"{name}.npy", allow_pickle=False) for name in (_DISTURBED, _GPU))
        return Windows(self.baseline_digest, self.plan, times, disturbed, self.reasons, gpu, self.production_digest)


def save_benchmark(
    windows: Windows, *, undecided: tuple[str, ...], measured_on: Machine, boundary: str, into: Path
) -> Benchmark:
    """Save the raw times under `into`: no figure is stored without the data it is derived from."""
    for name, values in {**windows.times, _DISTURBED: windows.disturbed, _GPU: windows.gpu}.items():
        np.save(into / f"{name}.npy", values)
    return Benchmark(
        tuple(sorted(windows.times)),
        windows.baseline,
        windows.plan,
        measured_on,
        boundary,
        dict(windows.reasons),
        undecided,
        record_tree(into),
        windows.production,
        into,
    )


def save_windows(windows: Windows, file: Path) -> None:
    """Keep the windows for the next run: the file has the old ones or the new ones, whenever this is killed."""
    scratch = file.with_suffix(".part")
    reasons = np.array(json.dumps(dict(windows.reasons)))
    with scratch.open("wb") as stream:
        arrays = {**windows.times, _DISTURBED: windows.disturbed, _GPU: windows.gpu, _REASONS: reasons}
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    scratch.replace(file)


def load_windows(file: Path, empty: Windows) -> Windows:
    """Return the kept windows of the engines of `empty`; `empty` itself where none were kept, or not whole."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            times = {digest: kept[digest] for digest in empty.times}
            disturbed, gpu, reasons = kept[_DISTURBED], kept[_GPU], json.loads(str(kept[_REASONS]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return empty
    return replace(empty, times=times, disturbed=disturbed, reasons=reasons, gpu=gpu)
