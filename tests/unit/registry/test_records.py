"""Values of the domain that say something of themselves."""

from dataclasses import replace
from typing import Any

import pytest

from registry.records import AxisRange, Precision, ShapeProfile, largest_axes
from registry.store import row_of

SMALL = ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=AxisRange(8, 16, 32))
LARGE = ShapeProfile.of(batch=AxisRange(4, 8, 64), height=AxisRange(32, 64, 96))


def test_a_profile_is_read_by_a_graphs_own_names_of_axes() -> None:
    assert SMALL.axis("batch_size") == SMALL.axis("batch") == AxisRange(1, 2, 4)
    assert SMALL.axis("sequence_length") == AxisRange(8, 16, 32)
    assert SMALL.axis("height") is None


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [({"batch": 4, "sequence": 8}, True), ({"batch": 5}, False), ({"sequence": 7}, False), ({"height": 1000}, True)],
)
def test_a_profile_holds_the_sizes_within_its_ranges(sizes: dict[str, int], fits: bool) -> None:
    assert SMALL.holds(sizes) is fits


def test_the_largest_size_of_each_axis_is_taken_over_all_profiles() -> None:
    assert largest_axes([SMALL, LARGE]) == {"batch": 64, "sequence": 32, "height": 96}
    assert largest_axes([]) == {}


@pytest.mark.parametrize("subject", ["engine", "onnx-graph"])
def test_the_quality_of_a_version_is_the_metric_whose_loss_was_measured(manifest_factory: Any, subject: str) -> None:
    manifest, _ = manifest_factory()
    (latency,) = manifest.measurements
    assert row_of(manifest, 1).quality is None
    f1 = replace(latency, metric="f1", value=0.9, subject=subject)
    loss = replace(f1, metric="f1_loss", value=0.0)
    row = row_of(replace(manifest, measurements=(latency, loss, f1)), 1)
    assert row.precision is Precision.FP16
    assert row.quality == ("f1" if subject == "engine" else "onnx-graph.f1", 0.9)


def test_the_quality_is_what_an_engine_is_judged_by_whatever_else_is_reported(manifest_factory: Any) -> None:
    manifest, _ = manifest_factory()
    (latency,) = manifest.measurements
    figures = [
        replace(latency, metric=name, value=value)
        for name, value in (("wer", 0.1), ("wer_loss", 0.0), ("cer", 0.04), ("cer_loss", 0.0))
    ]
    assert row_of(replace(manifest, measurements=(*figures, latency)), 1).quality == ("wer", 0.1)
