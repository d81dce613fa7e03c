"""Pictures for people who would rather look: matplotlib files that MLflow shows beside the run."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display on a worker

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tasks.quantization.autopilot import Choice
from tasks.quantization.table import CalibrationTable

WORST = 12
_NAME_LENGTH = 48


def draw_latency_histogram(calls: dict[str, NDArray[np.float64]], file: Path) -> Path:
    """Draw a histogram of call times in ms per precision, with p50 (line) and p99 (dashes)."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    everything = 1000 * np.concatenate([seconds.ravel() for seconds in calls.values()])
    bins = np.geomspace(everything.min(), np.quantile(everything, 0.999), 80).tolist()
    for position, (name, seconds) in enumerate(calls.items()):
        axes.hist(1000 * seconds.ravel(), bins=bins, alpha=0.5, label=name, color=f"C{position}")
        color = f"C{position}"
        axes.axvline(1000 * float(np.quantile(seconds, 0.5)), color=color)
        axes.axvline(1000 * float(np.quantile(seconds, 0.99)), color=color, linestyle="--")
    axes.set(xscale="log", xlabel="latency of one call, ms (log)", ylabel="calls", title="line: p50, dashes: p99")
    _place_legend(figure)
    return _save(figure, file)


def draw_quality_against_latency(
    metric: str, points: Sequence[tuple[str, float, float, float, float]], file: Path
) -> Path:
    """Draw one point per engine: (name, p50 in ms, metric, low, high), the metric as a share with 95 % interval."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, p50, quality, low, high in points:
        error = [[100 * (quality - low)], [100 * (high - quality)]]
        axes.errorbar(p50, 100 * quality, yerr=error, fmt="o", capsize=3, label=name)
    axes.set(xlabel="p50 latency, ms", ylabel=f"{metric}, % (95 % interval)", title="up and to the left is better")
    _place_legend(figure)
    return _save(figure, file)


def draw_worst_tensors(table: CalibrationTable, file: Path) -> Path:
    """Draw bars of relative error for the WORST tensors, beside largest |x| over what 99.9 % stay below."""
    worst = sorted(table.ranges, key=lambda each: each.error)[-WORST:]
    names = [_shorten(each.tensor) for each in worst]
    figure, (errors, outliers) = plt.subplots(
        1, 2, figsize=(11, 0.4 * len(worst) + 1.6), sharey=True, layout="constrained"
    )
    errors.barh(names, [max(each.error, 1e-12) for each in worst])
    errors.set(xscale="log", xlabel="relative squared error of the layers that read it (log)")
    outliers.barh(names, [each.amax / each.typical if each.typical else 0.0 for each in worst], color="C1")
    outliers.set(xlabel="largest |x| over its 99.9th percentile")
    figure.suptitle(f"worst of {len(table.ranges)} tensors, {table.rows} rows, {len(table.quarantined)} quarantined")
    return _save(figure, file)


def draw_int8_trade_off(choice: Choice, file: Path) -> Path:
    """Draw the holdout's loss (to its 95 % bound) over the share of MACs in int8, and the most damaging blocks."""
    figure, (mixes, blocks) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for tried in choice.path:
        error = [[0.0], [100 * (tried.bound - tried.loss)]]
        color = "C2" if tried.passed else "C3"
        mixes.errorbar(100 * tried.int8_share, 100 * tried.loss, yerr=error, fmt="o", capsize=3, color=color)
    mixes.axhline(100 * choice.limit, color="grey", linestyle="--")
    if choice.passed:
        mixes.axvline(100 * choice.int8_share, color="C2", linestyle=":")
    mixes.set(xlabel="MACs in int8, %", ylabel=f"loss against fp32 on {choice.rows} holdout rows, %",
              title="dashes: the gate; green passes; dots: chosen")  # fmt: skip
    worst = sorted((each for each in choice.blocks if each.damage is not None), key=lambda each: each.damage or 0.0)
    worst = worst[-WORST:]
    colors = ["C3" if each.tensor in choice.kept else "C0" for each in worst]
    blocks.barh(
        [_shorten(each.tensor) for each in worst], [max(each.damage or 0.0, 1e-12) for each in worst], color=colors
    )
    blocks.set(
        xscale="log", xlabel="error of the answers with only this block in int8 (log)", title="red: kept in fp32"
    )
    return _save(figure, file)


def _place_legend(figure: Figure) -> None:
    # Matplotlib's own place is searched for among the bars; above a second, as on a busy machine, it warns.
    figure.legend(loc="outside right upper")


def _shorten(tensor: str) -> str:
    return f"…{tensor[-_NAME_LENGTH:]}" if len(tensor) > _NAME_LENGTH else tensor


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
