"""The calibration table: one form in bytes, hostile input refused, scales compared between releases."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import BadInput
from tasks.calibration.collect import calibrate
from tasks.graphs.layers import Graph
from tasks.quantization.scales import choose_scales
from tasks.quantization.table import CalibrationTable, drift, from_json, make_table, to_json
from tasks.report.figures import draw_worst_tensors
from tests.support.encoder_graphs import batched, encoder, saved, texts


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CalibrationTable:
    calibration = calibrate(saved(tmp_path_factory.mktemp("graph"), encoder()), batched(texts(24), 4))
    return make_table("d" * 64, calibration, choose_scales(Graph(encoder()), calibration))


def test_a_table_survives_writing_and_reading(table: CalibrationTable) -> None:
    assert from_json(to_json(table)) == table


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale", 0.0), ("scale", -1.0), ("clip", 1e300), ("amax", -1.0), ("error", -0.5), ("method", "best")],
)
def test_a_value_that_no_calibration_gives_is_refused(table: CalibrationTable, field: str, value: object) -> None:
    document = json.loads(to_json(table))
    document["ranges"][0][field] = value
    with pytest.raises(BadInput, match="calibrate again"):
        from_json(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[1]", b"\xff", b'{"format_version":1}'], ids=["empty", "{}", "list", "binary", "short"]
)
def test_json_that_is_not_a_table_is_refused(raw: bytes) -> None:
    with pytest.raises(BadInput, match="calibrate again"):
        from_json(raw)


def test_unknown_keys_another_form_and_another_version_are_refused(table: CalibrationTable) -> None:
    document = json.loads(to_json(table))
    with pytest.raises(BadInput, match="canonical form"):
        from_json(json.dumps(document).encode())
    with pytest.raises(BadInput, match="canonical form"):
        from_json(json.dumps(document | {"zz": 1}, separators=(",", ":"), sort_keys=True).encode())
    with pytest.raises(BadInput, match="format version 9"):
        to_json(replace(table, format_version=9))
    with pytest.raises(BadInput, match="twice"):
        to_json(replace(table, ranges=(*table.ranges, table.ranges[-1])))


def test_nan_is_never_written(table: CalibrationTable) -> None:
    with pytest.raises(BadInput, match="scale"):
        to_json(replace(table, ranges=(replace(table.ranges[0], scale=math.nan), *table.ranges[1:])))


def test_drift_names_the_scales_that_moved_and_those_that_only_one_table_has(table: CalibrationTable) -> None:
    first, second, third, *rest = table.ranges
    moved = replace(table, ranges=(replace(first, scale=first.scale * 1.5), replace(second, scale=second.scale * 1.05)))
    moved = replace(moved, ranges=(*moved.ranges, *rest))
    assert drift(table, table) == ()
    drifts = drift(table, moved)
    assert [scale.tensor for scale in drifts] == [third.tensor, first.tensor]
    assert (drifts[0].new, drifts[0].change) == (None, math.inf)
    assert drifts[1].change == pytest.approx(0.5)
    assert [scale.tensor for scale in drift(table, moved, most=0.01)][-1] == second.tensor


def test_the_worst_tensors_are_a_figure(table: CalibrationTable, tmp_path: Path) -> None:
    assert draw_worst_tensors(table, tmp_path / "worst.png").read_bytes()[:4] == b"\x89PNG"
