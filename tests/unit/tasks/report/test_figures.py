"""Pictures say what is better, mark the reference and the gate, and have no empty axes and no powers on their ticks."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from registry.records import Precision
from tasks.calibration.ranges import Method
from tasks.calibration.statistics import Outlier
from tasks.quantization.autopilot import Choice, TriedMix
from tasks.quantization.table import CalibrationTable, TensorRange
from tasks.report import figures
from tasks.report.figures import (
    EnginePoint,
    draw_int8_trade_off,
    draw_latency_histogram,
    draw_quality_against_latency,
    draw_worst_tensors,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are saved, kept open."""
    kept: list[Figure] = []

    def save(figure: Figure, file: Path) -> Path:
        figure.savefig(file)
        kept.append(figure)
        return file

    monkeypatch.setattr(figures, "_save", save)
    yield kept
    plt.close("all")


def legend(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for each in legends if each is not None for text in each.get_texts()]


def ticks(axes: Axes) -> list[str]:
    low, high = axes.get_xlim()
    labels = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    return [label.get_text() for at, label in labels if low <= at <= high]


def test_latency_names_the_reference_the_limit_and_plain_milliseconds(drawn: list[Figure], tmp_path: Path) -> None:
    calls = {"int8": np.linspace(0.011, 0.02, 500), "fp32": np.linspace(0.03, 0.09, 500)}
    draw_latency_histogram(calls, tmp_path / "latency.png", p99_limit_ms=70)
    (axes,) = drawn[0].axes
    assert legend(drawn[0]) == [
        "int8\np50 15.5 ms, p99 19.9 ms",
        "fp32 (reference)\np50 60 ms, p99 89.4 ms",
        "limit of p99: 70 ms",
    ]
    assert ticks(axes) == ["10", "20", "50"]
    assert "better" in axes.get_title()


def test_latency_without_a_limit_has_none(drawn: list[Figure], tmp_path: Path) -> None:
    draw_latency_histogram({"fp32": np.full(100, 0.01)}, tmp_path / "latency.png")
    assert legend(drawn[0]) == ["fp32 (reference)\np50 10 ms, p99 10 ms"]


def test_quality_draws_the_gate_below_each_reference(drawn: list[Figure], tmp_path: Path) -> None:
    points = [
        EnginePoint("cpu", Precision.FP32, 8.0, 0.80, 0.78, 0.82),
        EnginePoint("cpu", Precision.INT8_DYNAMIC, 4.0, 0.79, 0.77, 0.81),
    ]
    draw_quality_against_latency("accuracy", points, tmp_path / "quality.png", loss_max=0.02)
    (axes,) = drawn[0].axes
    assert set(legend(drawn[0])) == {"cpu fp32 (reference)", "cpu int8-dynamic", "cpu: fp32 less 2 points"}
    gate = next(line for line in axes.lines if line.get_label() == "cpu: fp32 less 2 points")
    assert np.allclose(gate.get_ydata(), 78.0)
    assert "better" in axes.get_title()


def test_quality_draws_the_gate_above_where_lower_is_better(drawn: list[Figure], tmp_path: Path) -> None:
    points = [EnginePoint("cpu", Precision.FP32, 8.0, 0.10, 0.09, 0.12)]
    draw_quality_against_latency("wer", points, tmp_path / "wer.png", loss_max=0.02, higher_is_better=False)
    (axes,) = drawn[0].axes
    gate = next(line for line in axes.lines if line.get_label() == "cpu: fp32 plus 2 points")
    assert np.allclose(gate.get_ydata(), 12.0)
    assert axes.get_title() == "down and to the left is better"


def test_tensors_whose_long_names_look_alike_have_a_bar_each(drawn: list[Figure], tmp_path: Path) -> None:
    names = [f"/encoder/{'deep/' * 8}layer.{number}/{'inner/' * 8}output" for number in range(3)]
    ranges = tuple(
        TensorRange(name, Method.MSE, 9.0, 3.0, clip=1.0, scale=0.5, error=10.0**-power, histogram="a" * 64)
        for power, name in enumerate(names, start=2)
    )
    draw_worst_tensors(CalibrationTable("d" * 64, ranges, 64, (), Outlier(3, "one", 9.0, 3.0)), tmp_path / "worst.png")
    errors, outliers = drawn[0].axes
    assert len({patch.get_extents().y0 for patch in errors.patches}) == len(outliers.patches) == 3
    assert all("^" not in text and "$" not in text for text in ticks(errors))


def test_int8_that_passes_at_once_has_no_empty_axes(drawn: list[Figure], tmp_path: Path) -> None:
    mix = TriedMix("nearest", 0, 1.0, 0.002, 0.013, passed=True)
    choice = Choice(True, "nearest", (), 1.0, 0.02, 512, (), (mix,))
    draw_int8_trade_off(choice, tmp_path / "int8.png")
    (axes,) = drawn[0].axes
    assert legend(drawn[0]) == ["limit of the loss: 2 %", "fp32 (reference)", "chosen", "passes the gate"]
    assert axes.get_xlim() == (0, 105)
