"""Two engines are compared row by row where they answered the same rows, and by their own figures alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from registry.records import EngineManifest, Measurement, Precision
from tasks.graphs.layer_table import LayerRow
from tasks.measurement.row_results import RowResults, cut_to_first
from tasks.measurement.windows import LatencyPlan, Windows
from tasks.model_tasks.scores import ACCURACY
from tasks.report.comparison import ComparedEngine, compare_engines, comparison_json, summarize_calls
from tasks.verdicts.intervals import paired_loss
from tests.support.reports import HOST

ManifestFactory = Callable[..., tuple[EngineManifest, Path]]
TRUTH = np.array([0, 1] * 50)
OLD, NEW = (np.where(np.arange(100) % step == 0, 1 - TRUTH, TRUTH) for step in (20, 12))


def answered(labels: np.ndarray, rows: str = "e" * 64) -> RowResults:
    scores = tuple((float(right),) for right in labels == TRUTH)
    exact = tuple((1.0,) for _ in TRUTH)
    return RowResults(rows, scores, exact, tuple(labels.tolist()), tuple(TRUTH.tolist()), tuple(TRUTH.tolist()))


@pytest.fixture
def engines(manifest_factory: ManifestFactory) -> tuple[ComparedEngine, ComparedEngine]:
    manifest, _ = manifest_factory()
    layers = tuple(LayerRow(name, "MatMul", "int8", "int8", "4x4", 16) for name in ("one", "two"))
    return (
        ComparedEngine(3, manifest, answered(OLD), (replace(layers[0], activations="fp32"), layers[1])),
        ComparedEngine(7, manifest, answered(NEW), layers),
    )


def test_the_loss_is_that_of_the_paired_test_and_flips_are_the_rows_that_changed(
    engines: tuple[ComparedEngine, ComparedEngine],
) -> None:
    found = compare_engines(ACCURACY, *engines)
    assert found.not_paired == ""
    assert found.loss == paired_loss(OLD == TRUTH, NEW == TRUTH)
    assert [flip.row for flip in found.flips] == np.flatnonzero(OLD != NEW).tolist()
    for flip in found.flips:
        names = ("no", "yes")
        assert (flip.before, flip.after, flip.truth) == tuple(names[each[flip.row]] for each in (OLD, NEW, TRUTH))
    assert sum(change.after for change in found.classes) == int((NEW == TRUTH).sum())
    assert json.loads(json.dumps(comparison_json(found)))["loss"]["rows"] == len(TRUTH)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answered": None}, "version 3 answered was not kept"),
        ({"answered": answered(OLD, rows="f" * 64)}, "judged on other rows .*release both with the same"),
    ],
)
def test_what_cannot_be_paired_is_refused_in_a_sentence_and_the_rest_is_compared(
    engines: tuple[ComparedEngine, ComparedEngine], change: dict[str, RowResults | None], words: str
) -> None:
    before = replace(engines[0], **change)  # type: ignore[arg-type]
    found = compare_engines(ACCURACY, before, engines[1])
    with pytest.raises(ValueError, match=words):
        raise ValueError(found.not_paired)
    assert (found.loss, found.flips, found.classes) == (None, (), ())
    assert found.after.latency_p50 is not None


def test_an_engine_that_was_judged_on_more_rows_is_compared_on_those_that_both_answered(
    engines: tuple[ComparedEngine, ComparedEngine],
) -> None:
    first = cut_to_first(replace(answered(OLD), first_set="e" * 64, first_rows=60))
    more = replace(answered(NEW), evaluation_set="f" * 64, first_set="e" * 64, first_rows=60)
    before, after = replace(engines[0], answered=first), replace(engines[1], answered=more)
    for pair in ((before, after), (replace(before, answered=more), replace(after, answered=first))):
        found = compare_engines(ACCURACY, *pair)
        assert found.not_paired == ""
        assert found.loss is not None
        assert found.loss.rows == 60
        assert {flip.row for flip in found.flips} == {*np.flatnonzero(OLD[:60] != NEW[:60]).tolist()}
    both = compare_engines(ACCURACY, replace(before, answered=replace(more, evaluation_set="a" * 64)), after)
    assert both.loss is not None
    assert both.loss.rows == 60


def test_other_classes_are_not_compared_row_by_row(engines: tuple[ComparedEngine, ComparedEngine]) -> None:
    manifest = engines[0].manifest
    renamed = replace(manifest, source=replace(manifest.source, classes=("yes", "no")))
    found = compare_engines(ACCURACY, replace(engines[0], manifest=renamed), engines[1])
    assert "other classes" in found.not_paired
    assert found.flips == ()


def test_a_figure_of_the_graph_is_none_of_the_engine(engines: tuple[ComparedEngine, ComparedEngine]) -> None:
    graph = Measurement("accuracy", 0.9, "share", 100, "onnx-graph", "e" * 64, HOST, 0.8, 0.95)
    manifest = replace(engines[1].manifest, measurements=(graph,))
    found = compare_engines(ACCURACY, engines[0], replace(engines[1], manifest=manifest))
    assert (found.after.quality, found.after.latency_p50) == (None, None)


def test_layers_that_changed_type_are_named_and_those_of_fp32_are_all_fp32(
    engines: tuple[ComparedEngine, ComparedEngine],
) -> None:
    (change,) = compare_engines(ACCURACY, *engines).layers
    assert compare_engines(ACCURACY, *engines).after.macs_share == 1.0
    assert (change.name, change.before, change.after) == ("one", "int8 x fp32", "int8 x int8")
    build = replace(engines[0].manifest.build, precision=Precision.FP32)
    fp32 = replace(engines[0], manifest=replace(engines[0].manifest, build=build), layers=None)
    changes = compare_engines(ACCURACY, fp32, engines[1]).layers
    assert [(each.name, each.before) for each in changes] == [("one", "fp32 x fp32"), ("two", "fp32 x fp32")]
    assert compare_engines(ACCURACY, replace(engines[0], layers=None), engines[1]).layers == ()


def test_an_engine_that_takes_half_as_long_is_twice_as_fast() -> None:
    slow = np.full((6, 20), 0.010) * np.linspace(1, 1.1, 6)[:, None]
    plan = LatencyPlan(6, 20, 1, (("batch", 1),))
    windows = Windows.empty("AB", "A", plan).append({"A": slow, "B": slow / 2}, ())
    found = summarize_calls(windows, ("A", "B"))
    value, low, high = found.speedup
    assert value == pytest.approx(2)
    assert 1 < low < 2 < high  # what a short time cannot show of a host with two speeds
    assert found.after_p50_ms[0] == pytest.approx(found.before_p50_ms[0] / 2)
