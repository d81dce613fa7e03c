"""The charts of the page, as SVG in the page itself: matplotlib draws them, the page's style sheet colours them.

A script-free picture prints, needs no library in the page, and reads in a mail or in MLflow's sandbox.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display on a worker

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from tasks.measurement.sweep import Sizes, SizeTimes
from tasks.report.figures import show_plain_numbers

_SVG = "http://www.w3.org/2000/svg"
# Colours that stand for a variable of the page's style sheet, in light and dark.
_INK, _MUTED, _LINE, _ACCENT, _BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent", _BAD: "bad"}
_STYLE: Any = {  # matplotlib types it by every key that it has
    "svg.fonttype": "none",  # text stays text: it is searched, selected and read aloud
    "svg.hashsalt": "enginery",
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _LINE),
}
# Inches: on a phone of 390 pixels the text keeps its size.
_WIDTH = 4.7
_FEWEST_POINTS_APART = 0.075


@dataclass(frozen=True)
class Point:
    """An engine that ran: p50 in ms and the metric, each as (value, low, high)."""

    name: str
    p50_ms: tuple[float, float, float]
    quality: tuple[float, float, float]
    is_reference: bool
    is_dominated: bool


def draw_pareto(metric: str, points: Sequence[Point], floor: float | None) -> str:
    """Draw the metric over p50 with both intervals; dominated engines are grey, `floor` is what the gate allows."""
    titles: dict[str, str] = {}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, point in enumerate(points):
            color = _MUTED if point.is_dominated else _ACCENT
            bars = axes.errorbar(
                point.p50_ms[0],
                point.quality[0],
                xerr=_to_error(point.p50_ms),
                yerr=_to_error(point.quality),
                fmt="s" if point.is_reference else "o",
                color=color,
                alpha=0.75 if point.is_dominated else 1,
                capsize=2,
                linewidth=1,
            )
            bars.lines[0].set_gid(f"point-{place}")
            titles[f"point-{place}"] = _describe_point(metric, point)
        if floor is not None and _is_near(floor, points):
            axes.axhline(floor, color=_BAD, linestyle=":", linewidth=1)
            axes.annotate(
                "the gate's limit",
                (0, floor),
                (3, 3),
                xycoords=("axes fraction", "data"),
                color=_BAD,
                textcoords="offset points",
                fontsize=9,
            )
        axes.set(xlabel="p50 latency, ms (95 % interval)", ylabel=f"{metric} (95 % interval)")
        axes.margins(0.12)
        axes.grid(visible=True, linewidth=0.5)
        _label_points(axes, points)

    return _draw(draw, 3.3, titles, f"{metric} over p50 latency of {len(points)} engines")


def draw_latencies(calls: Mapping[str, NDArray[np.float64]], limit_ms: float | None) -> str:
    """Draw one histogram of call times per engine, over a common axis, with its median and 99th percentile."""
    titles: dict[str, str] = {}
    everything = 1000 * np.concatenate([seconds.ravel() for seconds in calls.values()])
    low = float(everything.min())
    bins = np.geomspace(low, max(float(np.quantile(everything, 0.999)), 1.01 * low), 60)

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(calls), 1, sharex=True, squeeze=False)[:, 0]
        for place, (axes, (name, seconds)) in enumerate(zip(rows, calls.items(), strict=True)):
            p50, p99 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
            bars = axes.hist(
                np.clip(1000 * seconds.ravel(), bins[0], bins[-1]),
                bins=bins.tolist(),
                histtype="stepfilled",
                color=_ACCENT,
                alpha=0.45,
            )
            bars[2][0].set_gid(f"calls-{place}")
            titles[f"calls-{place}"] = f"{name}: p50 {p50:.3g} ms, p99 {p99:.3g} ms, {seconds.size} calls"
            axes.axvline(p50, color=_INK, linewidth=1.2)
            axes.axvline(p99, color=_INK, linewidth=1, linestyle="--")
            if limit_ms is not None:
                axes.axvline(limit_ms, color=_BAD, linewidth=1, linestyle=":")
            axes.set_title(f"{name}: p50 {p50:.3g} ms, p99 {p99:.3g} ms", loc="left", fontsize=10, color=_INK)
            axes.set(xscale="log", yticks=[])
            axes.spines[["left", "right", "top"]].set_visible(False)
        show_plain_numbers(rows[-1].xaxis)
        rows[-1].set_xlabel("one call, ms (log); line: p50, dashes: p99" + ("; dots: limit" if limit_ms else ""))

    return _draw(draw, 0.7 + 0.75 * len(calls), titles, f"call times of {', '.join(calls)}")


def draw_sizes(engines: Mapping[str, Sequence[SizeTimes]], reference: str | None) -> str:
    """Draw a map per engine of the median call over the sizes of the profile's first two axes.

    The cells of the `reference` are shaded by its times, those of the others by how much faster than it they are.
    """
    titles: dict[str, str] = {}
    exact = {each.sizes: each.p50_ms for each in engines[reference]} if reference else {}
    rows = max(len({each.sizes[0] for each in times}) for times in engines.values())

    def draw(figure: Figure) -> None:
        maps = figure.subplots(len(engines), 1, squeeze=False)[:, 0]
        for place, (axes, (engine, times)) in enumerate(zip(maps, engines.items(), strict=True)):
            words = {
                each.sizes: _describe_size(each, None if engine == reference else exact.get(each.sizes))
                for each in times
            }
            for name, title in _draw_map(axes, f"size-{place}", words).items():
                titles[name] = f"{engine}, {title}"
            axes.set_title(engine, loc="left", fontsize=10, color=_INK)

    return _draw(draw, len(engines) * (0.7 + 0.42 * rows), titles, f"call times by size of {', '.join(engines)}")


def _describe_size(timed: SizeTimes, exact_ms: float | None) -> tuple[str, float]:
    """Return a cell's words and how dark it is: the more, the faster than the reference."""
    if timed.p50_ms is None:
        return "not timed", 0.0
    if exact_ms is None:
        return f"{timed.p50_ms:.3g} ms", 0.1
    ratio = exact_ms / timed.p50_ms
    return f"{timed.p50_ms:.3g} ms\n{ratio:.2f} times", min(0.6, max(0.0, 0.4 * float(np.log2(ratio))))


def _draw_map(axes: Axes, gid: str, cells: Mapping[Sizes, tuple[str, float]]) -> dict[str, str]:
    """Draw cells of (words, shade) at their sizes on the first two axes; return their titles by the id of the mark."""
    names = [name for name, _ in next(iter(cells))[:2]]
    ticks = [sorted({sizes[place][1] for sizes in cells}) for place in range(len(names))]
    rows, columns = (*ticks, [1])[:2]
    titles = {}
    for number, (sizes, (words, shade)) in enumerate(cells.items()):
        column = columns.index(sizes[1][1]) if len(names) > 1 else 0
        row = rows.index(sizes[0][1])
        mark = axes.add_patch(Rectangle((column, row), 1, 1, facecolor=_ACCENT, alpha=shade, linewidth=0))
        mark.set_gid(f"{gid}-{number}")
        titles[f"{gid}-{number}"] = ", ".join([*(f"{name} {size}" for name, size in sizes), *words.splitlines()])
        axes.text(column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=9, color=_INK)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), ylabel=names[0], xlabel=names[1] if len(names) > 1 else "")
    axes.set_xticks(
        [place + 0.5 for place in range(len(columns))], [str(size) for size in columns] if len(names) > 1 else [""]
    )
    axes.set_yticks([place + 0.5 for place in range(len(rows))], [str(size) for size in rows])
    axes.tick_params(length=0)
    return titles


def _is_near(floor: float, points: Sequence[Point]) -> bool:
    """Tell whether a line is so near that the points are still told apart beside it."""
    low, high = min(point.quality[1] for point in points), max(point.quality[2] for point in points)
    return low - (high - low) <= floor <= high + (high - low)


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write names beside the plot, in the order of the points, each with a thin line to its own."""
    axes.figure.canvas.draw()
    heights = [
        float(axes.transAxes.inverted().transform(axes.transData.transform((0, each.quality[0])))[1]) for each in points
    ]
    order = sorted(range(len(points)), key=lambda place: heights[place])
    wanted = [heights[place] for place in order]
    for place in range(1, len(wanted)):
        wanted[place] = max(wanted[place], wanted[place - 1] + _FEWEST_POINTS_APART)
    over = max(0.0, wanted[-1] - 1.0)
    for place, height in zip(order, wanted, strict=True):
        point = points[place]
        axes.annotate(
            point.name,
            (point.p50_ms[0], point.quality[0]),
            (1.03, height - over),
            textcoords="axes fraction",
            va="center",
            color=_MUTED if point.is_dominated else _INK,
            arrowprops={"arrowstyle": "-", "color": _LINE, "linewidth": 0.7, "shrinkB": 4},
        )


def _describe_point(metric: str, point: Point) -> str:
    quality, p50 = (f"{each[0]:.4g} ({each[1]:.4g} to {each[2]:.4g})" for each in (point.quality, point.p50_ms))
    grey = "; another engine is no slower and no worse" if point.is_dominated else ""
    return f"{point.name}: {metric} {quality}, p50 {p50} ms{grey}"


def _to_error(interval: tuple[float, float, float]) -> list[list[float]]:
    value, low, high = interval
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _draw(draw: Callable[[Figure], None], height: float, titles: Mapping[str, str], label: str) -> str:
    with mpl.rc_context(_STYLE):
        figure = plt.figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return _to_inline(text.getvalue(), titles, label)


def _to_inline(svg: str, titles: Mapping[str, str], label: str) -> str:
    """Make a drawing an element of a page: its colours variables, its size the page's, a title on each mark."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(svg)  # noqa: S314 - matplotlib wrote it
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    for element in [*root.iter(f"{{{_SVG}}}g"), *root.iter(f"{{{_SVG}}}path")]:
        # A group's id is nobody's target, and the same in each chart of the page.
        name = element.attrib.pop("id", "") if element.tag.endswith("}g") else element.get("id", "")
        if (title := titles.get(name)) is not None:
            child = ET.Element(f"{{{_SVG}}}title")
            child.text = title
            element.insert(0, child)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    text = ET.tostring(root, encoding="unicode")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text
