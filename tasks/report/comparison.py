"""Two engines of a model side by side: figures as measured, answers that flipped, layers that changed precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from registry.records import EngineManifest, Measurement, Precision
from tasks.graphs.layer_table import LayerRow, compute_reduced_share
from tasks.measurement.row_results import (
    ClassChange,
    Flip,
    RowResults,
    compare_results,
    count_by_class,
    find_shared,
    list_flips,
)
from tasks.measurement.windows import Windows
from tasks.model_tasks.contract import Metric
from tasks.verdicts.gates import find
from tasks.verdicts.intervals import PairedLoss, quantile_interval
from tasks.verdicts.sequential import bound_ratio, find_ratio_looks

# An interval of a figure, as (value, low, high).
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class ComparedEngine:
    """One of the engines: its manifest, and what its run kept; `layers` is None of fp32 and of earlier releases."""

    version: int
    manifest: EngineManifest
    answered: RowResults | None
    layers: tuple[LayerRow, ...] | None


@dataclass(frozen=True)
class Figures:
    """What a release measured of an engine; a figure is None where the engine itself did not run."""

    version: int
    target: str
    precision: Precision
    backend: str
    verdict: str
    digest: str
    size_bytes: int
    macs_share: float | None
    quality: Measurement | None
    latency_p50: Measurement | None
    latency_p99: Measurement | None


@dataclass(frozen=True)
class LayerChange:
    """A layer whose weights or activations have another type, like "int8 x uint8"."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Interleaved:
    """Call times of both engines in one process here, in ms; `speedup` is how many times as fast the second is."""

    sizes: tuple[tuple[str, int], ...]
    calls: int
    before_p50_ms: Interval
    after_p50_ms: Interval
    speedup: Interval


@dataclass(frozen=True)
class Comparison:
    """`after` compared with `before`; `not_paired` says why there is no `loss`, `flips` or `classes`."""

    model: str
    metric: str
    before: Figures
    after: Figures
    loss: PairedLoss | None
    not_paired: str
    flips: tuple[Flip, ...]
    classes: tuple[ClassChange, ...]
    layers: tuple[LayerChange, ...]
    interleaved: Interleaved | None = None


_JSON: TypeAdapter[Comparison] = TypeAdapter(Comparison)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    values: dict[str, Any] = _JSON.dump_python(comparison, mode="json")
    return values


def compare_engines(metric: Metric, before: ComparedEngine, after: ComparedEngine) -> Comparison:
    """Compare two engines by what was kept of them; row by row only where both answered the same rows."""
    reason = explain_unpaired(before, after)
    classes = after.manifest.source.classes
    loss, flips, changes = None, tuple[Flip, ...](), tuple[ClassChange, ...]()
    if not reason and before.answered is not None and after.answered is not None:
        loss = compare_results(metric, before.answered, after.answered)
        old, new = find_shared(before.answered, after.answered) or (before.answered, after.answered)
        flips, changes = list_flips(metric, old, new, classes), count_by_class(old, new, classes)
    return Comparison(
        after.manifest.model,
        metric.name,
        read_figures(metric, before),
        read_figures(metric, after),
        loss,
        reason,
        flips,
        changes,
        list_layer_changes(before, after),
    )


def explain_unpaired(before: ComparedEngine, after: ComparedEngine) -> str:
    """Say why two engines cannot be compared row by row; empty where they can."""
    for engine in (before, after):
        if engine.answered is None:
            return (
                f"not compared row by row: what version {engine.version} answered was not kept, since no machine ran "
                "it for its release, or an earlier Enginery released it"
            )
    answered = [engine.answered for engine in (before, after) if engine.answered is not None]
    if find_shared(*answered) is None:
        sets = [each.evaluation_set[:12] for each in answered]
        return (
            f"not compared row by row: version {before.version} was judged on other rows ({sets[0]}) than version "
            f"{after.version} ({sets[1]}); release both with the same evaluation rows"
        )
    if before.manifest.source.classes != after.manifest.source.classes:
        return "not compared row by row: the two engines tell other classes apart"
    return ""


def read_figures(metric: Metric, engine: ComparedEngine) -> Figures:
    """Return what a manifest says was measured of the engine itself."""
    manifest, build = engine.manifest, engine.manifest.build
    own = tuple(figure for figure in manifest.measurements if figure.subject == "engine")
    return Figures(
        engine.version,
        build.target.name,
        build.precision,
        build.backend.value,
        manifest.verdict.value,
        build.digest,
        build.size_bytes,
        compute_reduced_share(engine.layers or ()),
        find(own, metric.name),
        find(own, "latency_p50_ms"),
        find(own, "latency_p99_ms"),
    )


def list_layer_changes(before: ComparedEngine, after: ComparedEngine) -> tuple[LayerChange, ...]:
    """List the layers that changed type, by name, in the order of the second engine's graph.

    Every layer of an fp32 engine is fp32. Layers that only one graph has by name are left out.
    """
    types = _read_types(before, after), _read_types(after, before)
    names = [name for name in types[1] if name in types[0]]
    return tuple(
        LayerChange(name, types[0][name], types[1][name]) for name in names if types[0][name] != types[1][name]
    )


def _read_types(engine: ComparedEngine, other: ComparedEngine) -> Mapping[str, str]:
    if engine.layers is None and engine.manifest.build.precision is Precision.FP32:
        return dict.fromkeys(_read_types(other, engine) if other.layers is not None else (), "fp32 x fp32")
    rows: Sequence[LayerRow] = engine.layers or ()
    return {row.name.removesuffix("_quant"): f"{row.weights} x {row.activations}" for row in rows}


def summarize_calls(windows: Windows, digests: tuple[str, str]) -> Interleaved:
    """Summarize the interleaved calls of two engines, the older one first.

    The bounds of the speed-up are those of the last look, so that of equal engines at most 5 % are told apart.
    """
    count = min(len(windows.times[digest]) for digest in digests)
    before, after = (windows.times[digest][:count] for digest in digests)
    spent = windows.seconds[:count]
    look = next(reversed(find_ratio_looks(spent, windows.plan.windows)), count)
    speedup = bound_ratio(np.median(before[:look], axis=1), np.median(after[:look], axis=1), spent[:look])
    return Interleaved(windows.plan.sizes, int(after.size), _find_p50(before), _find_p50(after), speedup)


def _find_p50(seconds: NDArray[np.float64]) -> Interval:
    value, low, high = (1000 * second for second in quantile_interval(seconds.ravel(), 0.5))
    return value, low, high
