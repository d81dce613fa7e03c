"""Pictures for people who would rather look: matplotlib files that MLflow shows beside the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display on a worker

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from registry.records import Precision
from tasks.quantization.autopilot import Choice
from tasks.quantization.table import CalibrationTable

WORST = 12
_NAME_LENGTH = 60
_REFERENCE, _GATE = "0.4", "C3"


@dataclass(frozen=True)
class EnginePoint:
    """An engine that ran: its p50 in ms, and the task's metric as a share with its 95 % interval."""

    target: str
    precision: Precision
    p50_ms: float
    quality: float
    low: float
    high: float

    @property
    def is_reference(self) -> bool:
        """Whether the target's other engines are compared with it."""
        return self.precision is Precision.FP32


def draw_latency_histogram(
    calls: Mapping[str, NDArray[np.float64]], file: Path, *, p99_limit_ms: float | None = None
) -> Path:
    """Draw a histogram of call times in ms per precision, with p50 (line), p99 (dashes) and the limit of p99."""
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    everything = 1000 * np.concatenate([seconds.ravel() for seconds in calls.values()])
    fastest = float(everything.min())
    bins = np.geomspace(fastest, max(float(np.quantile(everything, 0.999)), 1.01 * fastest), 80).tolist()
    for position, (name, seconds) in enumerate(calls.items()):
        color = _REFERENCE if name == Precision.FP32 else f"C{position}"
        p50, p99 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
        label = f"{_name(name, is_reference=name == Precision.FP32)}\np50 {p50:.3g} ms, p99 {p99:.3g} ms"
        axes.hist(1000 * seconds.ravel(), bins=bins, alpha=0.5, label=label, color=color)
        axes.axvline(p50, color=color)
        axes.axvline(p99, color=color, linestyle="--")
    if p99_limit_ms is not None:
        axes.axvline(p99_limit_ms, color=_GATE, linestyle=":", linewidth=2, label=f"limit of p99: {p99_limit_ms:g} ms")
    axes.set(xscale="log", xlabel="latency of one call, ms (log)", ylabel="calls")
    axes.set_title("further left is better; line: p50, dashes: p99")
    show_plain_numbers(axes.xaxis)
    _place_legend(figure)
    return _save(figure, file)


def draw_quality_against_latency(
    metric: str, points: Sequence[EnginePoint], file: Path, *, loss_max: float, higher_is_better: bool = True
) -> Path:
    """Draw one point per engine that ran, and how much worse than its target's fp32 the recipe lets the metric be."""
    sign, gate_side, better = (-1, "less", "up") if higher_is_better else (1, "plus", "down")
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    for position, point in enumerate(points):
        color = _REFERENCE if point.is_reference else f"C{position}"
        quality, error = (
            100 * point.quality,
            [[100 * (point.quality - point.low)], [100 * (point.high - point.quality)]],
        )
        label = _name(f"{point.target} {point.precision}", is_reference=point.is_reference)
        marker = "s" if point.is_reference else "o"
        axes.errorbar(point.p50_ms, quality, yerr=error, fmt=marker, capsize=3, color=color, label=label)
        if point.is_reference:
            gate = f"{point.target}: fp32 {gate_side} {100 * loss_max:g} points"
            axes.axhline(quality + sign * 100 * loss_max, color=_GATE, linestyle=":", label=gate)
    title = f"{better} and to the left is better"
    axes.set(xlabel="p50 latency, ms", ylabel=f"{metric}, % (95 % interval)", title=title)
    axes.set_xlim(left=0)
    _place_legend(figure)
    return _save(figure, file)


def draw_worst_tensors(table: CalibrationTable, file: Path) -> Path:
    """Draw bars of relative error for the WORST tensors, beside largest |x| over what 99.9 % stay below."""
    worst = sorted(table.ranges, key=lambda each: each.error)[-WORST:]
    figure, (errors, outliers) = plt.subplots(
        1, 2, figsize=(12, 0.4 * len(worst) + 1.8), sharey=True, layout="constrained"
    )
    _draw_bars(errors, [each.tensor for each in worst], [max(each.error, 1e-12) for each in worst])
    errors.set(xscale="log", xlabel="relative squared error of the layers that read it (log)")
    show_plain_numbers(errors.xaxis)
    ratios = [each.amax / each.typical if each.typical else 0.0 for each in worst]
    outliers.barh(range(len(worst)), ratios, color="C1")
    outliers.set(xlabel="largest |x| over its 99.9th percentile")
    counts = (
        f"{len(worst)} worst of {len(table.ranges)} tensors, {table.rows} rows, {len(table.quarantined)} quarantined"
    )
    figure.suptitle(f"{counts}; shorter is better")
    return _save(figure, file)


def draw_int8_trade_off(choice: Choice, file: Path) -> Path:
    """Draw the holdout's loss (to its 95 % bound) over the share of MACs in int8, and the most damaging blocks."""
    measured = sorted((each for each in choice.blocks if each.damage is not None), key=lambda each: each.damage or 0.0)
    worst = measured[-WORST:]
    # Blocks are measured only where int8 throughout does not pass.
    figure, axes = plt.subplots(
        1, 2 if worst else 1, figsize=(13 if worst else 7.5, 4.8), layout="constrained", squeeze=False
    )
    _draw_mixes(axes[0, 0], choice)
    if worst:
        blocks = axes[0, 1]
        colors = [_GATE if each.tensor in choice.kept else "C0" for each in worst]
        _draw_bars(blocks, [each.tensor for each in worst], [max(each.damage or 0.0, 1e-12) for each in worst], colors)
        blocks.set(xscale="log", xlabel="error of the answers with only this block in int8 (log)")
        blocks.set_title("shorter is better; red: kept in fp32")
        show_plain_numbers(blocks.xaxis)
    return _save(figure, file)


def _draw_mixes(axes: Axes, choice: Choice) -> None:
    for passed, color, label in ((True, "C2", "passes the gate"), (False, _GATE, "does not pass")):
        tried = [mix for mix in choice.path if mix.passed is passed]
        if tried:
            shares, losses = [100 * mix.int8_share for mix in tried], [100 * mix.loss for mix in tried]
            error = [[0.0] * len(tried), [100 * (mix.bound - mix.loss) for mix in tried]]
            axes.errorbar(shares, losses, yerr=error, fmt="o", capsize=3, color=color, label=label)
    axes.axhline(100 * choice.limit, color=_GATE, linestyle="--", label=f"limit of the loss: {100 * choice.limit:g} %")
    axes.axhline(0, color=_REFERENCE, linewidth=1, label="fp32 (reference)")
    if choice.passed:
        axes.axvline(100 * choice.int8_share, color="C2", linestyle=":", label="chosen")
    axes.set(xlabel="MACs in int8, %", ylabel=f"loss against fp32 on {choice.rows} holdout rows, %", xlim=(0, 105))
    axes.set_title("down and to the right is better; bars end at the 95 % bound")
    axes.legend(loc="center left")


def _draw_bars(axes: Axes, names: Sequence[str], values: Sequence[float], colors: Any = None) -> None:
    # By position: two long names may look the same when they are shortened.
    axes.barh(range(len(names)), values, color=colors)
    axes.set_yticks(range(len(names)), [_shorten(name) for name in names])


def show_plain_numbers(axis: Axis) -> None:
    """Write numbers as 0.5, 1, 2 on a logarithmic axis, and no powers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _name(engine: str, *, is_reference: bool) -> str:
    return f"{engine} (reference)" if is_reference else engine


def _place_legend(figure: Figure) -> None:
    # Matplotlib's own place is searched for among the bars; above a second, as on a busy machine, it warns.
    figure.legend(loc="outside right upper")


def _shorten(tensor: str) -> str:
    half = _NAME_LENGTH // 2
    return tensor if len(tensor) <= _NAME_LENGTH else f"{tensor[:half]}…{tensor[-half:]}"


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
